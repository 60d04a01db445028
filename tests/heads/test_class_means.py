"""Numbers of independent rows by hand, and how sure class means are, on clouds whose truth is known."""

import numpy as np
import pytest

from tlkeras.heads.class_means import ClassClouds, count_all_rows, count_rows, measure_clouds, measure_likeness
from tlkeras.heads.folds import LabelledFeatures
from tlkeras.heads.heads import make_head


def make_groups(likeness, groups=60, size=5, width=30, classes=2, seed=0):
    """Groups of rows of one class that share that part of their variance."""
    random = np.random.default_rng(seed)
    members = np.repeat(np.arange(groups), size)
    shared, alone = random.normal(size=(groups, width))[members], random.normal(size=(groups * size, width))
    X = np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * alone
    return LabelledFeatures(X, members % classes, np.ones(len(members)), members)


def test_rows_are_counted_by_weights_and_groups():
    """Weights 1, 1, 2 are (4^2) / 6 rows; alike throughout, the groups {1, 1} and {2} are two rows."""
    rows = LabelledFeatures(np.zeros((4, 1)), np.array([0, 0, 0, 1]), np.array([1.0, 1, 2, 5]), np.array([0, 0, 1, 2]))
    assert count_rows(rows, 2, 0.0) == pytest.approx([16 / 6, 1])
    assert count_rows(rows, 2, 1.0) == pytest.approx([2, 1])
    assert count_rows(rows, 2, 0.5) == pytest.approx([16 / 7, 1])
    assert count_all_rows(rows, 0.0) == pytest.approx(81 / 31) and count_all_rows(rows, 1.0) == pytest.approx(81 / 33)


@pytest.mark.parametrize("likeness", [0.0, 0.3, 1.0])
def test_likeness_is_that_of_the_rows_of_a_group(likeness):
    assert measure_likeness(make_groups(likeness)) == pytest.approx(likeness, abs=0.04)
    assert measure_likeness(make_groups(likeness)._replace(groups=None)) == 0
    assert measure_likeness(make_groups(likeness, groups=2)) == 0  # one group of each class: it cannot be told


def test_the_signal_is_what_means_vary_by_beyond_their_rows():
    """Fifteen classes whose means have a variance of 0.2 in each of 60 columns, of 3 or 9 rows."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        codes = np.repeat(np.arange(15), np.where(np.arange(15) % 2, 9, 3))
        X = np.sqrt(0.2) * random.normal(size=(15, 60))[codes] + random.normal(size=(len(codes), 60))
        found.append(measure_clouds(LabelledFeatures(X, codes, np.ones(len(codes))), 15, 0.0).estimate_signal())
    assert np.mean(found) == pytest.approx(0.2 * 60, rel=0.1)


def test_log_densities_are_those_of_the_posterior_predictive():
    """Two means of four rows at -1 and 1, a signal of 1 and a spread of 1: drawn to 0.8 of that, clouds of 1.2."""
    clouds = ClassClouds(np.array([[-1.0], [1.0]]), np.array([[-1.0, 1.0]]), np.array([4.0, 4.0]), 1.0)
    kernel, bias = clouds.predict(1.0)
    assert kernel == pytest.approx(np.array([[-0.8, 0.8]]) / 1.2) and bias[0] == pytest.approx(bias[1])


@pytest.mark.parametrize("kind", ["centroid", "lda", "ridge"])
@pytest.mark.parametrize("grouped", [False, True])
def test_class_means_of_few_rows_are_as_sure_as_they_may_be(kind, grouped):
    """Fifteen classes, half of three rows or groups, of which folds lack a third."""
    slopes = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        centres = 0.9 * random.normal(size=(15, 16))
        size = 10 if grouped else 1
        codes = np.repeat(np.arange(15), np.where(np.arange(15) % 2, 9, 3)).repeat(size)
        groups = np.arange(len(codes)) // size
        shared = random.normal(size=(groups.max() + 1, 48))[groups]
        noise = random.normal(size=(len(codes), 48))
        X = np.sqrt(0.5) * (shared + noise) if grouped else noise
        X[:, :16] += centres[codes]
        truth = random.integers(0, 15, 600)
        fresh = random.normal(size=(600, 48))
        fresh[:, :16] += centres[truth]
        weights = {"class_weight": "balanced"}
        head = make_head(kind, **weights).fit(X, codes, groups=groups if grouped else None)
        logs = np.log(head.predict_proba(fresh).astype(float))
        slopes.append(_fit_slope(logs, truth))
    assert np.exp(np.mean(np.log(slopes))) == pytest.approx(1, abs=0.2)


def _fit_slope(logs, truth):
    grid = np.exp(np.linspace(-1.5, 1.5, 121))
    losses = []
    for slope in grid:
        scaled = slope * logs
        losses.append(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(truth)), truth]))
    return grid[int(np.argmin(losses))]


def test_least_squares_hide_no_class_between_others():
    """Three classes on a line: the fitted values of the middle one are never the highest."""
    random = np.random.default_rng(0)
    y = np.arange(300) % 3
    X = random.normal(size=(300, 2))
    X[:, 0] += 4 * y
    assert (make_head("ridge").fit(X, y).predict(X) == y).mean() > 0.95
