"""Labels that look wrong, and images unlike all others; small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tlkeras.data.quality.label_issues import find_label_issues, find_outliers


def two(of_second: list[float]) -> np.ndarray:
    second = np.array(of_second)
    return np.stack([1 - second, second], axis=1)


def test_confident_learning_by_hand():
    # Means of the own class: (.9 + .9 + .8 + .1) / 4 = .675 and (.9 + .8 + .9 + .2) / 4 = .7. Row 3 reaches .7 for
    # class 1, row 7 reaches .675 for class 0: one of four labels of each kind is wrong.
    p = two([0.1, 0.1, 0.2, 0.9, 0.9, 0.8, 0.9, 0.2])
    found = find_label_issues(p, np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert [(suspect.row, suspect.suggested) for suspect in found] == [(3, 1), (7, 0)]
    assert [suspect.score for suspect in found] == pytest.approx([0.8, 0.6])


def test_what_is_unsure_is_not_suspected():
    p = two([0.4, 0.45, 0.55, 0.4, 0.6, 0.6, 0.5, 0.6])
    assert all(suspect.score > 0 for suspect in find_label_issues(p, np.array([0] * 4 + [1] * 4)))
    assert find_label_issues(two([0.1] * 4 + [0.9] * 4), np.array([0] * 4 + [1] * 4)) == []


def test_rows_without_label_or_weight():
    p = two([0.1, 0.1, 0.2, 0.9, 0.9, 0.8, 0.9, 0.1])
    targets = np.array([0, 0, 0, -1, 1, 1, 1, 1])
    assert [suspect.row for suspect in find_label_issues(p, targets)] == [7]
    heavy = np.array([1, 1, 1, 0, 1, 1, 1, 1.0])
    assert [suspect.row for suspect in find_label_issues(p, np.array([0] * 4 + [1] * 4), heavy)] == [7]


def test_three_classes_are_suggested_apart():
    p = np.full((30, 3), 0.05)
    targets = np.repeat(np.arange(3), 10)
    p[np.arange(30), targets] = 0.9
    p[3], p[14] = [0.05, 0.05, 0.9], [0.9, 0.05, 0.05]
    found = find_label_issues(p, targets)
    assert {(suspect.row, suspect.suggested) for suspect in found} == {(3, 2), (14, 0)}


def test_outliers_stand_alone():
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 16)) + 10
    features[7], features[250] = 10 + 30 * np.eye(16)[0], 10 - 30 * np.eye(16)[3]
    features += 0.2 * random.normal(size=features.shape)
    features[:200, 5] += 25  # two clusters are no outliers
    assert {outlier.row for outlier in find_outliers(features.astype(np.float32))} == {7, 250}
    tight = np.concatenate([np.eye(16)[[0] * 60] + 0.01 * random.normal(size=(60, 16)), np.eye(16)[[9]]])
    found = find_outliers(np.concatenate([tight, -tight[:60]]).astype(np.float32))
    assert [outlier.row for outlier in found] == [60] and found[0].score > 1


def test_strangers_that_are_alike_are_outliers():
    random = np.random.default_rng(0)
    features, strangers = random.normal(size=(400, 64)), 2.5 + random.normal(size=(9, 64))
    found = find_outliers(np.concatenate([features, strangers]).astype(np.float32))
    assert {outlier.row for outlier in found} == set(range(400, 409))


def test_few_rows_have_no_outliers():
    assert find_outliers(np.ones((1, 4))) == [] and find_outliers(np.zeros((0, 4))) == []
    assert find_outliers(np.ones((30, 4), np.float32)) == []
