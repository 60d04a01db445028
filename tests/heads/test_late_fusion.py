"""Late fusion: heads on parts, combined by their mean and by stacking, next to early fusion in every report."""

import csv
from pathlib import Path

import numpy as np
import pytest

import tlkeras
from tlkeras.adaptation.domain_head import DomainAdaptedHead
from tlkeras.heads.late_fusion import LateFusion, fit_late_fusion
from tlkeras.heads.linear import LinearHead, RidgeHead


def make_parts(count=300, classes=2, seed=0):
    """Two parts: the first separates the classes, the second is noise."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % classes
    separating = random.normal(size=(count, 4)) + 1.5 * np.eye(4)[y]
    return np.hstack([separating, random.normal(size=(count, 40))]).astype(np.float32), y


@pytest.mark.parametrize("classes", [2, 3])
def test_the_mean_is_that_of_heads_on_each_part(classes):
    X, y = make_parts(classes=classes)
    predicted = LateFusion(RidgeHead, [4, 40]).fit(X, y).predict(X)
    alone = [RidgeHead().fit(part, y).predict_proba(part) for part in (X[:, :4], X[:, 4:])]
    np.testing.assert_allclose(predicted["mean"], (alone[0] + alone[1]) / 2)
    for probabilities in predicted.values():
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_stacking_learns_which_part_to_trust():
    """40 columns of noise fit their own rows; only predictions of unseen rows show that they are noise."""
    X, y = make_parts()
    fused = LateFusion(lambda: LinearHead(C=100.0), [4, 40]).fit(X, y)
    difference = fused.stack_.kernel_[:, 1] - fused.stack_.kernel_[:, 0]
    assert abs(difference[1]) < 0.25 * difference[0]
    held, truth = make_parts(seed=1)
    predicted = fused.predict(held)

    def measure(probabilities):
        return float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, 1)).mean())

    assert measure(predicted["stacking"]) < measure(predicted["mean"])


def test_labels_are_fused_one_by_one():
    X, y = make_parts()
    targets = np.stack([y, np.random.default_rng(2).integers(0, 2, len(y))], axis=1)
    predicted = LateFusion(RidgeHead, [4, 40]).fit(X, targets).predict(X)
    assert predicted["mean"].shape == predicted["stacking"].shape == (len(y), 2)
    assert ((predicted["stacking"][:, 0] > 0.5) == y).mean() > 0.7


def test_across_domains_each_part_is_adapted_by_itself():
    """In the target a separating column is shifted: without alignment all rows are predicted as one class."""
    X, y = make_parts()
    moved, truth = make_parts(seed=1)
    moved[:, 0] += 20

    def measure(method):
        fused = LateFusion(lambda: DomainAdaptedHead(method, RidgeHead, scored=False), [4, 40]).fit(X, y, target=moved)
        return {rule: (predicted.argmax(axis=1) == truth).mean() for rule, predicted in fused.predict(moved).items()}

    assert max(measure("none").values()) < 0.6
    assert min(measure("coral").values()) > 0.8


def test_what_cannot_be_fused():
    X, y = make_parts(count=4)
    with pytest.raises(ValueError, match=r"Parts of widths \(4, 4\) do not add up to 44 features"):
        LateFusion(RidgeHead, [4, 4]).fit(X, y)
    training = {"X": X, "y": y, "sample_weight": None, "groups": None}
    assert fit_late_fusion(RidgeHead, [4, 40], training, X) == {}


@pytest.mark.slow
def test_a_run_reports_late_fusion_next_to_early_fusion(workplace, capsys):
    recipe = {"features": {"taps": [0, -1], "handcrafted": ["colour"]}, "head": {"kind": "ridge"}}
    result = tlkeras.evaluate(tlkeras.train("mine.yaml", set=recipe))
    assert set(result.main.late_fusion) == {"mean", "stacking"}
    for metrics in result.main.late_fusion.values():
        assert metrics["accuracy"].value > 0.9 and set(metrics) == set(result.metrics)
    with open(workplace / result.path / "metrics.csv", newline="") as file:
        scopes = {(row["scope"], row["name"]) for row in csv.DictReader(file)}
    assert {("late fusion", "mean"), ("late fusion", "stacking")} <= scopes
    from tlkeras.cli.tables.runs import print_evaluation

    print_evaluation(result)
    printed = capsys.readouterr().out
    page = Path(tlkeras.report([result.path]).path).read_text("utf-8")
    for text in (printed, page):
        assert "late fusion: mean" in text and "late fusion: stacking" in text
