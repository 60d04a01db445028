"""Images to look at first: labels that a model contradicts with confidence, and images unlike all others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

_REFERENCES = 5000
_DEVIATIONS = 4.0


class LabelIssue(NamedTuple):
    """A row whose label looks wrong.

    Attributes:
        row: Its place.
        suggested: The class that is more probable.
        score: How much more probable that class is than the label, a difference of probabilities, 0 to 1.
    """

    row: int
    suggested: int
    score: float


class Outlier(NamedTuple):
    """A row unlike the others, and its distance from its neighbours in units of the bound, above 1."""

    row: int
    score: float


def find_label_issues(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> list[LabelIssue]:
    """Return rows whose label looks wrong, most suspicious first.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 2021). A row counts for the class that is most probable among
    those as probable as they are on average on rows which have them as label. Counts by label and such class, brought
    to the number of rows of each label, estimate how many labels of each kind are wrong; as many of them are returned,
    of those that count for another class, only where both ways of the paper to choose agree: by the noise rate of each
    pair of classes, and by the noise of each label. Rows of a label that no row is given a probability for are not
    judged.

    Classes only; of several labels, ask for one after the other with `np.stack([1 - p, p], axis=1)`.

    Args:
        probabilities: [n, k], of a model that has not seen the row.
        targets: Class of each row, int [n]; rows with -1 are left out.
        weights: Of each row in the averages and counts, [n]; equal if not given.
    """
    rows = np.flatnonzero(targets >= 0)
    p, labels = np.asarray(probabilities, np.float64)[rows], np.asarray(targets)[rows]
    counted = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)[rows]
    own = p[np.arange(len(rows)), labels]
    confident = _choose_classes(p, labels, own, counted)
    noise = _estimate_noise(labels, confident, counted, p.shape[1])
    chosen = _choose_by_pair(p, labels, own, noise) & _choose_by_label(labels, own, noise)
    suspected = np.flatnonzero(chosen & (confident >= 0) & (confident != labels))
    margins = p[suspected, confident[suspected]] - own[suspected]
    order = np.argsort(-margins, kind="stable")
    return [
        LabelIssue(int(rows[at]), int(confident[at]), float(margin))
        for at, margin in zip(suspected[order], margins[order], strict=True)
        if margin > 0
    ]


def _choose_classes(p: np.ndarray, labels: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the class that each row counts for, -1 for none: int [n]."""
    sums = np.bincount(labels, weights * own, minlength=p.shape[1])
    totals = np.bincount(labels, weights, minlength=p.shape[1])
    thresholds = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    thresholds[thresholds == 0] = np.inf
    reached = p >= thresholds - 1e-12  # a mean of equal values may be a rounding error above them
    best = np.where(reached, p, -1).argmax(axis=1)
    return np.where(reached.any(axis=1) & np.isfinite(thresholds[labels]), best, -1)


def _estimate_noise(labels: np.ndarray, confident: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each label's rows that are of each class, [k, k]; rows add up to 1, or 0 if never counted."""
    joint = np.zeros((classes, classes))
    counts = confident >= 0
    np.add.at(joint, (labels[counts], confident[counts]), weights[counts])
    totals = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, totals, out=np.zeros_like(joint), where=totals > 0)


def _choose_by_pair(p: np.ndarray, labels: np.ndarray, own: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Choose, of each label and other class, as many rows as are wrong so, by the margin of the other: bool [n]."""
    chosen = np.zeros(len(labels), bool)
    for label, other in np.argwhere(noise > 0):
        if label != other:
            rows = np.flatnonzero(labels == label)
            wrong = round(noise[label, other] * len(rows))
            chosen[rows[np.argsort(own[rows] - p[rows, other], kind="stable")[:wrong]]] = True
    return chosen


def _choose_by_label(labels: np.ndarray, own: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Choose, of each label, as many rows as are wrong, the least probable ones: bool [n]."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        wrong = round((noise[label].sum() - noise[label, label]) * len(rows))
        chosen[rows[np.argsort(own[rows], kind="stable")[:wrong]]] = True
    return chosen


def find_outliers(features: np.ndarray, neighbours: int = 10) -> list[Outlier]:
    """Return rows far from their neighbours, farthest first.

    The mean distance to the nearest rows (Angiulli and Pizzuti 2002), in features as they are: of their directions
    alone, strangers that are like each other are not far from the rest. The bound is 4 standard deviations above the
    median of its logarithm, taken from the median absolute deviation. Neighbours are sought among at most 5,000 evenly
    spaced rows, because the distances of all to all would take minutes where these take seconds; all are measured
    alike.

    Args:
        features: Float [n, d], finite.
        neighbours: How many; fewer where there are fewer rows.
    """
    count = min(neighbours, min(len(features), _REFERENCES) - 1)
    if count < 1:
        return []
    distances = _measure_distances(np.asarray(features, np.float32), count)
    logarithms = np.log(np.maximum(distances, 1e-6))
    middle = np.median(logarithms)
    spread = 1.4826 * np.median(np.abs(logarithms - middle))
    bound = np.exp(middle + _DEVIATIONS * max(spread, 0.01))
    order = np.argsort(-distances, kind="stable")
    return [Outlier(int(row), float(distances[row] / bound)) for row in order if distances[row] > bound]


def _measure_distances(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the mean distance of each row to its `count` nearest references, itself left out: float [n]."""
    references = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), _REFERENCES)).astype(np.int64))
    search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(vectors[references])
    distances, places = search.kneighbors(vectors)
    itself = references[places] == np.arange(len(vectors))[:, None]
    # Where a row is no reference, or is crowded out by rows equal to it, the farthest is one too many.
    itself[~itself.any(axis=1), -1] = True
    return distances[~itself].reshape(len(vectors), count).mean(axis=1)
