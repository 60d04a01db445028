"""Sample weights and class weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

ClassWeight = Mapping[Any, float] | Literal["balanced"] | None


def compute_sample_weights(y: np.ndarray, sample_weight: np.ndarray | None, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each row, float64 (n,).

    Args:
        y: Class of each row, (n,); with no class_weight anything of that length.
        sample_weight: The rows' own weights, (n,), or None for equal ones.
        class_weight: A factor per class, "balanced" for the inverse of its frequency, or None.

    Raises:
        ValueError: The weights have another shape, are negative, not finite, or all zero.
    """
    weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (len(y),):
        raise ValueError(f"sample_weight has not one value per row. Received: shape {weights.shape}, {len(y)} rows.")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise ValueError("Sample weights are negative, not finite, or all zero.")
    return weights if class_weight is None else weights * compute_sample_weight(class_weight, y)
