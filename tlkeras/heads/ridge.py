"""Ridge regression on the indicators of classes, in closed form: one factorisation for all strengths and folds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from tlkeras.heads.base import CalibratedLinearHead, Fold, LabelledFeatures
from tlkeras.heads.class_weights import ClassWeight


class RidgeHead(CalibratedLinearHead):
    """Least squares with an L2 penalty on standardised columns; the intercept is not penalised.

    `alpha` is chosen among half decades by held-out rows. What a fit without a fold would say of that fold follows
    exactly from the fit on all rows, so that all strengths and folds come from one eigendecomposition (see
    `leave_out`).

    Args:
        alpha: Strength of the penalty as in scikit-learn's Ridge, or "auto".
        folds: Number of folds that choose alpha and calibrate; fewer where a class has fewer examples.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        standardize: Scale each column by its own deviation; else all by one.
        seed: Seed of the folds.

    Attributes:
        strength_: The alpha that was used.
        scores_: Held-out log loss by alpha.
    """

    kind = "ridge"
    strength_name = "alpha"
    strengths = np.logspace(7, -1, 17)
    fallback = 1e3

    def __init__(
        self,
        alpha: float | Literal["auto"] = "auto",
        folds: int = 5,
        class_weight: ClassWeight = None,
        standardize: bool = True,
        seed: int = 0,
    ):
        self.alpha = alpha
        self.folds = folds
        self.class_weight = class_weight
        self.standardize = standardize
        self.seed = seed

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        targets = self.link_.indicate(rows.codes, len(self.classes_))
        factors = factorise(rows.X, targets, rows.weights)
        return factors.solve(strength)

    def _hold_out(
        self, rows: LabelledFeatures, parts: list[Fold], strengths: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray]]:
        targets = self.link_.indicate(rows.codes, len(self.classes_))
        factors = factorise(rows.X, targets, rows.weights)
        everything = np.arange(len(rows.X))
        outs = [np.setdiff1d(everything, part.fit, assume_unique=True) for part in parts]
        for strength in strengths:
            if all(len(out) for out in outs):
                yield strength, np.concatenate([factors.leave_out(out, strength) for out in outs])
            else:  # rows of their own to validate by
                kernel, bias = factors.solve(strength)
                yield strength, np.concatenate([part.held.X @ kernel + bias for part in parts])


class Factors(NamedTuple):
    """Weighted ridge regression, factorised: `squares` and `directions` of the centred, weighted Gram matrix.

    Attributes:
        mean: Weighted mean of the features, (d,).
        offset: Weighted mean of the targets, (k,).
        directions: Eigenvectors, (d, r).
        squares: Eigenvalues, (r,).
        rotated: Centred rows along the directions, (n, r).
        targets: Centred, (n, k).
        weights: Of the rows, (n,).
    """

    mean: np.ndarray
    offset: np.ndarray
    directions: np.ndarray
    squares: np.ndarray
    rotated: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def solve(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel (d, k) and bias (k,) for a strength."""
        kernel = self.directions @ self._shrink(alpha)
        return kernel, self.offset - self.mean @ kernel

    def leave_out(self, out: np.ndarray, alpha: float) -> np.ndarray:
        """Return what a fit without some rows would say of them, exactly, (len(out), k).

        With H the matrix that turns targets into fitted values, residuals of rows F that were left out are
        (I - H_FF)^-1 times their residuals in the fit on all rows: the Sherman-Morrison-Woodbury identity, for one row
        the PRESS statistic (Allen, Technometrics 16, 1974).
        """
        rows, weights = self.rotated[out], self.weights[out]
        residuals = self.targets[out] - rows @ self._shrink(alpha)
        hat = ((rows / (self.squares + alpha)) @ rows.T + 1 / self.weights.sum()) * weights
        left = np.linalg.solve(np.eye(len(out)) - hat, residuals)
        return self.targets[out] + self.offset - left

    def _shrink(self, alpha: float) -> np.ndarray:
        return (self.rotated.T @ (self.weights[:, None] * self.targets)) / (self.squares + alpha)[:, None]


def factorise(X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Factors:
    """Return what gives the regression of targets (n, k) on features (n, d) for every strength."""
    mean = np.average(X, axis=0, weights=weights)
    offset = np.average(targets, axis=0, weights=weights)
    centred = (X - mean).astype(np.float64)
    squares, directions = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    squares = np.maximum(squares, 0)
    return Factors(mean, offset, directions, squares, centred @ directions, targets - offset, weights)
