"""Label issues, by confident learning, and outliers."""

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

_REFERENCES = 5000
_DEVIATIONS = 4.0


class LabelIssue(NamedTuple):
    """A label that is probably wrong: the more probable class, and how much more probable it is, 0 to 1."""

    row: int
    suggested: int
    score: float


class Outlier(NamedTuple):
    """An image unlike the others, and its distance from its neighbours in units of the threshold, above 1."""

    row: int
    score: float


def find_label_issues(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> list[LabelIssue]:
    """Label issues by confident learning (Northcutt, Jiang and Chuang, JAIR 2021), the largest score first.

    A row counts for the class that is most probable among those above their threshold, the mean probability of the
    class on rows with that label. The counts by label and class, calibrated to the number of rows of each label,
    estimate how many labels of each kind are wrong. That many rows that count for another class are returned, if both
    rankings of the paper choose them ("prune by noise rate" and "prune by class").

    Probabilities [n, k] are out-of-sample; targets int [n], of which -1 are skipped; weights [n] those in means and
    counts. For several labels, call it for each with `np.stack([1 - p, p], axis=1)`.

    >>> sure = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 8)
    >>> find_label_issues(sure, np.array([0] * 8 + [1] * 7 + [0]))[0].row
    15
    """
    rows = np.flatnonzero(targets >= 0)
    p, labels = np.asarray(probabilities, np.float64)[rows], np.asarray(targets)[rows]
    counted = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)[rows]
    own = p[np.arange(len(rows)), labels]
    confident = _find_confident_classes(p, labels, own, counted)
    joint = np.zeros((p.shape[1], p.shape[1]))  # of labels and classes
    counts = confident >= 0
    np.add.at(joint, (labels[counts], confident[counts]), counted[counts])
    totals = joint.sum(axis=1, keepdims=True)
    noise = np.divide(joint, totals, out=np.zeros_like(joint), where=totals > 0)
    suspected = np.flatnonzero(_prune(p, labels, own, noise) & counts & (confident != labels))
    margins = p[suspected, confident[suspected]] - own[suspected]
    order = np.argsort(-margins, kind="stable")
    return [
        LabelIssue(int(rows[at]), int(confident[at]), float(margin))
        for at, margin in zip(suspected[order], margins[order], strict=True)
        if margin > 0
    ]


def _find_confident_classes(p: np.ndarray, labels: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The class that each row counts for, int [n]; -1 for none."""
    sums = np.bincount(labels, weights * own, minlength=p.shape[1])
    totals = np.bincount(labels, weights, minlength=p.shape[1])
    thresholds = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    thresholds[thresholds == 0] = np.inf
    reached = p >= thresholds - 1e-12  # a mean of equal values may be a rounding error above them
    best = np.where(reached, p, -1).argmax(axis=1)
    return np.where(reached.any(axis=1) & np.isfinite(thresholds[labels]), best, -1)


def _prune(p: np.ndarray, labels: np.ndarray, own: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Of each label the estimated number of wrong rows, the least probable, with the largest margins, bool [n]."""
    by_noise_rate, by_class = np.zeros((2, len(labels)), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        wrong = round((noise[label].sum() - noise[label, label]) * len(rows))
        by_class[rows[np.argsort(own[rows], kind="stable")[:wrong]]] = True
        for other in np.flatnonzero(noise[label]):
            if other != label:
                wrong = round(noise[label, other] * len(rows))
                by_noise_rate[rows[np.argsort(own[rows] - p[rows, other], kind="stable")[:wrong]]] = True
    return by_noise_rate & by_class


def find_outliers(features: np.ndarray, neighbours: int = 10) -> list[Outlier]:
    """Outliers by their mean distance to the nearest neighbours (Angiulli and Pizzuti 2002), the farthest first.

    Features, float [n, d], are not normalised: in direction alone, outliers that resemble each other are not far from
    the rest. The threshold is 4 standard deviations, by the median absolute deviation, above the median logarithm.

    >>> features = np.append(np.random.default_rng(0).normal(size=(50, 4)), np.full((1, 4), 100.0), axis=0)
    >>> find_outliers(features)[0].row
    50
    """
    count = min(neighbours, min(len(features), _REFERENCES) - 1)
    if count < 1:
        return []
    vectors = np.asarray(features, np.float32)
    references = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), _REFERENCES)).astype(np.int64))
    search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(vectors[references])
    lengths, nearest = search.kneighbors(vectors)
    itself = references[nearest] == np.arange(len(vectors))[:, None]
    # If a row is not a reference, or equal rows take its place, the farthest neighbour is one too many.
    itself[~itself.any(axis=1), -1] = True
    distances = lengths[~itself].reshape(len(vectors), count).mean(axis=1)
    logarithms = np.log(np.maximum(distances, 1e-6))
    middle = np.median(logarithms)
    spread = 1.4826 * np.median(np.abs(logarithms - middle))
    threshold = np.exp(middle + _DEVIATIONS * max(spread, 0.01))
    order = np.argsort(-distances, kind="stable")
    return [Outlier(int(row), float(distances[row] / threshold)) for row in order if distances[row] > threshold]
