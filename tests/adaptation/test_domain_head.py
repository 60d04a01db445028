"""Label shift, scores without labels and paired maps: numbers by hand, and what is refused."""

import numpy as np
import pytest

from tlkeras.adaptation.label_shift import estimate_bbse, estimate_em, reweight_priors
from tlkeras.adaptation.model_selection import (
    deep_embedded_validation,
    entropy_score,
    importance_weighted_validation,
    importance_weights,
    mutual_information_score,
)


def one_hot(classes):
    return np.where(np.eye(2)[classes] == 1, 0.9, 0.1)


def test_priors_from_confusions_by_hand():
    """Of class 0, 3 of 4 are answered 0; of class 1 all are. Target: 3 of 10 answered 0, so 0.4 are of class 0."""
    y, predicted = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    target = one_hot(np.array([0] * 3 + [1] * 7))
    np.testing.assert_allclose(estimate_bbse(one_hot(predicted), y, target), [0.4, 0.6])


def test_priors_of_a_class_that_is_gone_are_zero_and_not_negative():
    y, predicted = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(estimate_bbse(one_hot(predicted), y, one_hot(np.ones(5, int))), [0, 1], atol=0.35)
    assert (estimate_bbse(one_hot(predicted), y, one_hot(np.zeros(5, int))) >= 0).all()


def test_one_step_of_expectation_maximisation_by_hand():
    """Priors 1/2 become those of the mean answer, and odds of 9 under priors 1/3 and 2/3 become 4.5."""
    target = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    np.testing.assert_allclose(estimate_em(target, np.array([0.5, 0.5]), 1), target.mean(axis=0))
    np.testing.assert_allclose(
        reweight_priors(target[:1], np.array([0.5, 0.5]), np.array([1.0, 2.0])), [[4.5 / 5.5, 1 / 5.5]]
    )


def test_expectation_maximisation_finds_the_shift():
    random = np.random.default_rng(0)
    y = (random.random(20_000) < 0.8).astype(int)
    x = random.normal(size=y.size) + 2.0 * y
    posterior = 1 / (1 + np.exp(-(2 * x - 2)))  # of the class, under equal priors
    target = np.stack([1 - posterior, posterior], axis=1)
    np.testing.assert_allclose(estimate_em(target, np.array([0.5, 0.5])), [0.2, 0.8], atol=0.01)


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
