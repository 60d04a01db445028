"""Metrics, comparison, calibration and sets of plain arrays, against scikit-learn and numbers by hand."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tlkeras.errors import DataError
from tlkeras.evaluation.arrays import (
    compare_models,
    fit_calibration,
    make_predictions,
    measure_calibration,
    measure_metrics,
    predict_sets,
)

RANDOM = np.random.default_rng(0)
Y = RANDOM.integers(0, 3, 200)
LOGITS = RANDOM.normal(size=(200, 3)) + 1.5 * np.eye(3)[Y]
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
NAMES = np.array(["ant", "bee", "cat"])


def test_metrics_are_those_of_scikit_learn():
    found = measure_metrics(Y, P, resamples=200)
    assert found["accuracy"].value == pytest.approx(reference.accuracy_score(Y, P.argmax(axis=1)))
    assert found["log_loss"].value == pytest.approx(reference.log_loss(Y, P))
    assert found["roc_auc"].value == pytest.approx(reference.roc_auc_score(Y, P, multi_class="ovr"))
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high
    weights = RANDOM.random(200)
    found = measure_metrics(Y, P, weights=weights, resamples=0)
    assert found["log_loss"].value == pytest.approx(reference.log_loss(Y, P, sample_weight=weights))


@pytest.mark.parametrize("as_column", [lambda p: p[:, None], lambda p: p], ids=["(n, 1)", "(n,)"])
def test_a_sigmoid_column_is_the_second_class(as_column):
    y, p = (Y == 1).astype(int), P[:, 1]
    for targets in (y, y.astype(bool), y[:, None]):
        found = measure_metrics(targets, as_column(p), resamples=0)
        assert found["accuracy"].value == pytest.approx(reference.accuracy_score(y, p > 0.5))
        assert found["roc_auc"].value == pytest.approx(reference.roc_auc_score(y, p))


def test_classes_may_be_strings_in_any_order():
    expected = measure_metrics(Y, P, resamples=0)
    assert measure_metrics(NAMES[Y], P, resamples=0) == expected
    order = [2, 0, 1]
    assert (
        measure_metrics(NAMES[Y], P[:, order], NAMES[order].tolist(), resamples=0)["accuracy"] == expected["accuracy"]
    )
    assert measure_metrics(Y * 10, P, [0, 10, 20], resamples=0) == expected


def test_several_labels_and_numbers():
    labels = RANDOM.integers(0, 2, (50, 4))
    scores = np.clip(0.5 * labels + 0.6 * RANDOM.random((50, 4)), 0, 1)
    found = measure_metrics(labels, scores, resamples=0)
    assert found["macro_f1"].value == pytest.approx(reference.f1_score(labels, scores >= 0.5, average="macro"))
    assert measure_metrics([1.0, 2.0, 4.0], [1.0, 2.5, 4.0], resamples=0)["mae"].value == pytest.approx(0.5 / 3)


def test_groups_are_resampled_as_a_whole():
    alone = measure_metrics(Y, P, resamples=300)["accuracy"]
    together = measure_metrics(
        np.repeat(Y, 5), np.repeat(P, 5, axis=0), groups=np.repeat(np.arange(200), 5), resamples=300
    )
    assert together["accuracy"].high - together["accuracy"].low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_a_paired_comparison():
    worse = np.roll(P, 1, axis=1)
    found = compare_models(Y, P, worse, resamples=300)
    assert found["accuracy"].better is True and found["log_loss"].value < 0 and found["log_loss"].better is True
    assert compare_models(Y, worse, P, resamples=300)["accuracy"].better is False
    assert compare_models(Y, P, P, resamples=300)["accuracy"].better is None


def test_calibration_finds_the_temperature_that_was_hidden():
    sharp = np.exp(3 * LOGITS) / np.exp(3 * LOGITS).sum(axis=1, keepdims=True)
    plain, scaled = fit_calibration(Y, P), fit_calibration(NAMES[Y], sharp)
    assert scaled.scale == pytest.approx(plain.scale / 3, rel=0.02)
    assert measure_calibration(Y, scaled.apply(sharp)).log_loss < measure_calibration(Y, sharp).log_loss - 0.09
    assert measure_calibration(Y, sharp, resamples=200).interval.high > 0


def test_sets_hold_the_true_class_as_often_as_promised():
    held, calibration = slice(0, 100), slice(100, 200)
    sets = predict_sets(P[held], Y[calibration], P[calibration], alpha=0.2)
    scores = np.sort(1 - P[calibration][np.arange(100), Y[calibration]])
    assert np.array_equal(sets, 1 - P[held] <= scores[int(np.ceil(101 * 0.8)) - 1] + 1e-9)
    assert 0.7 < sets[np.arange(100), Y[held]].mean() < 0.9
    pairs = predict_sets(P[held, :1], (Y == 0).astype(int), P[:, :1])
    assert pairs.shape == (100, 2)


WRONG = {
    "lengths": ([0, 1], P, r"not of the same examples. Received: shapes \(2,\) and \(200, 3\)"),
    "logits": (Y, LOGITS, r"These are no probabilities.*Of logits take the softmax"),
    "rows that do not sum to 1": (Y[:2], [[0.5, 0.5, 0.5]] * 2, r"no probabilities.*\[0.5, 0.5, 0.5\]"),
    "not finite": (Y, P * np.nan, r"not finite. Received: 200 rows"),
    "one-hot floats": (np.eye(3)[Y], P, r"Floating targets are numbers.*argmax"),
    "floats": (Y.astype(float), P, r"Floating targets are numbers.*y.astype\(int\)"),
    "too few classes": (NAMES[Y % 2], P, r"There are 3 columns of probabilities. Received: 2 classes. Give `classes`"),
    "an index too high": (Y + 1, P, r"none of the classes. Received: '3'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_are_refused(case):
    targets, probabilities, sentence = WRONG[case]
    with pytest.raises(DataError, match=sentence):
        make_predictions(targets, probabilities)


def test_what_a_class_is_needed_for():
    with pytest.raises(DataError, match=r"none of the classes. Received: 'cat'. Did you mean 'cats'\?"):
        measure_metrics(["cat", "dog"], [[1, 0], [0, 1]], ["cats", "dog"])
    with pytest.raises(DataError, match=r"no probabilities to calibrate"):
        fit_calibration([0.5, 1.5], [0.1, 0.2])
    with pytest.raises(DataError, match=r"Weights and groups are one per example"):
        measure_metrics(Y, P, weights=[1.0])
    with pytest.raises(DataError, match=r"shapes \(2, 2\) and \(200, 3\)"):
        predict_sets([[0.5, 0.5]] * 2, Y, P)
