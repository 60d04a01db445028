"""Scores without target labels: numbers by hand."""

import warnings

import numpy as np
import pytest

from tlkeras.adaptation.model_selection import (
    deep_embedded_validation,
    entropy_score,
    importance_weighted_validation,
    importance_weights,
    measure_a_distance,
    mutual_information_score,
)


def test_scores_by_hand():
    weights, losses = np.array([1.0, 3.0, 2.0]), np.array([0.0, 1.0, 1.0])
    assert importance_weighted_validation(weights, 1 - losses) == pytest.approx(1 / 6)
    assert importance_weighted_validation(weights, 1 - losses, np.array([3.0, 0, 1])) == pytest.approx(3 / 5)
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
    assert (np.diff(weights) > 0).all() and (weights > 0).all()
    # densities' ratio is exp(x - 1/2): of 2 and 0 it differs by e^2
    assert weights[2] / weights[1] == pytest.approx(np.e**2, rel=0.3)


def test_the_control_variate_acts_and_is_the_published_one():
    """Algorithm 1 of You et al. written out, with ratios as they were estimated: their mean is not 1."""
    random = np.random.default_rng(1)
    Xs, Xt = random.normal(size=(500, 3)), random.normal(size=(400, 3)) + np.array([0.7, 0, 0])
    held, losses = random.normal(size=(60, 3)), random.exponential(size=60)
    weights = importance_weights(Xs, Xt, held)
    assert abs(weights.mean() - 1) > 0.01
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
    mean, mean_weight = sum(weighted) / 60, sum(weights) / 60
    covariance = sum((a - mean) * (w - mean_weight) for a, w in zip(weighted, weights, strict=True)) / 59
    eta = -covariance / (sum((w - mean_weight) ** 2 for w in weights) / 59)
    risk = mean + eta * mean_weight - eta
    assert deep_embedded_validation(weights, losses) == pytest.approx(-risk)
    assert abs(risk - mean) > 0.003
    twice = deep_embedded_validation(np.repeat(weights, 2), np.repeat(losses, 2))
    assert twice == pytest.approx(deep_embedded_validation(weights, losses, np.full(60, 2.0)), rel=1e-6)


def test_the_control_variate_makes_the_estimate_steadier():
    """A loss of 1 + x on a target that is moved by 0.5 costs 1.5; over draws its estimate varies less."""
    random, estimates = np.random.default_rng(0), []
    for _ in range(300):
        x = random.normal(size=100)
        weights = np.exp(0.5 * x - 0.125)
        estimates.append([np.mean(weights * (1 + x)), -deep_embedded_validation(weights, 1 + x)])
    means, spreads = np.mean(estimates, axis=0), np.std(estimates, axis=0)
    np.testing.assert_allclose(means, 1.5, atol=0.05)
    assert spreads[1] < 0.8 * spreads[0]


def test_domains_far_apart_overflow_nothing():
    random = np.random.default_rng(0)
    Xs, Xt = random.normal(size=(100, 4)), random.normal(size=(100, 4)) + 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = importance_weights(Xs, Xt, np.concatenate([Xs[:5], Xs[:5] * 1e7, -Xs[:5] * 1e7, Xt[:5]]))
    assert np.isfinite(weights).all() and weights.max() == pytest.approx(50)


def draw_domains(seed=0, count=160):
    random = np.random.default_rng(seed)
    ys, yt = random.integers(0, 2, count), random.integers(0, 2, count)
    Xs = random.normal(size=(count, 4)) + np.outer(ys, [3.0, 0, 0, 0])
    Xt = random.normal(size=(count, 4)) + np.outer(yt, [3.0, 0, 0, 0]) + [0.0, 2.0, 0, 0]
    return Xs.astype(np.float32), ys, Xt.astype(np.float32), yt


def test_a_distance_of_domains():
    Xs, _, Xt, _ = draw_domains()
    assert measure_a_distance(Xs, Xs) < 0.5
    assert measure_a_distance(Xs, Xt) > 1.0
    assert measure_a_distance(Xs, Xs + 100) == pytest.approx(2)
