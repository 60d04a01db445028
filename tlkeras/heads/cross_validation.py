"""Predictions of heads for rows that they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tlkeras.heads.base import BaseHead
from tlkeras.heads.folds import group_kfold
from tlkeras.heads.link_functions import infer_link
from tlkeras.progress import progress_bar


def cross_val_predict(
    head_maker: Callable[[], BaseHead],
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    folds: int = 5,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities, float64 [n, k], of each row by a head that was fitted without it and its group.

    A class whose rows are all in one fold has probability 0 there.

    Args:
        head_maker: Makes an unfitted head, one for each fold; a head that chooses its strength does so in each.
        X: Features [n, d].
        y: Class of each row, int [n], or indicators [n, k] of labels; rows with -1 are predicted and not fitted on.
        weights: Of each row in the fit, [n]; equal if not given. Rows of weight 0 are predicted.
        folds: Number of folds.
        groups: Rows with equal values stay together, [n]: copies of an image, or images taken at one time.
        seed: Of the folds.

    Raises:
        ValueError: There are fewer rows or groups than folds, or the rest of a fold cannot be fitted on: fewer than
            two classes, or a label that all rows have or lack.
    """
    y = np.asarray(y)
    weights = np.ones(len(y)) if weights is None else np.asarray(weights)
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    several = y.ndim == 2
    learned = (np.all(y >= 0, axis=1) if several else y >= 0) & (weights > 0)
    strata = np.full(len(y), -1)
    strata[learned] = infer_link(y).group_rows(y[learned])
    parts = group_kfold(strata, groups, folds, seed)
    predictions = np.zeros((len(y), y.shape[1] if several else int(y.max()) + 1))
    with progress_bar("Cross-validation", folds, "folds") as advance:
        for part in range(folds):
            fit, held = learned & (parts != part), np.flatnonzero(parts == part)
            head = head_maker().fit(X[fit], y[fit], weights[fit], groups=groups[fit])
            predictions[np.ix_(held, head.classes_)] = head.predict_proba(X[held])
            advance(1)
    return predictions
