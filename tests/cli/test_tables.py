"""Tables in any width: paths are shortened, names of classes and figures never; a pipe gets all."""

from __future__ import annotations

import re

import pytest

import tlkeras
from tlkeras.cli.tables import catalog, diagnostics, runs
from tlkeras.cli.tables.style import paths, print_table, right
from tlkeras.runs.directory import list_runs

WIDTHS = (40, 60, 80, 100, 120, 140, 200)
NAMES = ("Canis_lupus_familiaris_0123456", "Felis silvestris catus", "größe/高い[bold]")
PLACE = "a_very_long_folder_of_photographs/" * 4


@pytest.fixture(scope="module")
def results(tmp_path_factory, draw_more_photos):
    """Functions that print results on classes with long names, in files with long paths."""
    folder = tmp_path_factory.mktemp("long")
    draw_more_photos(folder / PLACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows = [f"{path},{NAMES[at % 2]}" for at, path in enumerate(sorted(folder.rglob("*.png")))]
        rows = [row.replace(NAMES[1], NAMES[2]) if "03" in row else row for row in rows]
        (folder / "all.csv").write_text(
            "\n".join(["path,label", *rows, rows[0].rpartition(",")[0] + "," + NAMES[1]][:-1])
        )
        options = {"backbone.name": "tiny", "backbone.weights": "none", "evaluation.bootstrap_samples": 100}
        run = tlkeras.train("linear_probe", set={**options, "data.source": "all.csv", "data.stratify": ["label"]})
        measured, checked = tlkeras.evaluate(run), tlkeras.check("all.csv", options)
        predicted = tlkeras.predict(run, sorted(folder.rglob("*.png"))[:4])
        listed = {"recipes": [{"name": "x", "about": "y " * 50}], "runs": [one.to_dict() for one in list_runs()]}
        other = tlkeras.train("linear_probe", set={**options, "data.source": "all.csv", "head.C": 1.0})
        tlkeras.evaluate(other)
        compared = tlkeras.compare([run, other])
    return {
        "predict": lambda: runs.print_predictions(predicted),
        "check": lambda: diagnostics.print_check(checked),
        "train": lambda: runs.print_training(measured),
        "evaluate": lambda: runs.print_evaluation(measured),
        "compare": lambda: runs.print_comparison(compared),
        "ls": lambda: catalog.print_list(listed),
    }


NAMED = ("predict", "check", "train", "evaluate")
FIGURE = r"\d+\.\d{3,4}(?!\d)"


def figures(text: str) -> list[str]:
    return sorted(re.findall(FIGURE, text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["predict", "check", "train", "evaluate", "compare", "ls"])
def test_names_and_figures_are_whole(results, command, width, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)  # xdist sets it
    results[command]()
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    results[command]()
    shown = capsys.readouterr().out
    assert figures(shown) == figures(piped)
    if command in NAMED:
        assert NAMES[0] in shown and NAMES[0] in piped and NAMES[2] in piped
        said = re.sub(r"[\s│]+", " ", shown)
        assert all(word in said for name in NAMES for word in name.split())
    drawn = [line for line in shown.splitlines() if line.startswith(("│", "┃"))]
    assert all(len(line) <= width for line in drawn)


def test_a_pipe_gets_whole_paths(results, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    results["predict"]()
    assert PLACE in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    results["predict"]()
    shown = capsys.readouterr().out
    assert PLACE not in shown and "…/" in shown and "0-000.png" in shown


@pytest.mark.parametrize(
    ("width", "text"), [(100, "/a/b/" + "x" * 20 + "/1.png"), (30, "…/1.png"), (24, "…/1.png"), (200, "x" * 20)]
)
def test_paths_are_shortened_at_the_beginning(width, text, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("t", paths("image") + right("p"), [("/a/b/" + "x" * 20 + "/1.png", "0.1234")])
    shown = capsys.readouterr().out
    assert text in shown and "0.1234" in shown


def test_a_long_name_keeps_both_ends(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("t", paths("image") + right("p"), [("/a/IMG" + "0" * 50 + "17.png", "0.1234")])
    assert re.search(r"IMG0+…0+17\.png .* 0\.1234", capsys.readouterr().out)
