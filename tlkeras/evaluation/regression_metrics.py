"""Regression metrics for stacks of weightings (b, n) at once."""

from __future__ import annotations

import numpy as np

_TINY = 1e-30


def compute_regression(
    targets: np.ndarray, values: np.ndarray, weights: np.ndarray, ranked: bool = True
) -> dict[str | tuple[int, str], np.ndarray]:
    """Each metric for each weighting, shape (b,).

    R2 is 1 less the squared error over that of always predicting the weighted mean; NaN where all targets are equal.

    Args:
        targets: Shape (n,).
        values: Shape (n, 1).
        weights: Shape (b, n).
        ranked: Ignored; here so that all metrics have one signature.
    """
    errors, total = values[:, 0].astype(np.float64) - targets, weights.sum(axis=1)
    squared = weights @ errors**2 / total
    centred = targets - targets.mean()  # or digits would cancel
    spread = weights @ centred**2 / total - (weights @ centred / total) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(spread > _TINY, 1 - squared / spread, np.nan)
    return {"r2": explained, "rmse": np.sqrt(squared), "mae": weights @ np.abs(errors) / total}
