"""Calibration of scores by hand."""

import numpy as np
import pytest

from tlkeras.heads.folds import LabelledFeatures
from tlkeras.heads.held_out import calibrate, fit_temperature, measure_loss
from tlkeras.heads.link_functions import SigmoidLink, SoftmaxLink

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)


def test_constant_scores_are_the_shares_of_the_classes():
    codes, scores = np.array([0, 0, 0, 1]), np.zeros((4, 2))
    scale, shift = calibrate(SoftmaxLink(), LabelledFeatures(scores, codes, np.ones(4)))
    expected = 1 / 4
    assert SoftmaxLink().probabilities(scores * scale + shift)[0, 1] == pytest.approx(expected, abs=1e-4)
    columns = codes[:, None]
    scale, shift = calibrate(SigmoidLink(), LabelledFeatures(scores[:, :1], columns, np.ones(4)))
    assert SigmoidLink().probabilities(scores[:, :1] * scale + shift)[0, 0] == pytest.approx(expected, abs=1e-4)


def test_overconfident_scores_are_cooled():
    scores = 50 * np.stack([-X[:, 0], X[:, 0]], axis=1)
    scale, shift = calibrate(SoftmaxLink(), LabelledFeatures(scores, Y, np.ones(40)))
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
        found.append(calibrate(SoftmaxLink(), LabelledFeatures(scores, codes, np.ones(90)))[0][0])
    assert np.exp(np.mean(np.log(found))) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("rows", [12, 60])
@pytest.mark.parametrize("size", [1, 4])
def test_few_rows_of_two_classes_are_not_too_sure(rows, size):
    """Log odds of two normal clouds, whose right scale is 1, also of rows in groups that are nearly copies: of maximum
    likelihood it is 1.3 for 12 rows.
    """
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        codes = np.arange(rows) % 2
        values = (codes - 0.5) * 2**0.5 + random.normal(size=rows)
        odds = np.repeat(2**0.5 * values, size) + 1e-3 * random.normal(size=rows * size)
        scores, groups = np.stack([-odds, odds], axis=1) / 2, np.repeat(np.arange(rows), size)
        labelled = LabelledFeatures(scores, np.repeat(codes, size), np.ones(rows * size), groups)
        found.append(calibrate(SoftmaxLink(), labelled)[0][0])
    assert np.median(found) == pytest.approx(1, abs=0.15)


def test_rows_of_a_group_make_no_other_scale_than_one_of_them():
    codes, groups = np.arange(30) % 2, np.repeat(np.arange(30), 5)
    scores = (codes[:, None] == [0, 1]) + np.random.default_rng(0).normal(size=(30, 2))
    one = calibrate(SoftmaxLink(), LabelledFeatures(scores, codes, np.ones(30)))
    copies = LabelledFeatures(scores[groups], codes[groups], np.ones(150), groups)
    np.testing.assert_allclose(calibrate(SoftmaxLink(), copies), one, atol=1e-4)
    apart = calibrate(SoftmaxLink(), copies._replace(groups=None))
    assert apart[0][0] > one[0][0] * 1.02


def test_scores_of_problems_of_their_own_have_scales_of_their_own():
    """The third class's scores are a tenth as large as they should be."""
    random = np.random.default_rng(0)
    codes = np.arange(3000) % 3
    logits = 2 * np.eye(3)[codes] + random.normal(size=(3000, 3))
    scores = LabelledFeatures(logits / [1, 1, 10], codes, np.ones(3000))
    scale, _ = calibrate(SoftmaxLink(), scores, by_class=True)
    assert scale[2] / scale[:2] == pytest.approx([10, 10], rel=0.15)
    assert np.ptp(calibrate(SoftmaxLink(), scores)[0]) == 0


def test_logits_get_a_temperature_alone_and_are_not_cooled():
    logits = np.stack([-X[:, 0], X[:, 0]], axis=1)
    unsure, sure = (
        fit_temperature(SoftmaxLink(), LabelledFeatures(logits * size, Y, np.ones(40))) for size in (0.2, 9)
    )
    assert unsure[0] == pytest.approx([unsure[0][0]] * 2) and 2 < unsure[0][0] < 8 and (unsure[1] == 0).all()
    np.testing.assert_allclose(sure[0], 1, atol=1e-3)
