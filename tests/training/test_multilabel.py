"""Images with none, one or several labels: whole runs, and what is refused."""

import csv
import json
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.cli.tables import runs as tables
from tlkeras.errors import DataError, RecipeError

RECIPE = """
name: shapes
data: {source: images/shapes.csv, label: shapes, separator: "|", validation: 0.2, test: 0.25}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 1.0}
training: {epochs: 12, batch_size: 16, learning_rate: 0.02}
evaluation: {bootstrap_samples: 100}
"""
STAGE = {"name": "top", "unfreeze": 1, "epochs": 2, "learning_rate": 3e-3}
FINETUNING = {"stages": [STAGE], "monitor": "roc_auc", "loss": {"smoothing": 0.1}}
WAYS = {
    "linear": {},
    "deep": {"head": {"kind": "deep", "widths": [16]}},
    "finetuned": {"finetuning": FINETUNING, "augmentation.mixup": 0.2},
}


def draw_shapes(folder, count=96, seed=0):
    """Write 32-pixel PNGs with a red square, a blue disc, both or nothing, and a manifest of them."""
    random, rows = np.random.default_rng(seed), []
    down, across = np.mgrid[:32, :32]
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(90, 130, (32, 32, 3), dtype=np.uint8)
        labels = [name for bit, name in enumerate(("square", "disc")) if number >> bit & 1]
        y, x = random.integers(2, 8, 2)
        if "square" in labels:
            pixels[y : y + 12, x : x + 12] = [230, 20, 20]
        if "disc" in labels:
            pixels[(down - y - 16) ** 2 + (across - x - 14) ** 2 < 40] = [20, 20, 230]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        rows.append([f"{number:03d}.png", "|".join(labels)])
    rows[5][1] = "?"  # nobody has looked at it
    with open(folder / "shapes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "shapes"], *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and a recipe; the current one for the whole module."""
    folder = tmp_path_factory.mktemp("labels")
    draw_shapes(folder / "images")
    (folder / "shapes.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def train(place):
    """A function of a way to what `tlkeras.train` returns; each way is gone once."""
    return cache(lambda way: tlkeras.evaluate(tlkeras.train("shapes.yaml", set=WAYS[way], runs=place / way)))


@pytest.fixture(params=["linear", *(pytest.param(way, marks=pytest.mark.slow) for way in ("deep", "finetuned"))])
def result(request, train):
    return train(request.param)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_figures_are_those_of_the_predictions(result, place):
    rows = read_rows(f"{result.path}/predictions.csv")
    assert result.main.kind == "multilabel" and result.main.classes == ["disc", "square"]
    assert sum(result.examples[split] for split in ("train", "validation", "test")) == 95  # one is not labelled
    right = [row["label"] == row["prediction"] for row in rows]
    assert result.metrics["exact_match"].value == pytest.approx(np.mean(right))
    for name in ("disc", "square"):
        has = [name in row["label"].split("|") for row in rows]
        predicted = [float(row[f"probability of {name}"]) >= 0.5 for row in rows]
        assert predicted == [name in row["prediction"].split("|") for row in rows]
        of_label = result.main.labels[name]
        assert of_label.examples == sum(has)
        assert of_label.metrics["f1"].value == pytest.approx(
            2 * np.logical_and(has, predicted).sum() / (sum(has) + sum(predicted))
        )
    assert result.metrics["roc_auc"].value > 0.9 > result.main.baseline["roc_auc"].value
    assert {row["label"] for row in rows} == {"", "square", "disc", "disc|square"}


def test_prediction_lists_every_label_found(result, place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    predictions = tlkeras.predict(result.path, ["images/003.png", "images/000.png"], top=2)
    assert predictions.threshold == 0.5
    for image in predictions.predictions:
        probabilities = {best.label: best.probability for best in image.top}
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert image.labels == tuple(name for name in ("disc", "square") if probabilities[name] >= 0.5)
        assert image.label == "|".join(image.labels)
    tables.print_predictions(predictions)
    tables.print_training(result)
    printed = capsys.readouterr().out
    assert "labels, from 0.5 on" in printed
    assert "exact match" in printed and "mean average precision" in printed and "images" in printed


@pytest.mark.slow
def test_the_export_answers_with_labels(train, place, tmp_path):
    result = train("finetuned")
    exported = tlkeras.export(result.path, tmp_path / "models")
    assert exported.difference < 1e-3
    served = tf.saved_model.load(exported.path).signatures["serving_default"]
    files = ["images/000.png", "images/001.png", "images/003.png"]
    answer = served(image_bytes=tf.constant([(place / file).read_bytes() for file in files]))
    predictions = tlkeras.predict(result.path, files).predictions
    assert [label.decode() for label in answer["label"].numpy()] == [image.label for image in predictions]
    np.testing.assert_array_equal(answer["present"], answer["probabilities"].numpy() >= 0.5)


def test_what_is_learned_is_right(train):
    """The linear head on a tiny random network tells squares from discs."""
    predictions = tlkeras.predict(train("linear").path, ["images/003.png", "images/000.png"]).predictions
    assert [image.labels for image in predictions] == [("disc", "square"), ()]


def test_check_counts_labels_and_refuses_what_makes_no_sense(place):
    found = tlkeras.check("shapes.yaml").classes
    assert {row.class_name: row.images for row in found} == {"disc": 48, "square": 47}
    wrong = {
        "head": {"kind": "deep", "class_weight": "balanced"},
        "finetuning": {"loss": {"kind": "focal"}, "class_weight": "balanced", "balanced_sampling": True},
    }
    with pytest.raises(RecipeError) as caught:
        tlkeras.check("shapes.yaml", wrong)
    for sentence in (
        "no class_weight",
        "not focal",
        "no finetuning.class_weight",
        "finetuning.balanced_sampling cannot",
    ):
        assert sentence in str(caught.value)
    with pytest.raises(RecipeError, match="one class per image.*softmax or focal, not sigmoid"):
        tlkeras.check("shapes.yaml", {"data.separator": None, "finetuning": {"loss": {"kind": "sigmoid"}}})


def test_a_separator_that_is_nowhere_is_told(place):
    (place / "one.csv").write_text("path,shapes\n" + "".join(f"images/{n:03d}.png,a+b\n" for n in range(4)))
    (problem,) = tlkeras.check("shapes.yaml", {"data.source": "one.csv"}).problems
    assert "no cell contains the separator '|'" in problem and "first is 'a+b'" in problem
    with pytest.raises(DataError, match="At least two are needed"):
        tlkeras.train("shapes.yaml", set={"data.source": "one.csv"})


def test_a_label_that_no_held_out_image_has_is_noted(place):
    rows = read_rows(place / "images" / "shapes.csv")
    lines = [
        f"images/{row['path']},{row['shapes']},{'test' if number % 4 < 2 and number < 40 else 'train'}"
        for number, row in enumerate(rows)
    ]
    (place / "splits.csv").write_text("\n".join(["path,shapes,split", *lines]))
    notes = tlkeras.check("shapes.yaml", {"data.source": "splits.csv"}).notes
    assert any("no test image (with a weight above 0) shows disc; it is not measured" in note for note in notes)


def test_a_run_keeps_what_its_labels_mean(result):
    with open(f"{result.path}/manifest.json") as file:
        assert json.load(file)["separator"] == "|"
