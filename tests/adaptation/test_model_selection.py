"""Scores without target labels: numbers by hand."""

import numpy as np
import pytest

from tlkeras.adaptation.model_selection import (
    deep_embedded_validation,
    entropy_score,
    importance_weighted_validation,
    importance_weights,
    mutual_information_score,
)


def test_scores_by_hand():
    weights, losses = np.array([1.0, 3.0, 2.0]), np.array([0.0, 1.0, 1.0])
    assert importance_weighted_validation(weights, 1 - losses) == pytest.approx(1 / 3)
    # w l = 0, 3, 2: covariance with w 1.5, variance 1, eta -1.5; risk 5/3 - 1.5 * 2 + 1.5
    assert deep_embedded_validation(weights, losses) == pytest.approx(-(5 / 3 - 3 + 1.5))
    assert deep_embedded_validation(np.ones(3), losses) == pytest.approx(-2 / 3)
    half = np.full((4, 2), 0.5)
    assert entropy_score(half) == pytest.approx(-np.log(2)) and mutual_information_score(half) == pytest.approx(0)
    assert mutual_information_score(np.eye(2)) == pytest.approx(np.log(2))


def test_rows_that_look_like_the_target_count_more():
    random = np.random.default_rng(0)
    Xs, Xt = random.normal(size=(400, 2)), random.normal(size=(300, 2)) + np.array([1.0, 0.0])
    held = np.array([[-1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    weights = importance_weights(Xs, Xt, held)
    assert (np.diff(weights) > 0).all() and weights.mean() == pytest.approx(1)
    # densities' ratio is exp(x - 1/2): of 2 and 0 it differs by e^2
    assert weights[2] / weights[1] == pytest.approx(np.e**2, rel=0.3)
