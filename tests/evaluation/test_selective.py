"""Thresholds and prediction sets against numbers worked out by hand."""

import numpy as np
import pytest

from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import RunError
from tlkeras.evaluation.selective import (
    choose_threshold,
    conformal_label_sets,
    conformal_prediction_sets,
    evaluate_selective,
    risk_coverage_curve,
)
from tlkeras.runs.predictions import Predictions


def prediction(targets, probabilities, weights=None):
    p = np.asarray(probabilities, float)
    weights = np.ones(len(p)) if weights is None else np.asarray(weights, float)
    task = Task("label", tuple("abcd"[: p.shape[1]]))
    return Predictions(task, np.arange(len(p)).astype(str), np.asarray(targets), p, weights, np.ones(p.shape[1]), {})


def test_risk_coverage_by_hand():
    # confidences .9 right, .8 wrong (weight 2), .6 right and .6 wrong
    predictions = prediction([0, 1, 1, 0], [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]], [1, 2, 1, 1])
    curve = risk_coverage_curve(predictions)
    np.testing.assert_allclose(curve.threshold, [0.6, 0.8, 0.9])
    np.testing.assert_allclose(curve.coverage, [1, 3 / 5, 1 / 5])
    np.testing.assert_allclose(curve.accuracy, [2 / 5, 1 / 3, 1])
    assert choose_threshold(predictions, 0.4) == 0.6
    assert choose_threshold(predictions, 0.9) == 0.9
    result = evaluate_selective(predictions, predictions, 0.9)
    assert (result.chosen_coverage, result.chosen_accuracy) == (pytest.approx(1 / 5), 1.0)
    assert evaluate_selective(predictions, None).chosen is None
    assert evaluate_selective(predictions, None).wanted == pytest.approx(1 - 0.6 / 2)


def predict_labels(targets, probabilities):
    p = np.asarray(probabilities, float)
    task = make_task("label", ("cat", "dog"), "|")
    return Predictions(
        task, np.arange(len(p)).astype(str), np.array(targets, np.int8), p, np.ones(len(p)), np.ones(2), {}
    )


def test_risk_coverage_of_labels_by_hand():
    # confidences .9 * .8 right, .6 * .5 wrong in one label
    curve = risk_coverage_curve(predict_labels([[1, 0], [0, 0]], [[0.9, 0.2], [0.4, 0.5]]))
    np.testing.assert_allclose(curve.threshold, [0.3, 0.72])
    np.testing.assert_allclose(curve.coverage, [1, 1 / 2])
    np.testing.assert_allclose(curve.accuracy, [1 / 2, 1])


def test_sets_of_labels_by_hand():
    calibration = predict_labels([[1, 0]] * 4, [[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1]])
    # cat: 1 - p(true) .1 .2 .3 .4, alpha .4 -> .3, so predicted from .7 on; dog: always .1 -> from .9 on
    cat, dog = conformal_label_sets(predict_labels([[1, 0], [1, 1]], [[0.75, 0.05], [0.5, 0.5]]), calibration, 0.4)
    assert (cat.label, cat.coverage, cat.empty, cat.undecided) == ("cat", 0.5, 0.5, 0)
    assert (dog.label, dog.coverage, dog.single) == ("dog", 0.5, 0.5)
    (wide, _) = conformal_label_sets(calibration, calibration, 0.1)
    assert wide.undecided == 1 and wide.coverage == 1


def test_no_threshold_is_enough():
    assert choose_threshold(prediction([1, 1], [[0.9, 0.1], [0.8, 0.2]]), 0.5) is None


def test_sets_by_hand():
    # 1 - p(true): .1 .2 .3 .4; alpha .4: rank ceil(5 * .6) = 3 -> .3, so classes from .7 on are in
    calibration = prediction([0] * 4, [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = conformal_prediction_sets(prediction([0, 1, 0], [[0.75, 0.25], [0.7, 0.3], [0.5, 0.5]]), calibration, 0.4)
    assert found.threshold == pytest.approx(0.7)
    assert found.coverage == pytest.approx(1 / 3)
    assert found.sizes == [1, 2] and found.empty == pytest.approx(1 / 3)
    # alpha .1: rank 5 of 4, so every class is in every set
    everything = conformal_prediction_sets(calibration, calibration, 0.1)
    assert everything.threshold == 0 and everything.mean_size == 2 and everything.coverage == 1


def test_sets_cover_as_promised():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        p = random.dirichlet(np.ones(4), 400)
        targets = (p.cumsum(1) > random.random(400)[:, None]).argmax(1)
        held_out, calibration = prediction(targets[200:], p[200:]), prediction(targets[:200], p[:200])
        covered.append(conformal_prediction_sets(held_out, calibration, 0.2).coverage)
    assert np.mean(covered) == pytest.approx(0.8, abs=0.015)


def test_what_makes_no_sets():
    predictions = prediction([0], [[0.9, 0.1]])
    with pytest.raises(RunError, match="not between 0 and 1. Received: 1.5"):
        conformal_prediction_sets(predictions, predictions, 1.5)
    with pytest.raises(RunError, match="data.validation"):
        conformal_prediction_sets(predictions, prediction(np.zeros(0, int), np.zeros((0, 2))), 0.1)
