"""Sample weights and class weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

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
