"""Class priors of a target domain: numbers by hand."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss

from tlkeras.adaptation.adversarial import AdaptationOptions
from tlkeras.adaptation.domain_head import DomainAdaptedHead, estimate_bbse, estimate_em, reweight_priors
from tlkeras.heads.feature_selection import FeatureSelectingHead
from tlkeras.heads.linear import LinearHead, RidgeHead


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


def draw_rows(share, seed, count=4000):
    """Two Gaussian classes 2.25 apart in the first of eight columns, `share` of them of class 1."""
    random = np.random.default_rng(seed)
    y = (random.random(count) < share).astype(int)
    X = random.normal(size=(count, 8))
    X[:, 0] += 2.25 * y
    return X.astype(np.float32), y


def bayes(X, share):
    odds = share / (1 - share) * np.exp(2.25 * X[:, 0] - 2.25**2 / 2)
    return odds / (1 + odds)


def make_linear(class_weight):
    return LinearHead(C=1.0, class_weight=class_weight)


@pytest.mark.parametrize(
    "make",
    [
        make_linear,
        lambda class_weight: FeatureSelectingHead(make_linear(class_weight), keep=0.5),
        lambda class_weight: RidgeHead(class_weight=class_weight),  # calibrated on the validation rows
    ],
    ids=["linear", "selected columns", "ridge"],
)
@pytest.mark.parametrize("correction", ["likelihood", "confusion"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_priors_are_right_whatever_the_weights_of_classes(share, class_weight, correction, make):
    """From 10 % of class 1 to 10 % and to 50 %: the predictions are Bayes' under the target's prior."""
    source, held = draw_rows(0.1, 0), draw_rows(0.1, 1)
    target, (X, y) = draw_rows(share, 2)[0], draw_rows(share, 3, 20_000)
    head = DomainAdaptedHead("none", lambda: make(class_weight), correction=correction, scored=False)
    head.fit(*source, target=target, validation=(*held, np.ones(len(held[1]))))
    fitted_prior = 0.1 if class_weight is None else 0.5
    assert head.priors_[0][1] == pytest.approx(fitted_prior, abs=0.015)
    assert head.priors_[1][1] == pytest.approx(share, abs=0.03 if correction == "likelihood" else 0.05)
    reference = bayes(X, share)
    assert log_loss(y, head.predict_proba(X)) == pytest.approx(log_loss(y, reference), abs=0.006)
    assert (head.predict(X) == y).mean() == pytest.approx(((reference > 0.5) == y).mean(), abs=0.006)
    if share == 0.1:  # what a head without weights of classes says where nothing has shifted
        assert log_loss(y, head.predict_proba(X)) == pytest.approx(0.158, abs=0.01)
        assert (head.predict(X) == y).mean() == pytest.approx(0.94, abs=0.005)


@pytest.mark.parametrize("correction", ["likelihood", "confusion"])
def test_weights_that_go_with_classes_shift_no_prior(correction):
    """Class 1 counts half in both domains: 40 % of the rows, 1/4 of the weight, before and after."""
    source, held, target, (X, y) = (draw_rows(0.4, seed, 6000) for seed in range(4))
    weights = [np.where(classes == 1, 0.5, 1.0) for classes in (source[1], held[1], y)]
    head = DomainAdaptedHead("none", lambda: LinearHead(C=1.0), correction=correction, scored=False)
    head.fit(*source, weights[0], target=target[0], validation=(*held, weights[1]))
    np.testing.assert_allclose([prior[1] for prior in head.priors_], 0.25, atol=0.015)
    both = head.predict_domain(X, "target"), head.predict_proba(X)
    plain, corrected = (log_loss(y, predictions, sample_weight=weights[2]) for predictions in both)
    assert corrected == pytest.approx(plain, abs=0.002)


def test_deep_methods_weigh_classes_and_know_it():
    source, target, (X, y) = draw_rows(0.1, 0), draw_rows(0.1, 1), draw_rows(0.1, 2, 8000)
    shares, losses = {}, {}
    for class_weight, correction in ((None, "none"), ("balanced", "none"), ("balanced", "likelihood")):
        options = AdaptationOptions(width=8, epochs=8, dropout=0.0, learning_rate=0.01, class_weight=class_weight)
        head = DomainAdaptedHead("mmd", LinearHead, correction=correction, options=options, scored=False)
        predictions = head.fit(*source, target=target[0]).predict_proba(X)
        shares[class_weight, correction] = predictions[:, 1].mean()
        losses[class_weight, correction] = log_loss(y, predictions)
    assert shares[None, "none"] == pytest.approx(0.1, abs=0.03) and shares["balanced", "none"] > 0.18
    assert shares["balanced", "likelihood"] == pytest.approx(0.1, abs=0.03)
    assert losses["balanced", "likelihood"] < min(0.18, losses["balanced", "none"] - 0.05)


def test_a_domain_head_is_an_estimator_of_scikit_learn():
    options = AdaptationOptions(epochs=1)
    head = DomainAdaptedHead("coral", LinearHead, 7, options=options, scored=False)
    copied = clone(head.set_params(components=5))
    assert copied.get_params(deep=False).keys() == head.get_params(deep=False).keys()
    assert (copied.method, copied.make, copied.components, copied.options) == ("coral", LinearHead, 5, options)
    for ask in (head.predict, head.predict_proba, lambda X: head.to_layers()):
        with pytest.raises(NotFittedError):
            ask(np.ones((2, 3)))
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    X[:, 0] += 4 * y
    assert copied.fit(X, y, target=X + 1).score(X + 1, y) > 0.9
