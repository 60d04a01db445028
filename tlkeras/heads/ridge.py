"""Ridge regression on the indicators of classes, in closed form: one factorisation for all strengths and folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tlkeras.config.schema.heads import AutoStrength
from tlkeras.heads.base import LinearClassifierHead
from tlkeras.heads.folds import LabelledFeatures


@dataclass(eq=False, repr=False)
class RidgeHead(LinearClassifierHead):
    """Least squares with an L2 penalty on standardised columns; the intercept is not penalised.

    `alpha` is chosen among half decades by held-out rows: one eigendecomposition of a fold serves all strengths.

    Args:
        alpha: Strength of the penalty as in scikit-learn's Ridge, or "auto".

    Attributes:
        strength_: The alpha that was used.
        scores_: Held-out log loss by alpha.
    """

    alpha: AutoStrength = "auto"

    kind = "ridge"
    strength_name = "alpha"
    strengths = np.logspace(7, -1, 17)
    fallback = 1e3

    def _solve_path(
        self, rows: LabelledFeatures, strengths: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        targets = self.link_.indicators(rows.codes, len(self.classes_))
        factors = factorise(rows.X, targets, rows.weights)
        for alpha in strengths:
            kernel, bias = factors.solve(alpha)
            # the shares of classes differ between folds by more than strongly penalised scores do: calibration
            # gives the intercept
            yield kernel, bias - factors.offset


class RidgeFactors(NamedTuple):
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
        """Kernel (d, k) and bias (k,) for a strength."""
        kernel = self.directions @ self._shrink(alpha)
        return kernel, self.offset - self.mean @ kernel

    def leave_out(self, out: np.ndarray, alpha: float) -> np.ndarray:
        """Exact predictions for rows `out` of a fit without them, (len(out), k).

        With H the matrix that turns targets into fitted values, residuals of left-out rows F are
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


def factorise(X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> RidgeFactors:
    """The factorisation of the regression of targets (n, k) on features (n, d), for every strength."""
    mean = np.average(X, axis=0, weights=weights)
    offset = np.average(targets, axis=0, weights=weights)
    centred = (X - mean).astype(np.float64)
    squares, directions = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    squares = np.maximum(squares, 0)
    return RidgeFactors(mean, offset, directions, squares, centred @ directions, targets - offset, weights)
