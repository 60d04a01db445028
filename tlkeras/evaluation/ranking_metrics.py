"""ROC AUC and average precision for a stack of weightings (b, n) at once."""

from __future__ import annotations

import numpy as np

_NOTHING = 1e-12  # share of all weight that sums of floats cannot tell from none


def compute_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision per weighting, shape (b,) each.

    The area is P(score of a positive > score of a negative) + half the ties, NaN without both. The average precision is
    that at each threshold, averaged over the positives that it adds, NaN without positives; equal scores are one
    threshold, and nothing is interpolated between two.

    Args:
        positive: 1 for positives and 0 for negatives, shape (n,).
        scores: Shape (n,).
        weights: Shape (b, m).
        rows: Index of the weight of each score, int (n,); None: m is n, and each has its own.
    """
    order = np.argsort(scores, kind="stable")
    rows = order if rows is None else rows[order]
    rising, places = scores[order], np.flatnonzero(positive[order])
    own = weights.take(rows[places], axis=1)
    # With the sums of all weights, and of those of positives, before each score, only positives have to be visited.
    before, before_positives = _accumulate(weights.take(rows, axis=1)), _accumulate(own)
    total, positives = before[:, -1:], before_positives[:, -1:]
    first, last = (np.searchsorted(rising, rising[places], side) for side in ("left", "right"))
    first_own, last_own = (np.searchsorted(rising[places], rising[places], side) for side in ("left", "right"))
    below, below_positives = before.take(first, axis=1), before_positives.take(first_own, axis=1)
    tied = before.take(last, axis=1) - below - (before_positives.take(last_own, axis=1) - below_positives)
    won = (own * (below - below_positives + tied / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise = np.where(own > 0, own * (positives - below_positives) / (total - below), 0.0).sum(axis=1)
    some = np.where(positives > 0, positives, np.nan)[:, 0]
    others = np.where(total - positives > _NOTHING * total, total - positives, np.nan)[:, 0]
    return won / (some * others), precise / some


def _accumulate(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... columns, (b, columns + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
