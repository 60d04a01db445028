"""Several tasks on one backbone: whole runs with missing labels, and what is refused."""

import csv
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.cli.tables import runs as tables
from tlkeras.errors import DataError, RecipeError
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import open_run

RECIPE = """
name: cells
data:
  source: images/cells.csv
  tasks:
    shade: {column: brightness}
    hue: {}
    marks: {kind: multilabel}
  validation: 0.2
  test: 0.25
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 1.0}
training: {epochs: 12, batch_size: 16, learning_rate: 0.02}
evaluation: {bootstrap_samples: 100}
"""
STAGES = [{"name": "top", "unfreeze": 1, "epochs": 2, "learning_rate": 3e-3}]
WAYS = {
    "linear": {},
    "finetuned": {
        "finetuning": {
            "stages": STAGES,
            "loss": {"smoothing": 0.1},
            "task_weights": {"hue": 0.5},
            "weighting": "uncertainty",
        },
        "augmentation.mixup": 0.2,
    },
}
CLASSES = {"shade": ["bright", "dark"], "hue": ["blue", "green", "red"], "marks": ["dot", "line"]}


def draw_cells(folder, count=96, seed=0):
    """Write 32-pixel PNGs of three hues, bright or dark, with marks, and a manifest that lacks some of the labels."""
    random, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for number in range(count):
        shade, hue = number % 2, number // 2 % 3
        pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8) + (90 if shade else 0)
        pixels[..., hue] += 90
        marks = [name for bit, name in enumerate(("dot", "line")) if number >> bit + 2 & 1]
        if "dot" in marks:
            pixels[4:14, 4:14] = 255
        if "line" in marks:
            pixels[20:26] = 0
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
        rows.append([f"{number:03d}.png", ["dark", "bright"][shade], ["red", "green", "blue"][hue], "|".join(marks)])
    for number in range(0, count, 5):
        rows[number][2] = ""  # of these nobody has told the hue
    rows[3][1:] = ["", "", "?"]  # of this one nothing is known
    rows[4][1], rows[6][3] = "", "?"
    with open(folder / "cells.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "brightness", "hue", "marks"], *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and a recipe; the current one for the whole module."""
    folder = tmp_path_factory.mktemp("tasks")
    draw_cells(folder / "images")
    (folder / "cells.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def train(place):
    """A function of a way to what `tlkeras.train` returns; each way is gone once."""
    return cache(lambda way: tlkeras.evaluate(tlkeras.train("cells.yaml", set=WAYS[way], runs=place / way)))


@pytest.fixture(params=WAYS)
def result(request, train):
    return train(request.param)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_heads_begin_at_what_new_statistics_of_batch_norm_make_of_the_features(place):
    stage = {"name": "top", "unfreeze": 1, "epochs": 1, "learning_rate": 1e-9, "batch_norm": "reestimate"}
    tuned = tlkeras.evaluate(
        tlkeras.train("cells.yaml", set={"finetuning": {"stages": [stage], "keep": "last"}}, runs=place / "anew")
    )
    for name in CLASSES:
        assert tuned.tasks[name].metrics["roc_auc"].value > 0.8


def test_each_task_is_measured_where_its_label_is_known(result):
    rows = read_rows(f"{result.path}/predictions.csv")
    assert sum(result.examples.values()) == 95 and list(result.tasks) == list(CLASSES)
    for name, classes in CLASSES.items():
        extractor = "" if name == "shade" else f"{name}_"
        of_task = result.tasks[name]
        known = [row for row in rows if row[f"{extractor}label"] != "?"]
        assert of_task.classes == classes and of_task.images == len(known)
        right = np.mean([row[f"{extractor}label"] == row[f"{extractor}prediction"] for row in known])
        metric = "exact_match" if name == "marks" else "accuracy"
        assert of_task.metrics[metric].value == pytest.approx(right)
        assert of_task.metrics["roc_auc"].value > 0.8
    assert any(row["hue_label"] == "?" for row in rows)
    assert result.metrics == result.tasks["shade"].metrics  # the first is the main one


def test_one_model_answers_by_name(result, place, capsys):
    model = load_model(open_run(result.path, place))
    predictions = model(tf.zeros((2, 32, 32, 3), tf.uint8))
    assert {name: tuple(answer.shape) for name, answer in predictions.items()} == {
        name: (2, len(classes)) for name, classes in CLASSES.items()
    }
    found = tlkeras.predict(result.path, ["images/000.png", "images/001.png"])
    for image in found.predictions:
        assert image.label == image.tasks["shade"].label and image.tasks["hue"].label in CLASSES["hue"]
    tables.print_predictions(found)
    tables.print_training(result)
    printed = capsys.readouterr().out
    assert "hue" in printed and "marks" in printed and "linear" not in printed.splitlines()[0]


@pytest.mark.slow
def test_the_export_names_the_answers_of_each_task(train, place, tmp_path):
    exported = tlkeras.export(train("finetuned").path, tmp_path / "models")
    assert exported.difference < 1e-3 and {row.task for row in exported.parity} == set(CLASSES)
    served = tf.saved_model.load(exported.path).signatures["serving_default"]
    answer = served(image_bytes=tf.constant([(place / "images/000.png").read_bytes()]))
    (image,) = tlkeras.predict(train("finetuned").path, ["images/000.png"]).predictions
    for name in CLASSES:
        assert answer[f"{name}_label"].numpy()[0].decode() == image.tasks[name].label


def test_fine_tuning_tells_each_task(train):
    (*_, last) = read_rows(f"{train('finetuned').path}/history.csv")
    for measure in ("val_loss", "val_accuracy"):
        each = [float(last[f"{measure}_{name}"]) for name in CLASSES]
        assert float(last[measure]) == pytest.approx(np.mean(each))


@pytest.mark.slow
def test_conflicting_gradients_are_projected(place):
    finetuning = {"stages": [{**STAGES[0], "epochs": 1}], "weighting": "pcgrad"}
    result = tlkeras.evaluate(tlkeras.train("cells.yaml", set={"finetuning": finetuning}, runs=place / "projected"))
    (row,) = read_rows(f"{result.path}/history.csv")
    assert np.isfinite(float(row["loss"])) and result.tasks["hue"].metrics["roc_auc"].value > 0.8


def test_heads_of_frozen_features_are_those_of_single_tasks(train, place):
    """Nothing is shared but what is frozen: each head answers as if it had been alone."""
    alone = tlkeras.evaluate(tlkeras.train("cells.yaml", set={"data.tasks": {"hue": {}}}, runs=place / "alone"))
    splits = [read_rows(f"{path}/splits.csv") for path in (alone.path, train("linear").path)]
    assert [row["label"] for row in splits[0]] == [row["hue_label"] for row in splits[1] if row["hue_label"] != "?"]
    assert list(alone.tasks) == ["hue"] and "tasks" not in alone.to_dict()


def test_what_makes_no_sense_is_refused(place):
    with pytest.raises(RecipeError, match="tasks replaces label"):
        tlkeras.check("cells.yaml", {"data.label": "hue"})
    with pytest.raises(RecipeError) as caught:
        wrong = {
            "loss": {"kind": "sigmoid"},
            "balanced_sampling": True,
            "class_weight": "balanced",
            "task_weights": {"size": 1.0},
        }
        tlkeras.check("cells.yaml", {"finetuning": wrong})
    for sentence in ("labels always have sigmoid", "balance the classes of every task", "class in each task", "'size'"):
        assert sentence in str(caught.value)
    with pytest.raises(DataError, match="There is no column 'colour'"):
        tlkeras.train("cells.yaml", set={"data.tasks": {"hue": {"column": "colour"}}})


@pytest.mark.slow
def test_a_task_without_any_held_out_label_is_told(place):
    rows = read_rows(place / "images" / "cells.csv")
    lines = []
    for number, row in enumerate(rows):
        hue, split = (row["hue"], "train") if number % 4 else ("", "test")
        lines.append(f"images/{row['path']},{row['brightness'] or 'dark'},{hue},{split}")
    (place / "splits.csv").write_text("\n".join(["path,brightness,hue,split", *lines]))
    tasks = {"shade": {"column": "brightness"}, "hue": {}}
    found = tlkeras.check("cells.yaml", {"data.source": "splits.csv", "data.tasks": tasks, "data.validation": 0.0})
    assert any("'hue': no test image (with a weight above 0) has a label" in problem for problem in found.problems)
