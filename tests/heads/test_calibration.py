"""Calibration of scores by hand."""

import numpy as np
import pytest

from tlkeras.heads.held_out import calibrate, measure_loss
from tlkeras.heads.link_functions import SigmoidLink, SoftmaxLink

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)


def test_constant_scores_are_the_shares_of_the_classes():
    codes, scores = np.array([0, 0, 0, 1]), np.zeros((4, 2))
    scale, shift = calibrate(SoftmaxLink(), scores, codes, np.ones(4))
    expected = 1 / 4
    assert SoftmaxLink().probabilities(scores * scale + shift)[0, 1] == pytest.approx(expected, abs=1e-4)
    columns = codes[:, None]
    scale, shift = calibrate(SigmoidLink(), scores[:, :1], columns, np.ones(4))
    assert SigmoidLink().probabilities(scores[:, :1] * scale + shift)[0, 0] == pytest.approx(expected, abs=1e-4)


def test_overconfident_scores_are_cooled():
    scores = 50 * np.stack([-X[:, 0], X[:, 0]], axis=1)
    scale, shift = calibrate(SoftmaxLink(), scores, Y, np.ones(40))
    before = measure_loss(SoftmaxLink(), scores, Y, np.ones(40))
    assert measure_loss(SoftmaxLink(), scores * scale + shift, Y, np.ones(40)) < before / 5
    assert measure_loss(SoftmaxLink(), np.zeros((1, 4)), np.array([2]), np.ones(1)) == pytest.approx(np.log(4))


def test_few_rows_of_many_classes_are_not_too_unsure():
    """Log odds of normal clouds, whose right scale is 1, from six held-out rows of each of 15 classes."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        codes = np.repeat(np.arange(15), 6)
        centres = random.normal(size=(15, 8))
        scores = (centres[codes] + random.normal(size=(90, 8))) @ centres.T - 0.5 * np.sum(centres**2, axis=1)
        found.append(calibrate(SoftmaxLink(), scores, codes, np.ones(90))[0][0])
    assert np.exp(np.mean(np.log(found))) == pytest.approx(1, abs=0.1)
