"""A number beside a class: whole runs, what is written of them, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.cli.tables import runs as tables
from tlkeras.data.tasks import RegressionTask, make_task
from tlkeras.errors import DataError, RecipeError
from tlkeras.evaluation.metrics import bootstrap_metrics
from tlkeras.finetuning.losses import SquaredErrorLoss
from tlkeras.finetuning.metrics import TaskSlice, compute_validation_metrics
from tlkeras.heads.linear import RidgeRegressionHead
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import open_run

RECIPE = """
name: grades
data:
  source: images/cells.csv
  tasks:
    hue: {}
    grade: {column: brightness, kind: regression}
  validation: 0.2
  test: 0.25
backbone: {name: tiny, weights: none, size: 32}
evaluation: {bootstrap_samples: 100}
"""
STAGES = [{"name": "top", "unfreeze": 1, "epochs": 3, "learning_rate": 3e-3}]
WAYS = {
    "frozen": {},
    "finetuned": {
        "finetuning": {"stages": STAGES, "batch_size": 16, "weighting": "uncertainty"},
        "augmentation.mixup": 0.2,
    },
}


def draw_cells(folder, count=96, seed=0):
    """Write 32-pixel PNGs, red or green, of any brightness, and a manifest that lacks some of the numbers."""
    random, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for number in range(count):
        hue, brightness = number % 2, int(random.integers(20, 180))
        pixels = random.integers(0, 30, (32, 32, 3)) + brightness
        pixels[..., hue] += 40
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
        rows.append([f"{number:03d}.png", ("red", "green")[hue], "" if number % 7 == 3 else 10 * brightness])
    with open(folder / "cells.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "hue", "brightness"], *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    draw_cells(folder / "images")
    (folder / "grades.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module", params=[pytest.param("frozen", marks=pytest.mark.slow), "finetuned"])
def run(request, place):
    return tlkeras.evaluate(tlkeras.train("grades.yaml", set=WAYS[request.param]))


@pytest.mark.slow
def test_numbers_too_begin_at_what_new_statistics_make_of_the_features(place):
    stage = {"name": "top", "unfreeze": 1, "epochs": 1, "learning_rate": 1e-9, "batch_norm": "reestimate"}
    tuned = tlkeras.evaluate(
        tlkeras.train("grades.yaml", set={"finetuning": {"stages": [stage], "keep": "last"}}, runs=place / "anew")
    )
    assert tuned.tasks["grade"].metrics["r2"].value > 0.8


def test_a_number_is_learned_beside_a_class(run, place):
    """Most of an image's brightness can be seen; figures are in the unit of the column, ten times that of pixels."""
    grade = run.tasks["grade"]
    assert grade.kind == "regression" and grade.labels == {} and grade.calibration is None
    assert grade.metrics["r2"].value > 0.8
    assert 1 < grade.metrics["mae"].value < 200 < grade.baseline["mae"].value
    assert run.tasks["hue"].metrics["accuracy"].value > 0.8
    with open(f"{run.path}/metrics.csv", newline="") as file:
        rows = {(row["task"], row["metric"]): row for row in csv.DictReader(file) if row["scope"] == "all"}
    assert float(rows["grade", "rmse"]["majority"]) > float(rows["grade", "rmse"]["value"])
    with open(f"{run.path}/predictions.csv", newline="") as file:
        told = list(csv.DictReader(file))
    known = [row for row in told if row["grade_label"] != "?"]
    assert len(known) < len(told) and "grade_probability" not in told[0]
    errors = [abs(float(row["grade_label"]) - float(row["grade_prediction"])) for row in known]
    assert np.mean(errors) == pytest.approx(grade.metrics["mae"].value, rel=1e-4)


def test_the_model_answers_in_the_unit_of_the_column(run, place, capsys):
    images = [place / "images" / f"{number:03d}.png" for number in (0, 1)]
    found = tlkeras.predict(run.path, images)
    grades = [image.tasks["grade"] for image in found.predictions]
    assert all(0 < grade.value < 2500 and grade.label == f"{grade.value:.6g}" for grade in grades)
    tables.print_predictions(found)
    assert grades[0].label in capsys.readouterr().out
    for name in ("answers.csv", "table.parquet"):  # the table among the images is listed beside each
        tlkeras.predict_to_file(run.path, [place / "images"], place / run.run / name)
    with open(place / run.run / "answers.csv", newline="") as file:
        header = next(csv.reader(file))
    assert "grade: value" in header and "grade: label" not in header


def test_an_export_serves_the_number(run, place):
    exported = tlkeras.export(run.path, place / "models" / run.run)
    served = tf.saved_model.load(exported.path).signatures
    encoded = tf.constant([(place / "images" / "000.png").read_bytes()])
    predictions = served["serving_default"](image_bytes=encoded)
    model = load_model(open_run(run.path, place))
    expected = model(np.asarray(Image.open(place / "images" / "000.png"))[None])["grade"]
    np.testing.assert_allclose(predictions["grade_value"], expected, rtol=1e-4)
    assert "hue_classify" in served and "grade_classify" not in served
    assert {row.task for row in exported.parity} == {"hue", "grade"}


def test_the_report_shows_how_far_off_it_is(run, place):
    text = Path(tlkeras.report([run.path]).path).read_text("utf-8")
    for words in ("Largest errors", "always the mean", "The mean absolute error is"):
        assert words in text


def test_other_images_are_measured_too(run, place):
    result = tlkeras.evaluate_on(run.path, "images/cells.csv")
    assert result.tasks["grade"].metrics["r2"].value > 0.8
    tables.print_evaluation(result)
    text = Path(tlkeras.report([run.path]).path).read_text("utf-8")
    assert "Other images" in text and text.count("mean absolute error") >= 2


@pytest.mark.slow
def test_a_search_and_several_workers_know_numbers(place):
    tuned = {"tuning": {"space": {"head.C": [0.01, 1.0]}, "max_trials": 2, "confirm_top": 1, "confirm_seeds": 1}}
    assert tlkeras.tune("grades.yaml", tuned, train_best=False).failed == ()
    run = tlkeras.evaluate(tlkeras.train("grades.yaml"))
    job = tlkeras.predict_in_shards(run.path, [place / "images"], place / "job", workers=1)
    from pyarrow import parquet

    table = parquet.read_table(f"{job.folder}/parts")
    assert "grade: value" in table.column_names and table["grade: value"].type == "float"


def test_a_check_tells_the_range(place):
    (row,) = [row for row in tlkeras.check("grades.yaml").classes if row.task == "grade"]
    assert row.images == 82 and row.class_name.endswith(" on average") and " to 17" in row.class_name


def test_what_is_refused(place):
    numbers = {"data.tasks": {"grade": {"column": "brightness", "kind": "regression"}}}
    with pytest.raises(RecipeError, match="cannot be a regression"):
        tlkeras.check("grades.yaml", numbers)
    with pytest.raises(RecipeError, match="regression takes vectors"):
        tlkeras.check("grades.yaml", {"head": {"kind": "attention"}})
    with pytest.raises(DataError, match="'grade': 'red' is not a finite number"):
        tlkeras.train("grades.yaml", set={"data.tasks.grade.column": "hue"})
    assert make_task("grade", (), kind="regression").list_problems(["3", "", "?"]) == [
        "'grade': fewer than two different numbers."
    ]


def test_what_a_table_says_and_what_is_written_agree():
    task = RegressionTask("grade", ("grade",))
    targets = task.encode(["1.5", "", "?", "-2e3", "inf"])
    np.testing.assert_array_equal(targets, [1.5, np.nan, np.nan, -2000, np.nan])
    assert task.format_targets(targets) == ["1.5", "?", "?", "-2000", "?"]
    assert task.strata(np.arange(10.0)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert make_task("grade", (), **task.get_config()) == task


def test_figures_by_hand():
    """Errors 1, -1, 2 with weights 1, 1, 2 around the mean 3: squared 10 of 4, and 6 of 4 around the mean."""
    targets, values = np.array([1.0, 3.0, 4.0]), np.array([[2.0], [2.0], [6.0]])
    found = bootstrap_metrics(targets, values, np.array([1.0, 1.0, 2.0]), 0)
    assert found["mae"].value == pytest.approx(1.5) and found["rmse"].value == pytest.approx(2.5**0.5)
    assert found["r2"].value == pytest.approx(1 - 2.5 / 1.5)
    assert np.isnan(bootstrap_metrics(np.ones(3), values, None, 0)["r2"].value)


def test_the_loss_is_half_the_squared_error_in_deviations():
    loss = SquaredErrorLoss(scale=2.0, offset=1.0)
    np.testing.assert_allclose(loss(tf.constant([[5.0], [1.0]]), tf.constant([[1.0], [3.0]])), [0.5, 4.5])
    tasks = [TaskSlice("kind", 2), TaskSlice("grade", 1, units=(2.0, 1.0))]
    targets, logits = np.array([[1, 0, 5.0], [0, 1, np.nan]]), np.array([[9.0, 0, 1], [0, 9.0, 7]])
    found = compute_validation_metrics(targets, logits, np.ones(2), tasks)
    assert found["val_loss_grade"] == 0.5 and found["val_mae_grade"] == 2.0
    assert found["val_accuracy"] == 1.0 and found["val_loss"] == pytest.approx(0.25, abs=1e-3)


def test_the_head_is_ridge_regression(place):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    X = random.normal(size=(120, 8)) * np.arange(1, 9) + 3
    y, weights = X @ random.normal(size=8) * 50 + 1000 + random.normal(size=120), random.random(120) + 0.5
    head = RidgeRegressionHead().fit(X.astype(np.float32), y, weights)
    scaler = StandardScaler().fit(X, sample_weight=weights)
    variance = (120 * scaler.var_ + np.median(scaler.var_)) / 121  # one more row deviates as the median column does
    standard = (X - scaler.mean_) / np.sqrt(variance)
    ridge = Ridge(alpha=head.alpha_).fit(standard, y, weights / weights.mean())
    np.testing.assert_allclose(head.predict_proba(X)[:, 0], ridge.predict(standard), rtol=1e-4)
    tensor = tf.constant(X, tf.float32)
    for layer in head.to_layers():
        tensor = layer(tensor)
    np.testing.assert_allclose(tensor[:, 0], head.predict_proba(X)[:, 0], rtol=1e-3)
    noise = RidgeRegressionHead().fit(random.normal(size=(60, 50)), random.normal(size=60))
    assert noise.alpha_ > head.alpha_ and np.std(noise.predict_proba(random.normal(size=(60, 50)))) < 0.5
