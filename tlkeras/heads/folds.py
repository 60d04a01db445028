"""Labelled rows and their weights, the folds that heads choose and calibrate by, and predictions across folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from tlkeras.heads.link_functions import LinkFunction, infer_link
from tlkeras.progress import progress_bar

LabelledRows = tuple[np.ndarray, ...]
"""Features (n, d) or maps (n, h, w, c), class values (n,) or indicators (n, k), weights (n,), maybe groups (n,)."""


ClassWeight = Mapping[Any, float] | Literal["balanced"] | None


def compute_sample_weights(y: np.ndarray, sample_weight: np.ndarray | None, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each row, float64 (n,), from its class, its own weight, None for 1, and that of its class.

    With no class_weight, y is anything of that length. Raises the errors of `compute_class_factors`, and a ValueError
    if the rows' weights have another shape, are negative, not finite, or all zero.
    """
    weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (len(y),):
        raise ValueError(f"sample_weight has not one value per row. Received: shape {weights.shape}, {len(y)} rows.")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise ValueError("Sample weights are negative, not finite, or all zero.")
    if class_weight is None:
        return weights
    return weights * compute_class_factors(y, weights, class_weight)[np.unique(y, return_inverse=True)[1]]


def compute_class_factors(y: np.ndarray, sample_weight: np.ndarray | None, class_weight: ClassWeight) -> np.ndarray:
    """Factor of each class of rows (n,), ascending, (k,); "balanced" classes have equal weight, as in scikit-learn.

    ValueError if the classes with a factor are not those of the rows.
    """
    classes, codes = np.unique(y, return_inverse=True)
    if class_weight is None:
        return np.ones(len(classes))
    if class_weight == "balanced":
        totals = np.bincount(codes, sample_weight)
        return totals.sum() / (np.count_nonzero(totals) * np.where(totals > 0, totals, np.inf))
    if isinstance(class_weight, str):
        raise ValueError(f"The word for class weights is 'balanced'. Received: {class_weight!r}.")
    missing = [label for label in classes.tolist() if label not in class_weight]
    if missing and len(class_weight) != len(classes) - len(missing):
        raise ValueError(f"The classes {missing} have no weight. Received: {dict(class_weight)}.")
    return np.array([class_weight.get(label, 1.0) for label in classes.tolist()])


class LabelledFeatures(NamedTuple):
    """Rows that a head is fitted or measured on."""

    X: np.ndarray  # features (n, d), or maps (n, h, w, c)
    codes: np.ndarray  # targets as the link encodes them, (n,) or (n, k)
    weights: np.ndarray  # (n,)
    groups: np.ndarray | None = None  # of rows that are alike, (n,); None where each stands alone

    def take(self, chosen: np.ndarray) -> LabelledFeatures:
        """Some of the rows."""
        groups = None if self.groups is None else self.groups[chosen]
        return LabelledFeatures(self.X[chosen], self.codes[chosen], self.weights[chosen], groups)

    def reduce(self, columns: np.ndarray | None) -> LabelledFeatures:
        """Some of the columns; all of them for None."""
        return self if columns is None else self._replace(X=self.X[:, columns])


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows to fit on and rows held out; they are copied when they are asked for, as folds are many times all rows."""

    rows: LabelledFeatures  # all training rows
    fit: np.ndarray | None  # positions of those to fit on; None for all, where validation rows are held out
    out: np.ndarray | LabelledFeatures  # positions of those held out, or validation rows
    columns: np.ndarray | None = None  # selected without the rows held out; None for all

    @property
    def weight_share(self) -> float:
        """Weight of the rows to fit on, of that of all training rows."""
        weights = self.rows.weights
        return 1.0 if self.fit is None else float(weights[self.fit].sum() / weights.sum())

    def fit_rows(self) -> LabelledFeatures:
        return (self.rows if self.fit is None else self.rows.take(self.fit)).reduce(self.columns)

    def held_rows(self) -> LabelledFeatures:
        held = self.out if isinstance(self.out, LabelledFeatures) else self.rows.take(self.out)
        return held.reduce(self.columns)

    def select(self, columns: np.ndarray) -> Fold:
        """The fold with some columns only."""
        return replace(self, columns=columns)


def list_folds(
    link: LinkFunction, rows: LabelledFeatures, held: LabelledFeatures | None, folds: int, seed: int
) -> list[Fold]:
    """The folds of rows; validation rows, where they are given, are the only fold."""
    if held is not None:
        return [Fold(rows, None, held)]
    parts = make_folds(link.group_rows(rows.codes), folds, seed, rows.groups)
    return [Fold(rows, fit, out) for fit, out in parts if rows.weights[fit].any()]


def make_folds(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None) -> list[tuple]:
    """Stratified folds, each with every class in its rest, as positions (fit, held); none if none can be made.

    The only row of a class is held out in no fold.
    """
    codes = np.unique(codes, return_inverse=True)[1]
    folds = min(folds, int(np.bincount(codes).max()))
    if groups is not None:
        folds = min(folds, len(np.unique(groups)))
    if folds < 2:
        return []
    if groups is not None:
        parts = divide_groups(codes, folds, seed, groups)
    else:
        dealt = group_kfold(codes, np.arange(len(codes)), folds, seed)
        dealt[np.bincount(codes)[codes] < 2] = -1
        parts = [(np.flatnonzero(dealt != part), np.flatnonzero(dealt == part)) for part in range(folds)]
    return [(fit, held) for fit, held in parts if len(held) and len(np.unique(codes[fit])) == codes.max() + 1]


def group_kfold(strata: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, int [n]: groups stay together and are dealt out one by one, stratum after stratum.

    A group belongs to the stratum of its first row. ValueError if folds are fewer than two, or more than groups.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if not 2 <= folds <= len(first):
        raise ValueError(f"Rows of {len(first)} groups cannot be divided into {folds} folds: take 2 to {len(first)}.")
    shuffled = np.random.default_rng(seed).permutation(len(first))
    dealt = np.empty(len(first), np.int64)
    dealt[np.lexsort((shuffled, strata[first]))] = np.arange(len(first)) % folds
    return dealt[group]


def divide_groups(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray) -> list[tuple]:
    """Stratified folds of whole groups, as positions (fit, held)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y")
        return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(codes, codes, groups))


def cross_val_predict(
    head_maker: Callable[[], Any],
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    folds: int = 5,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities, float64 [n, k], of each row by a head that was fitted without it and its group.

    A class whose rows are all in one fold has probability 0 there. ValueError if there are fewer rows or groups than
    folds, or the rest of a fold cannot be fitted on: fewer than two classes, or a label that all rows have or lack.

    Args:
        head_maker: Makes an unfitted head, one for each fold; a head that chooses its strength does so in each.
        X: Features [n, d].
        y: Class of each row, int [n], or indicators [n, k] of labels; rows with -1 are predicted and not fitted on.
        weights: Of each row in the fit, [n]; equal if not given. Rows of weight 0 are predicted.
        groups: Rows with equal values stay together, [n]: copies of an image, or images taken at one time.
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
