"""All metrics of a run, their files, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest

import tlkeras
from tlkeras.data.tasks import Task
from tlkeras.errors import DataError, RunError
from tlkeras.evaluation.evaluate import COLUMNS, evaluate, evaluate_predictions
from tlkeras.evaluation.metrics import bootstrap_metrics
from tlkeras.evaluation.report.compute import ReportOptions, compute_report
from tlkeras.exporting.parity import _measure_accuracy, read_held_out
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, load_predictions, read_probes, read_tasks


def make_predictions(count=60, classes=3, seed=0, **slices):
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, count)
    probabilities = random.dirichlet(np.ones(classes), count)
    task = Task("label", tuple(f"class {number}" for number in range(classes)))
    keys = np.array([f"{number}.png" for number in range(count)])
    prior = np.full(classes, 1 / classes)
    return Predictions(task, keys, targets, probabilities, np.ones(count), prior, slices)


@pytest.fixture
def copied(trained, tmp_path):
    """A run of one's own to change."""
    shutil.copytree(trained, tmp_path / "runs/mine-01")
    return Run(tmp_path / "runs/mine-01")


def test_slices_are_measured_alone():
    domain = np.array(["mono", "poly", "poly"] * 20)
    predictions = make_predictions(domain=domain, group=np.full(60, ""))
    result = evaluate_predictions(predictions, resamples=50)
    assert list(result.slices) == ["domain"]
    mono = result.slices["domain"]["mono"]
    rows = domain == "mono"
    assert mono.examples == 20
    right = predictions.probabilities[rows].argmax(1) == predictions.targets[rows]
    assert mono.metrics["accuracy"].value == pytest.approx(right.mean())


def test_one_class_among_the_images():
    predictions = make_predictions()
    only = Predictions(**{**vars(predictions), "targets": np.zeros(60, int)})
    result = evaluate_predictions(only, resamples=50)
    nothing = {"value": None, "low": None, "high": None, "reason": "it is not defined for these images"}
    assert result.metrics["roc_auc"].to_dict() == nothing
    assert np.isnan(result.labels["class 1"].metrics["recall"].value)
    assert np.isfinite(result.metrics["accuracy"].value)
    json.dumps(result.to_dict(), allow_nan=False)


def test_files_hold_what_is_returned(copied):
    result = evaluate(copied)
    printed = json.loads(json.dumps(result.to_dict()))
    stored = json.loads((copied.path / "metrics.json").read_text())
    assert {**printed, **stored} == printed
    assert set(printed) - set(stored) == {"path", "phases", "features", "head", "rejected"}
    with open(copied.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    by_name = {(row["scope"], row["name"], row["metric"]): row for row in rows}
    assert float(by_name["all", "", "weighted_f1"]["value"]) == result.metrics["weighted_f1"].value
    assert float(by_name["class", "day", "recall"]["value"]) == result.main.labels["day"].metrics["recall"].value
    assert float(by_name["all", "", "adaptive_ece"]["value"]) == result.main.calibration.adaptive_ece
    assert by_name["all", "", "accuracy"]["majority"] == "0.5"


def test_predictions_that_are_not_finite_are_named(copied):
    stored = copied.read_arrays("predictions.npz")
    stored["probabilities"][3] = np.nan
    copied.write_arrays("predictions.npz", **stored)
    with pytest.raises(RunError, match=rf"not finite.*1 images.*{stored['keys'][3]}.*learning rate"):
        evaluate(copied)


def test_a_thousand_classes_and_many_images():
    predictions = make_predictions(count=3000, classes=1000)
    result = evaluate_predictions(predictions, resamples=100)
    accuracy, area = (result.metrics[name] for name in ("accuracy", "roc_auc"))
    assert accuracy.low < accuracy.high
    assert area.value == pytest.approx(0.5, abs=0.02) and np.isnan(area.low)
    assert "of ROC AUC and average precision none" in result.interval
    assert len(result.labels) == 1000


def test_deep_heads_are_compared_with_a_linear_probe(workplace):
    overrides = {"head.kind": "deep", "training.epochs": 2, "data.validation": 0.25}
    result = tlkeras.evaluate(tlkeras.train("mine.yaml", set=overrides))
    run = Run(workplace / result.path)
    assert set(result.main.probe) == set(result.metrics)
    gain = result.main.gain
    assert gain.value == result.metrics["accuracy"].value - result.main.probe["accuracy"].value
    assert result.to_dict()["gain"]["better"] is gain.better
    assert read_probes(run)[load_predictions(run)[0].task.name].shape == load_predictions(run)[0].probabilities.shape
    (validation,) = load_predictions(run, "validation")
    assert len(validation) == result.main.calibration.fitted_on == 8
    assert set(result.main.calibration.scalings) == {"temperature", "vector"}
    assert set(run.manifest["memory"]) == set(result.phases) - {"load libraries", "build backbone"}
    assert run.manifest["memory"]["fit head"] > 50


def test_the_fingerprint_is_of_contents_labels_and_splits(workplace, draw_more_photos):
    def train(**overrides):
        result = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"head.C": 1.0, **overrides}))
        return Run(workplace / result.path).manifest["fingerprint"]

    first = train()
    assert train(**{"data.seed": 1}) != first
    (workplace / "photos").rename(workplace / "moved")
    assert train(**{"data.source": "moved"}) == first


def test_other_images(trained, tmp_path, draw_more_photos, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    other = draw_more_photos(tmp_path / "other", count=3, seed=7)
    result = tlkeras.evaluate_on("latest", str(other))
    assert result.main.images == 6 and result.trained_on == 0
    assert result.metrics["accuracy"].value == 1.0
    shutil.rmtree(other / "night")
    assert np.isnan(tlkeras.evaluate_on("latest", str(other)).metrics["roc_auc"].value)
    assert tlkeras.evaluate_on("latest", "photos").trained_on == 24
    (other / "day").rename(other / "dya")
    with pytest.raises(DataError, match="'dya' is not a class. Did you mean 'day'"):
        tlkeras.evaluate_on("latest", str(other))


def test_groups_are_resampled_in_metrics_and_slices(copied):
    group = np.repeat([f"module {number}" for number in range(12)], 5)
    domain = np.where(np.arange(60) < 30, "mono", "poly")
    predictions = make_predictions(group=group, domain=domain)
    result = evaluate_predictions(predictions, resamples=200)
    assert result.interval == "95 %, Bayesian bootstrap, 200 resamples of 12 groups of images, each as a whole"
    expected = bootstrap_metrics(predictions.targets, predictions.probabilities, None, 200, 0, group)
    assert result.metrics["accuracy"] == expected["accuracy"]
    assert result.slices["domain"]["mono"].metrics["accuracy"].low < 1
    (alone,) = {one.metrics["accuracy"].reason for one in result.slices["group"].values()}
    assert alone == "there is only one group, which cannot be resampled"


def test_one_number_has_one_interval(copied):
    """The table, the file, the comparison and the report take the same resamples."""
    first = evaluate(copied).metrics["accuracy"]
    again = evaluate(copied)
    assert again.metrics["accuracy"] == first
    twin = copied.path.parent / "mine-02"
    shutil.copytree(copied.path, twin)
    compared = tlkeras.compare([copied, Run(twin)]).tasks["label"].metrics["mine-01"]
    assert compared == again.metrics
    report = compute_report(copied, ReportOptions(images=0, corrupted=0))
    assert report.evaluation.metrics == again.metrics
    assert report.tasks["label"].calibration.interval == again.main.calibration.interval


def test_an_export_is_measured_as_the_run_is(copied):
    held_out = read_held_out(copied, read_tasks(copied), None)
    assert len(held_out) == 8
    (task,) = read_tasks(copied)
    found = _measure_accuracy(task, held_out.targets[0], held_out.probabilities[0], held_out)
    assert found == evaluate(copied).metrics["accuracy"]
