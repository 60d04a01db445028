"""Maps from one feature space to another, learned from rows that are known in both: a gallery of old features is kept
when the backbone changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.metrics import euclidean_distances
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from tlkeras.errors import DataError, RecipeError, suggest

Kind = Literal["linear", "kernel", "deep"]

STRENGTHS = np.logspace(-3, 5, 9)
"""Ridges that are tried."""


class PairedMap:
    """Regression from features (n, d) to the features (n, k) of the same pictures in another space.

    Columns of both spaces are standardised. "linear" is ridge regression whose strength leaving one out chooses;
    "kernel" the same with a Gaussian kernel at the median distance, chosen by five folds; "deep" a perceptron with a
    hidden layer.

    Args:
        kind: Which of them.
        seed: Of the deep one.
    """

    def __init__(self, kind: Kind = "linear", seed: int = 0):
        if kind not in _MAKERS:
            raise RecipeError(f"A paired map is one of {', '.join(_MAKERS)}.", repr(kind), suggest(kind, _MAKERS))
        self.kind = kind
        self.seed = seed

    def fit(self, X: np.ndarray, Y: np.ndarray) -> PairedMap:
        """Fit on rows that belong together.

        Raises:
            DataError: There are not as many rows here as there, fewer than ten, or some are not finite.
        """
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        if len(X) != len(Y) or len(X) < 10:
            raise DataError("Paired rows must be as many in both spaces, ten or more.", f"{len(X)} and {len(Y)}")
        if not (np.isfinite(X).all() and np.isfinite(Y).all()):
            raise DataError("Paired rows must be finite.", "NaN or infinity")
        self._from, self._to = StandardScaler().fit(X), StandardScaler().fit(Y)
        Z = self._from.transform(X)
        self.model_ = _MAKERS[self.kind](Z, self.seed).fit(Z, self._to.transform(Y))
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return the rows in the other space, float32 (rows, k)."""
        found = self.model_.predict(self._from.transform(np.asarray(X, np.float64)))
        return self._to.inverse_transform(found.reshape(len(X), -1)).astype(np.float32)


def _make_kernel(Z: np.ndarray, seed: int) -> Any:
    sample = Z[np.linspace(0, len(Z) - 1, min(len(Z), 1000)).astype(int)]
    distances = euclidean_distances(sample, squared=True)[np.triu_indices(len(sample), 1)]
    model = KernelRidge(kernel="rbf", gamma=1.0 / max(float(np.median(distances)), 1e-12))
    return GridSearchCV(model, {"alpha": np.logspace(-4, 1, 6)}, cv=5)


_MAKERS: dict[str, Callable[[np.ndarray, int], Any]] = {
    "linear": lambda Z, seed: RidgeCV(STRENGTHS),
    "kernel": _make_kernel,
    "deep": lambda Z, seed: MLPRegressor(
        hidden_layer_sizes=(512,), alpha=1e-3, early_stopping=len(Z) >= 50, max_iter=300, random_state=seed
    ),
}
