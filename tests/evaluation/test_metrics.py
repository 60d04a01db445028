"""Metrics against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tlkeras.errors import DataError
from tlkeras.evaluation.metrics import bootstrap_metrics, compute


def test_two_classes_by_hand():
    # scores of class 1: positives .9 .4, negatives .6 .2 .4(tie)
    targets = np.array([1, 1, 0, 0, 0])
    scores = np.array([0.9, 0.4, 0.6, 0.2, 0.4])
    values = compute(targets, np.stack([1 - scores, scores], 1), np.ones((1, 5)))
    # predicted: 1 0 1 0 0 -> right: yes no no yes yes
    assert values["accuracy"][0] == pytest.approx(3 / 5)
    assert values["balanced_accuracy"][0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert values["macro_f1"][0] == pytest.approx((2 * 1 / (2 + 2) + 2 * 2 / (3 + 3)) / 2)
    # pairs: .9 beats all 3; .4 beats .2, ties .4, loses to .6 -> (3 + 1.5) / 6
    assert values["roc_auc"][0] == pytest.approx(4.5 / 6)
    assert values["log_loss"][0] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.8, 0.6]).mean())


def test_weights_are_repetitions():
    random = np.random.default_rng(0)
    targets, counts = random.integers(0, 3, 40), random.integers(1, 4, 40)
    probabilities = random.dirichlet(np.ones(3), 40)
    weighted = compute(targets, probabilities, counts[None].astype(float))
    repeated = compute(np.repeat(targets, counts), np.repeat(probabilities, counts, 0), np.ones((1, counts.sum())))
    for name, value in weighted.items():
        assert value[0] == pytest.approx(repeated[name][0]), name


@pytest.mark.parametrize("classes", [2, 5])
def test_agrees_with_scikit_learn(classes):
    random = np.random.default_rng(classes)
    targets, weights = random.integers(0, classes, 300), random.random(300)
    probabilities = random.dirichlet(np.ones(classes), 300)
    predictions, given = probabilities.argmax(1), {"sample_weight": weights}
    truth = np.eye(classes)[targets]
    single = reference.precision_recall_fscore_support(targets, predictions, **given)
    ranked = [reference.average_precision_score(truth[:, c], probabilities[:, c], **given) for c in range(classes)]
    expected = {
        "weighted_f1": reference.f1_score(targets, predictions, average="weighted", **given),
        "average_precision": ranked[1] if classes == 2 else np.mean(ranked),
        "brier_score": np.average(np.square(truth - probabilities).sum(1), weights=weights),
        **{(1, name): values[1] for name, values in zip(("precision", "recall", "f1"), single, strict=False)},
        (1, "average_precision"): ranked[1],
        (1, "roc_auc"): reference.roc_auc_score(targets == 1, probabilities[:, 1], **given),
        "accuracy": reference.accuracy_score(targets, predictions, sample_weight=weights),
        "balanced_accuracy": reference.balanced_accuracy_score(targets, predictions, sample_weight=weights),
        "macro_f1": reference.f1_score(targets, predictions, average="macro", sample_weight=weights),
        "log_loss": reference.log_loss(targets, probabilities, sample_weight=weights),
        "roc_auc": np.mean(
            [
                reference.roc_auc_score(targets == c, probabilities[:, c], sample_weight=weights)
                for c in (range(classes) if classes > 2 else [1])
            ]
        ),
    }
    estimates = bootstrap_metrics(targets, probabilities, weights, resamples=50)
    assert {name for name in estimates if isinstance(name, str)} <= set(expected)
    for name, value in expected.items():
        assert estimates[name].value == pytest.approx(value), name
        assert estimates[name].low <= estimates[name].value <= estimates[name].high


def test_interval_covers_as_promised():
    """A coin of .7, 100 throws: the interval of the accuracy should hold .7 in about 95 % of experiments."""
    random = np.random.default_rng(0)
    covered = 0
    for experiment in range(200):
        right = random.random(100) < 0.7
        probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        estimate = bootstrap_metrics(np.zeros(100, int), probabilities, resamples=200, seed=experiment)["accuracy"]
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_same_seed_same_interval():
    targets, probabilities = np.array([0, 1, 0, 1]), np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])
    assert bootstrap_metrics(targets, probabilities, seed=1) == bootstrap_metrics(targets, probabilities, seed=1)


def test_one_class_left_has_no_auc():
    values = compute(np.zeros(3, int), np.full((3, 2), 0.5), np.ones((1, 3)))
    assert np.isnan(values["roc_auc"][0])
    assert values["accuracy"][0] == 1.0


def test_nothing_and_nan_are_refused():
    with pytest.raises(DataError, match="No held-out images"):
        bootstrap_metrics(np.zeros(0, int), np.zeros((0, 2)))
    with pytest.raises(DataError, match="not finite. Received: 1 rows with NaN"):
        bootstrap_metrics(np.zeros(2, int), np.array([[0.5, 0.5], [np.nan, 1.0]]))


def test_many_classes_and_images_stay_small():
    random = np.random.default_rng(0)
    targets = random.integers(0, 100, 3000)
    probabilities = random.dirichlet(np.ones(100), 3000)
    estimates = bootstrap_metrics(targets, probabilities, resamples=20)
    assert estimates["accuracy"].value == pytest.approx(np.mean(probabilities.argmax(1) == targets))
