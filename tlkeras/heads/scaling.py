"""Standardised columns, as few as there are rows; both are undone in the fitted weights."""

from dataclasses import dataclass

import numpy as np

_RANK = 1e-10  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True)
class AffineTransform:
    """An affine transform of features, in whose frame linear heads are fitted.

    Where there are fewer rows than columns, all rows lie in the span of r orthonormal directions, the basis. So does
    the solution under an L2 penalty: nothing is lost, and the problem is n x n.
    """

    mean: np.ndarray  # weighted, of each column, (d,)
    scale: np.ndarray  # weighted standard deviation of each column, or the same number for all, (d,)
    basis: np.ndarray | None = None  # (d, r)

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Rows (n, d) in the frame, (n, d) or (n, r)."""
        Z = (X - self.mean) / self.scale
        return Z if self.basis is None else Z @ self.basis

    def unfold(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The map from raw features, (d, k) and (k,), that equals a map from the frame."""
        whole = kernel if self.basis is None else self.basis @ kernel
        raw = whole / self.scale[:, None]
        return raw, bias - self.mean @ raw


def fit_standardizer(
    X: np.ndarray, weights: np.ndarray, *, by_column: bool = True, scale: np.ndarray | None = None
) -> AffineTransform:
    """The frame of rows (n, d) with weights (n,).

    Each column is divided by its standard deviation; not `by_column`, all by one, which keeps angles; or by `scale`,
    (d,).
    """
    mean, deviation = measure_columns(X, weights)
    if not by_column:
        variance = np.average((X - mean) ** 2, axis=0, weights=weights).mean()
        deviation = np.full_like(deviation, np.sqrt(variance) or 1.0)
    scale = deviation if scale is None else scale
    if X.shape[1] <= len(X):
        return AffineTransform(mean, scale)
    Z = ((X - mean) / scale).astype(np.float64)
    squares, directions = np.linalg.eigh(Z @ Z.T)
    kept = squares > max(_RANK * squares[-1], 0)
    if not kept.any():
        return AffineTransform(mean, scale)
    return AffineTransform(mean, scale, (Z.T @ (directions[:, kept] / np.sqrt(squares[kept]))).astype(X.dtype))


def measure_columns(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of each column, and the deviation to divide it by, moderated, (d,)."""
    mean = np.average(X, axis=0, weights=weights).astype(X.dtype)
    variance = np.average((X - mean) ** 2, axis=0, weights=weights)
    scale = moderate_deviation(mean, variance, count_rows(weights))
    return mean, scale.astype(X.dtype)


def count_rows(weights: np.ndarray) -> float:
    """The number of rows that weights (n,) stand for: one of weight two is a row twice, shares are no fewer rows."""
    return max(float(weights.sum()), float(len(weights)))


def moderate_deviation(mean: np.ndarray, variance: np.ndarray, rows: float, added: int = 1) -> np.ndarray:
    """What to divide each column by, (d,): its deviation as if one more row deviated as the median column does.

    Of few rows a feature can be silent by chance. Divided by its own deviation alone, say 1e-5, it would outweigh all
    others in the first image that wakes it. Variances so drawn to a common one are called moderated (Smyth, Statistical
    Applications in Genetics and Molecular Biology 3, 2004). Constant columns, which say nothing, get 1.

    Args:
        mean, variance: Of each column, (d,).
        rows: Their number, see `count_rows`.
        added: Number of rows that deviate as the median column does.
    """
    varies = np.sqrt(variance) > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    if not varies.any():
        return np.ones_like(variance)
    return np.where(varies, np.sqrt((rows * variance + added * np.median(variance[varies])) / (rows + added)), 1.0)
