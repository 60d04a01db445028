"""Scores of transferability against numbers worked out by hand or by a direct, slow computation."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from tlkeras.heads.transferability import measure_h_score, measure_leep, measure_logme, measure_nce


def test_leep_of_two_source_classes():
    """Worked out by hand: P(0|a) = 0.8 / 1.2, P(0|b) = 0.2 / 0.8."""
    source = np.array([[0.8, 0.2], [0.4, 0.6]])
    first = 0.8 * (0.8 / 1.2) + 0.2 * (0.2 / 0.8)
    second = 0.4 * (0.4 / 1.2) + 0.6 * (0.6 / 0.8)
    assert measure_leep(source, np.array([0, 1])) == pytest.approx((np.log(first) + np.log(second)) / 2)


def test_nce_of_three_images():
    """Worked out by hand: the source predicts a, a, b; of the two a one has class 0, so H(Y|Z) = 2/3 log 2."""
    source = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    assert measure_nce(source, np.array([0, 1, 1])) == pytest.approx(-2 / 3 * np.log(2))
    assert measure_nce(source, np.array([0, 0, 1])) == pytest.approx(0)


def test_h_score_of_one_feature():
    """Means -1 and 1 of two classes, all variance between them but 0.25 within."""
    x = np.array([[-1.5], [-0.5], [0.5], [1.5]])
    codes = np.array([0, 0, 1, 1])
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    assert covariance[0, 0] == pytest.approx(1.25)  # one feature is not shrunk towards anything else
    assert measure_h_score(x, codes) == pytest.approx((1 - shrinkage) * 1 / 1.25, rel=1e-4)


def find_evidence(X, y, alpha, beta):
    """The evidence from its definition: y is normal with covariance 1/beta + X X'/alpha."""
    covariance = np.eye(len(y)) / beta + X @ X.T / alpha
    _, determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return (-determinant / 2 - y @ np.linalg.solve(covariance, y) / 2) / len(y)


@pytest.mark.parametrize("width", [3, 30], ids=["more images than features", "more features than images"])
def test_logme_is_the_highest_evidence_there_is(width):
    random = np.random.default_rng(0)
    X, codes = random.normal(size=(20, width)), np.arange(20) % 2
    X[:, 0] += 2 * codes
    grid = np.exp(np.linspace(-7, 9, 161))
    centred = X - X.mean(axis=0)
    best = [
        max(find_evidence(centred, (codes == label) - 0.5, alpha, beta) for alpha in grid[::2] for beta in grid[::2])
        for label in (0, 1)
    ]
    assert measure_logme(X, codes) == pytest.approx(np.mean(best), abs=2e-3)
    assert measure_logme(X + 5, codes) == pytest.approx(measure_logme(X, codes))


def test_directions_without_variance_count():
    """A column of zeros changes no prediction, and the evidence counts it as log alpha - log alpha: not at all."""
    random = np.random.default_rng(1)
    X, codes = random.normal(size=(30, 4)), np.arange(30) % 3
    padded = np.hstack([X, np.zeros((30, 50))])
    assert measure_logme(padded, codes) == pytest.approx(measure_logme(X, codes))


@pytest.mark.parametrize("measure", [measure_logme, measure_h_score])
def test_features_that_separate_classes_score_higher(measure):
    random = np.random.default_rng(2)
    codes = np.arange(90) % 3
    noise = random.normal(size=(90, 12))
    assert measure(noise + 2 * np.eye(12)[codes], codes) > measure(noise, codes)


@pytest.mark.parametrize("measure", [measure_leep, measure_nce])
def test_a_source_that_separates_classes_scores_higher(measure):
    codes = np.arange(90) % 3
    sure = np.full((90, 6), 0.02) + 0.88 * np.eye(6)[codes]
    blind = np.full((90, 6), 1 / 6)
    assert measure(sure, codes) > measure(blind, codes)
