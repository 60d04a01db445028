"""Draws of every class equally often."""

import numpy as np
import pytest

from tlkeras.errors import DataError
from tlkeras.finetuning import inputs
from tlkeras.finetuning.inputs import balanced_sampler

CLASSES = np.array([0] * 20 + [1] * 3 + [4] * 7)


def test_draws_every_class_equally_often():
    for epoch in range(3):
        drawn = balanced_sampler(CLASSES, 31, 5, epoch)
        assert drawn.dtype == np.int64 and drawn.shape == (31,)
        counts = np.unique(CLASSES[drawn], return_counts=True)[1]
        assert sorted(counts) == [10, 10, 11]


def test_draws_all_of_a_class_before_one_again():
    drawn = balanced_sampler(CLASSES, 30, 5, 0)
    rare = np.bincount(drawn[CLASSES[drawn] == 1])[20:]
    assert sorted(rare) == [3, 3, 4]
    assert len(set(drawn[CLASSES[drawn] == 0])) == 10
    two_epochs = np.concatenate([drawn, balanced_sampler(CLASSES, 30, 5, 1)])
    assert sorted(two_epochs[CLASSES[two_epochs] == 0]) == list(range(20))
    ten_epochs = np.concatenate([balanced_sampler(CLASSES, 31, 5, epoch) for epoch in range(10)])
    counts = np.unique(CLASSES[ten_epochs], return_counts=True)[1]
    assert sorted(counts) == [103, 103, 104]
    times = np.bincount(ten_epochs)
    for members in (slice(0, 20), slice(20, 23), slice(23, 30)):
        assert np.ptp(times[members]) <= 1


def test_the_sequence_can_be_entered_anywhere():
    members = np.array([3, 5, 8, 9, 11])
    whole = inputs._continue_permuting(members, 0, 60, (7, 2))
    assert all(sorted(whole[start : start + 5]) == members.tolist() for start in range(0, 60, 5))
    for first in range(50):
        assert np.array_equal(inputs._continue_permuting(members, first, 7, (7, 2)), whole[first : first + 7])


def test_a_draw_is_a_function_of_seed_and_epoch():
    first = balanced_sampler(CLASSES, 12, 5, 1)
    assert np.array_equal(first, balanced_sampler(CLASSES, 12, 5, 1))
    assert not np.array_equal(first, balanced_sampler(CLASSES, 12, 6, 1))
    assert not np.array_equal(first, balanced_sampler(CLASSES, 12, 5, 2))
    assert balanced_sampler(CLASSES, 2, -1, 0).shape == (2,)


def test_draws_stay_the_same_across_versions():
    assert balanced_sampler(np.array([0, 0, 0, 0, 1, 1]), 6, 0, 0).tolist() == [2, 0, 4, 5, 1, 5]


def test_refuses_to_draw_from_nothing():
    with pytest.raises(DataError, match="no examples to draw from"):
        balanced_sampler(np.array([], np.int64), 4, 0, 0)
