"""The notebook of docs does what it says: its cells run in order, and what they show is looked at."""

import ast
import json
from pathlib import Path

import pandas
import pytest

from tlkeras.config import recipe as recipes

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook.ipynb"


def run_cells(names):
    """What each cell's last expression is, by the cell's text."""
    shown = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, NOTEBOOK.name, "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)
                shown[source] = value
    return shown


@pytest.fixture(params=["tiny", pytest.param("as shipped", marks=pytest.mark.slow)])
def place(request, tmp_path, monkeypatch):
    """An empty folder; at first with a network that is small and knows nothing."""
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    if request.param == "tiny":
        text = recipes.list_recipes()["linear_probe"].read_text()
        small = text.replace("efficientnet_lite0", "tiny").replace("packaged", "none")
        (tmp_path / "linear_probe.yaml").write_text(small)
        shipped = {**recipes.list_recipes(), "linear_probe": tmp_path / "linear_probe.yaml"}
        monkeypatch.setattr(recipes, "list_recipes", lambda: shipped)
    return request.param


def test_the_notebook(place):
    names: dict = {}
    shown = run_cells(names)
    cards = [value for value in shown.values() if hasattr(value, "_repr_html_")]
    assert len(cards) >= 12
    for value in cards:
        assert value._repr_html_().lstrip().startswith("<")
    data, run, answer = names["data"], names["run"], names["answer"]
    assert (len(data), data.classes) == (109, ["brick", "grass", "gravel"]) and "broken.png" in data._repr_html_()
    assert run.name == "textures-01" and answer.label in data.classes
    frames = [value for value in shown.values() if isinstance(value, pandas.DataFrame)]
    assert len(frames) == 4 and list(frames[1].index) == data.classes
    assert list(frames[3]["name"]) == ["textures-01", "kernel-01"]
    pictures = [value for value in shown.values() if hasattr(value, "_repr_png_")]
    assert len(pictures) == 2 and all(picture._repr_png_().startswith(b"\x89PNG") for picture in pictures)
    assert "kernel-01" in names["compared"].verdict
    if place == "as shipped":
        assert float(names["accuracy"]) > 0.9 and names["search"].best_score_ > 0.9
