"""Class means, by how many rows they are known, and the scores of classes that follow."""

from typing import NamedTuple

import numpy as np

from tlkeras.heads.folds import LabelledFeatures
from tlkeras.heads.link_functions import LinearMap

_LEAST_SIGNAL = 0.05
"""Of what few rows add to the distances of means: where classes do not differ, scores keep their proportions."""


class ClassClouds(NamedTuple):
    """Normal clouds of one shape around class means, each known by few rows."""

    means: np.ndarray  # (k, d)
    kernel: np.ndarray  # the inverse covariance times the means, (d, k)
    counts: np.ndarray  # independent rows of each mean, (k,)
    spread: float  # variance of a row within its class in this metric, all columns added; 0 if not known

    def estimate_signal(self) -> float:
        """Variance of means around their centre, all columns added, without what few rows add to it."""
        products, noise = self.means @ self.kernel, float(np.mean(self.spread / self.counts))
        apart = float(np.trace(products) - products.mean(axis=0).sum()) / (len(self.counts) - 1)
        return max(apart - noise, _LEAST_SIGNAL * noise)

    def measure_certainty(self, signal: float) -> np.ndarray:
        """Share of the way from their centre that means are believed, (k,), where they vary by `signal`."""
        return signal / (signal + self.spread / self.counts) if self.spread else np.ones(len(self.counts))

    def predict(self, signal: float) -> LinearMap:
        """Kernel (d, k) and bias (k,) of the log density of each class, where means are drawn with a variance `signal`.

        Each mean is drawn to their centre by what its rows leave unsure, and its cloud is as much wider: the posterior
        predictive, with the squared length of x, which makes it quadratic, replaced by its mean. So the scores of folds
        and of all rows are each as sure as their rows allow. With the means as they are, 15 classes of six rows would
        be too unsure by a half, as those of folds are farther from the truth than those of all rows; and rare classes
        would seem farther away (Chan and Hall, Biometrika 96, 2009).
        """
        kept = self.measure_certainty(signal)
        wider = 1 + kept / self.counts if self.spread else np.ones(len(kept))
        centre = kept / kept.sum()
        draw = (np.eye(len(kept)) - centre[:, None]) * kept  # from means to what is left of their way from the centre
        kernel = self.kernel @ draw / wider
        lengths = np.sum(draw.T @ self.means * kernel.T, axis=1)
        typical = (self.spread + signal) / wider  # squared distance of a row from the centre
        bias = -0.5 * (lengths + typical + self.spread * np.log(wider))
        return kernel, bias - centre @ self.means @ kernel


def measure_clouds(rows: LabelledFeatures, classes: int, likeness: float | None) -> ClassClouds:
    """Class means in the metric of the features; with no `likeness` of rows of a group the spread is not known."""
    means = average_classes(rows, classes)
    counts = count_rows(rows, classes, likeness or 0.0)
    freedom = 0.0 if likeness is None else measure_freedom(rows, counts)
    spread = measure_spread(rows, means) / freedom if freedom else 0.0
    return ClassClouds(means.astype(np.float64), means.T.astype(np.float64), counts, spread)


def measure_spread(rows: LabelledFeatures, means: np.ndarray) -> float:
    """Weighted mean squared distance of rows from the means (k, d) of their classes."""
    return float(np.average(np.sum((rows.X - means[rows.codes]) ** 2, axis=1), weights=rows.weights))


def deflate(directions: float, rows: float) -> float:
    """What to multiply an inverse covariance by that was estimated on so many rows: its expectation is too large.

    For the inverse of a plain covariance in d directions, 1 - d / n, as that of Wishart's distribution has it; under a
    penalty d is the number of directions that it leaves, the trace of covariance times inverse.
    """
    return max(1 - directions / rows, 1 / (1 + rows))


def average_classes(rows: LabelledFeatures, classes: int) -> np.ndarray:
    """Weighted mean of each class, (k, d); a class of weight zero has the mean of all."""
    members = np.zeros((classes, len(rows.codes)), rows.X.dtype)
    members[rows.codes, np.arange(len(rows.codes))] = rows.weights
    totals = members.sum(axis=1, keepdims=True)
    means = members @ rows.X / np.where(totals > 0, totals, 1)
    return np.where(totals > 0, means, np.average(rows.X, axis=0, weights=rows.weights))


def measure_freedom(rows: LabelledFeatures, counts: np.ndarray) -> float:
    """The expected mean squared deviation from class means, known by so many rows, as a share of the variance."""
    shares = np.bincount(rows.codes, rows.weights, len(counts)) / rows.weights.sum()
    return max(0.0, 1 - float(shares @ (1 / counts)))


def count_rows(rows: LabelledFeatures, classes: int, likeness: float) -> np.ndarray:
    """The number of independent rows whose mean varies as that of each class does, (k,), at least 1.

    That is the effective number of Kish (Survey Sampling, 1965), by weights and by groups: m rows of a group count for
    m / (1 + (m - 1) likeness).
    """
    totals = np.bincount(rows.codes, rows.weights, classes)
    alone = np.bincount(rows.codes, rows.weights**2, classes)
    together = alone
    if rows.groups is not None:
        pairs, members = np.unique(_pair_groups(rows.groups, rows.codes, classes), return_inverse=True)
        together = np.bincount(pairs % classes, np.bincount(members, rows.weights) ** 2, classes)
    squares = (1 - likeness) * alone + likeness * together
    return np.maximum(np.where(squares > 0, totals**2 / np.where(squares > 0, squares, 1), 1), 1)


def count_all_rows(rows: LabelledFeatures, likeness: float) -> float:
    """The number of independent rows that all rows are worth, by weights, and by groups: see `count_rows`.

    For a covariance, `likeness` is the square of that of rows, as products of columns are alike by so much.
    """
    shares = rows.weights / rows.weights.sum()
    squares = float(np.sum(shares**2))
    if rows.groups is not None:
        members = np.unique(rows.groups, return_inverse=True)[1]
        squares = (1 - likeness) * squares + likeness * float(np.sum(np.bincount(members, shares) ** 2))
    return 1 / squares


def measure_likeness(rows: LabelledFeatures) -> float:
    """How alike rows of one class and group are: the share of the variance within classes that groups make.

    The intraclass correlation by analysis of variance, all standardised columns together; 0 where it cannot be told.
    """
    if rows.groups is None:
        return 0.0
    classes = int(rows.codes.max()) + 1
    joined = _pair_groups(rows.groups, rows.codes, classes)
    pairs, members, sizes = np.unique(joined, return_inverse=True, return_counts=True)
    totals = np.bincount(rows.codes, minlength=classes)
    found = np.count_nonzero(totals)
    free = len(pairs) - found, len(rows.X) - len(pairs)
    if free[0] < 1 or free[1] < 1:
        return 0.0
    X = np.asarray(rows.X, np.float64)
    deviation = X.std(axis=0)
    X = (X - X.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    means = _add_up(X, members, len(pairs)) / sizes[:, None]
    centres = _add_up(X, rows.codes, classes) / np.maximum(totals, 1)[:, None]
    inside = float(np.sum((X - means[members]) ** 2)) / free[1]
    between = float(sizes @ np.sum((means - centres[pairs % classes]) ** 2, axis=1)) / free[0]
    usual = (len(X) - np.sum(np.bincount(pairs % classes, sizes**2, classes) / np.maximum(totals, 1))) / free[0]
    shared = max(between - inside, 0) / usual
    return shared / (shared + inside) if shared > 0 else 0.0


def _pair_groups(groups: np.ndarray, codes: np.ndarray, classes: int) -> np.ndarray:
    """Number of the class and group of each row, (n,), which is that of its class modulo `classes`."""
    return np.unique(groups, return_inverse=True)[1] * classes + codes


def _add_up(X: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Sums of the rows of each code, (count, d)."""
    sums = np.zeros((count, X.shape[1]))
    np.add.at(sums, codes, X)
    return sums
