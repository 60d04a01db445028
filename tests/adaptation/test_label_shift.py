"""Class priors of a target domain: numbers by hand."""

import numpy as np

from tlkeras.adaptation.label_shift import estimate_bbse, estimate_em, reweight_priors


def one_hot(classes):
    return np.where(np.eye(2)[classes] == 1, 0.9, 0.1)


def test_priors_from_confusions_by_hand():
    """Of class 0, 3 of 4 are predicted 0; of class 1 none. Target: 3 of 10 predicted 0, so 0.4 are of class 0."""
    y, predicted = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    target = one_hot(np.array([0] * 3 + [1] * 7))
    np.testing.assert_allclose(estimate_bbse(one_hot(predicted), y, target), [0.4, 0.6])


def test_priors_of_a_class_that_is_gone_are_zero_and_not_negative():
    y, predicted = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(estimate_bbse(one_hot(predicted), y, one_hot(np.ones(5, int))), [0, 1], atol=0.35)
    assert (estimate_bbse(one_hot(predicted), y, one_hot(np.zeros(5, int))) >= 0).all()


def test_one_step_of_expectation_maximisation_by_hand():
    """Priors 1/2 become those of the mean prediction, and odds of 9 under priors 1/3 and 2/3 become 4.5."""
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
