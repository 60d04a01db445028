"""Calibration against numbers worked out by hand, and against what is known of the truth."""

import numpy as np
import pytest
from scipy.special import softmax

from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import RunError
from tlkeras.evaluation.calibration import (
    evaluate_calibration,
    expected_calibration_error,
    fit_scaling,
    measure_reliability,
)
from tlkeras.runs.predictions import Predictions


def prediction(targets, probabilities, weights=None, task=None):
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, float)
    count, classes = probabilities.shape
    task = task or Task("label", tuple("abcdefgh"[:classes]))
    weights = np.ones(count) if weights is None else np.asarray(weights, float)
    return Predictions(
        task, np.arange(count).astype(str), targets, probabilities, weights, np.ones(classes) / classes, {}
    )


def overconfident(count=4000, steepness=3.0, classes=3, seed=0):
    """Predictions with logits `steepness` times too steep, and the true probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (count, classes))
    true = softmax(logits, axis=1)
    targets = (true.cumsum(1) > random.random(count)[:, None]).argmax(1)
    return prediction(targets, softmax(steepness * logits, axis=1)), true


def test_reliability_by_hand():
    # confidences .6 .6 .8 .9, right: yes no yes yes, two bins of half the weight each
    predictions = prediction([0, 1, 0, 1], [[0.6, 0.4], [0.6, 0.4], [0.8, 0.2], [0.1, 0.9]])
    found = measure_reliability(predictions, bins=2)
    np.testing.assert_allclose(found.confidence, [0.6, 0.85])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    assert found.error == pytest.approx(0.5 * 0.1 + 0.5 * 0.15)
    # ten even bins: (.5, .6] holds two, (.7, .8] and (.8, .9] one each
    assert expected_calibration_error(predictions, bins=10) == pytest.approx((2 * 0.1 + 0.2 + 0.1) / 4)


def test_weights_are_repetitions():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    targets, counts = np.arange(50) % 3, np.arange(50) % 4 + 1
    weighted = expected_calibration_error(prediction(targets, p, counts))
    assert weighted == pytest.approx(
        expected_calibration_error(prediction(np.repeat(targets, counts), np.repeat(p, counts, 0)))
    )


def test_equal_confidences_share_a_bin():
    predictions = prediction([0, 1] * 10, [[0.7, 0.3]] * 20)
    found = measure_reliability(predictions)
    np.testing.assert_allclose([found.confidence, found.accuracy, found.share], [[0.7], [0.5], [1.0]])


def test_temperature_finds_the_steepness_and_changes_no_class():
    predictions, true = overconfident()
    scaling = fit_scaling(predictions, "temperature")
    assert scaling.scale == pytest.approx(np.full(3, 1 / 3), rel=0.1)
    scaled = scaling.apply(predictions.probabilities)
    np.testing.assert_array_equal(scaled.argmax(1), predictions.probabilities.argmax(1))
    assert np.abs(scaled - true).mean() < 0.01


def test_vector_scaling_undoes_a_shift_that_temperature_cannot():
    predictions, true = overconfident(steepness=1.0)
    shifted = prediction(
        predictions.targets, softmax(np.log(predictions.probabilities) + np.array([0.0, 1.5, -1.0]), axis=1)
    )
    vector, temperature = (fit_scaling(shifted, method) for method in ("vector", "temperature"))
    error = {s.method: np.abs(s.apply(shifted.probabilities) - true).mean() for s in (vector, temperature)}
    assert error["vector"] < 0.02 < error["temperature"]


def test_labels_are_scaled_one_by_one():
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (6000, 2))
    targets = (random.random((6000, 2)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    steep = 1 / (1 + np.exp(-logits * [4.0, 0.5]))
    predictions = prediction(targets, steep, task=make_task("tags", ["x", "y"], "|"))
    assert fit_scaling(predictions, "vector").scale == pytest.approx([1 / 4, 2], rel=0.1)
    result = evaluate_calibration(predictions, predictions)
    assert result.scalings["vector"].adaptive_ece < result.adaptive_ece / 3


def test_certain_and_separable_predictions_stay_finite():
    predictions = prediction([0, 1] * 5, [[1.0, 0.0], [0.0, 1.0]] * 5)
    for method in ("temperature", "vector"):
        scaled = fit_scaling(predictions, method).apply(predictions.probabilities)
        assert np.isfinite(scaled).all()
        assert (scaled.argmax(1) == predictions.targets).all()


def test_scalings_improve_and_count_their_images():
    predictions, _ = overconfident(1000)
    result = evaluate_calibration(predictions, overconfident(1000, seed=1)[0])
    assert result.fitted_on == 1000
    for scaled in result.scalings.values():
        assert scaled.adaptive_ece < result.adaptive_ece / 2
        assert scaled.log_loss < result.log_loss
    assert evaluate_calibration(predictions, None).scalings == {}


def test_nothing_to_fit_on():
    with pytest.raises(RunError, match="images that were not trained on"):
        fit_scaling(prediction(np.zeros(0, int), np.zeros((0, 2))), "temperature")
