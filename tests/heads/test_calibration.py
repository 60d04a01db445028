"""Calibration of scores by hand."""

import numpy as np
import pytest

from tlkeras.heads.calibration import calibrate, measure_loss
from tlkeras.heads.link_functions import SigmoidLink, SoftmaxLink

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)


def test_platt_by_hand():
    """Constant scores: the probability is the share of each class in the smoothed targets, (N + 1) / (N + 2)."""
    codes, scores = np.array([0, 0, 0, 1]), np.zeros((4, 2))
    scale, shift = calibrate(SoftmaxLink(), scores, codes, np.ones(4))
    expected = (3 * (1 / 5) + 1 * (2 / 3)) / 4
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
