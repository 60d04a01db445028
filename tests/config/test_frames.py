"""Tables of pandas and Arrow in the place of a source: read as the same CSV would be, and by a run again."""

from __future__ import annotations

from pathlib import Path

import pandas
import pyarrow
import pytest

import tlkeras
from tlkeras.config.frames import ENCODED_IMAGE, is_frame, read_columns, save_frame
from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RecipeError

SMALL = {"backbone.name": "tiny", "backbone.weights": "none", "evaluation.bootstrap_samples": 100}


def make_frame() -> pandas.DataFrame:
    paths = sorted(Path("photos").rglob("*.png"))
    return pandas.DataFrame({"file": paths, "kind": [path.parent.name for path in paths]}).sample(
        frac=1, random_state=0
    )


COLUMNS = {
    "numbers with a gap": ([1, None, 3], ["1", "", "3"]),
    "fractions": ([0.5, 1.0, float("nan")], ["0.5", "1.0", ""]),
    "whole numbers with a gap": (pandas.array([1, None, 3], dtype="Int64"), ["1", "", "3"]),
    "categories": (pandas.Categorical(["cat", None, "dog"]), ["cat", "", "dog"]),
    "text with a gap": (pandas.array(["cat", pandas.NA, "nan"], dtype="string"), ["cat", "", "nan"]),
    "truths": ([True, False, None], ["True", "False", ""]),
    "lists": ([["a", "b"], [], None], ["a|b", "", ""]),
    "paths": ([Path("a/b.png"), None, Path("c.png")], ["a/b.png", "", "c.png"]),
    "times": (
        pandas.to_datetime(["2024-01-02", None, "2024-01-03"]),
        ["2024-01-02 00:00:00", "", "2024-01-03 00:00:00"],
    ),
    "images": ([b"\x89PNG", {"bytes": None, "path": "a.png"}, None], [ENCODED_IMAGE, "a.png", ""]),
}


@pytest.mark.parametrize("row", COLUMNS)
def test_cells(row):
    values, texts = COLUMNS[row]
    assert read_columns(pandas.DataFrame({"x": values})) == [("x", texts)]


def test_arrow_and_equal_names():
    table = pyarrow.table([pyarrow.array(["a", "b"]).dictionary_encode(), [1, None]], names=["x", "x"])
    assert read_columns(table) == [("x", ["a", "b"]), ("x", ["1", ""])]
    assert is_frame(table) and not is_frame(pandas.Series([1])) and not is_frame("photos") and not is_frame({"a": 1})


INDEXES = {
    "numbers": (pandas.RangeIndex(1, 2), ["label"]),
    "shuffled numbers": (pandas.Index([7]), ["label"]),
    "a name": (pandas.Index(["a.png"], name="file"), ["file", "label"]),
    "texts": (pandas.Index(["a.png"]), ["path", "label"]),
    "two levels": (
        pandas.MultiIndex.from_tuples([("train", "a.png")], names=["split", "path"]),
        ["split", "path", "label"],
    ),
}


@pytest.mark.parametrize("row", INDEXES)
def test_indexes(row):
    index, names = INDEXES[row]
    assert [name for name, _ in read_columns(pandas.DataFrame({"label": ["cat"]}, index=index))] == names


def test_equal_tables_are_one_file():
    one, other = (save_frame(pandas.DataFrame({"path": ["a"], "label": [label]})) for label in ("x", "y"))
    assert one == save_frame(pandas.DataFrame({"path": ["a"], "label": ["x"]})) != other


def test_a_frame_is_checked(workplace):
    frame = make_frame()
    found = tlkeras.check(frame, {**SMALL, "data.label": "kind"})
    assert found.facts["classes"] == "day 16, night 16" and not found.problems


@pytest.mark.slow
def test_a_frame_is_a_source(workplace, monkeypatch):
    frame = make_frame()
    assert tlkeras.check(pyarrow.table({"path": list(map(str, frame.file)), "label": list(frame.kind)}), SMALL).classes
    run = tlkeras.train(
        "linear_probe", set={**SMALL, "data.source": frame, "data.label": "kind"}, runs=workplace / "runs"
    )
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    assert tlkeras.evaluate(run).main.images and tlkeras.evaluate(run).rejected == 0
    monkeypatch.chdir(workplace)
    held_out = frame.head(10).rename(columns={"file": "path"})
    assert tlkeras.evaluate_on(run, held_out).main.images == 10
    assert tlkeras.pack(frame, "packed", {"data.label": "kind"}).images == 32


def test_paths_start_from_a_root(workplace):
    frame = pandas.DataFrame({"path": ["day/0-000.png", "night/0-000.png"], "label": ["a", "b"]})
    recipe = load_recipe("linear_probe", {"data.source": frame, "data.root": "photos"})
    assert recipe.data.root == str(workplace / "photos")
    assert load_recipe("linear_probe", {"data.source": frame}).data.root == str(workplace)
    assert load_recipe("linear_probe", {"data.source": Path("photos")}).data.source == "photos"
    with pytest.raises(RecipeError, match="data.source: input should be a valid string"):
        load_recipe("linear_probe", {"data.source": frame.label})
