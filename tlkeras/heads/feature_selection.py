"""Feature selection: scores of columns, and a head that selects inside its own cross-validation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from tlkeras.config.schema.features import SelectionMethod
from tlkeras.heads.base import BaseHead, HeadResult, VectorHead
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.folds import ClassWeight, LabelledFeatures, list_folds
from tlkeras.heads.linear import factorise
from tlkeras.heads.link_functions import LinearMap, LinkFunction
from tlkeras.heads.scaling import fit_standardizer

if TYPE_CHECKING:
    import keras

_STEPS = 300


@dataclass(eq=False, repr=False)
class FeatureSelectingHead(BaseHead):
    """A head on the best columns; it chooses and calibrates by rows that had no part in the selection of columns.

    In each fold columns are selected again without the rows held out; so are they without the rows by which a head that
    Keras trains stops. Selecting once on all rows would let those choose the columns that they are then measured on.

    Args:
        head: An unfitted head for vectors.
        method: "head2toe", "f_classif" or "l2": see `score_columns`.
        keep: Share of the columns, above 0 and at most 1.
        folds: Number of folds to choose and calibrate by, in place of the head's own.
        seed: Of the folds.

    Attributes:
        chosen_: The columns kept, int64 (m,), in order.
        head_: The fitted head.
    """

    head: Any
    method: SelectionMethod = "head2toe"
    keep: float = 0.1
    folds: int = 5
    seed: int = 0

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.head.kind

    @property
    def supports_multilabel(self) -> bool:  # type: ignore[override]
        return self.head.supports_multilabel

    @property
    def class_weight(self) -> ClassWeight:  # type: ignore[override]
        return self.head.class_weight

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        self.head_ = clone(self.head)
        self.head_.link_ = self.link_
        return self.head_._weigh(y, sample_weight)

    def _class_factors(self, y: np.ndarray, sample_weight: np.ndarray | None, held_y: np.ndarray) -> np.ndarray | float:
        self.head_.classes_ = self.classes_
        return self.head_._class_factors(y, sample_weight, held_y)

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None) -> None:
        head = self.head_
        if isinstance(head, KerasHead) and held is None:
            rows, held = head._hold_out(rows)
        self.chosen_ = self._select(rows)
        head.link_, head.classes_, head.scores_ = self.link_, self.classes_, {}
        head.n_features_in_ = len(self.chosen_)
        kept = rows.reduce(self.chosen_)
        if isinstance(head, VectorHead):
            parts = list_folds(self.link_, rows, held, self.folds, self.seed)
            selected = [self.chosen_ if part.fit is None else self._select(part.fit_rows()) for part in parts]
            with threadpool_limits(1) if head._one_thread else nullcontext():
                head.fit_folds(kept, [part.select(columns) for part, columns in zip(parts, selected, strict=True)])
        else:
            head._fit(kept, held and held.reduce(self.chosen_))
        self.scores_ = head.scores_

    def _select(self, rows: LabelledFeatures) -> np.ndarray:
        scores = score_columns(self.link_, rows.X, rows.codes, rows.weights, self.method)
        count = max(1, round(self.keep * rows.X.shape[1]))
        return np.sort(np.argsort(-scores, kind="stable")[:count])

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.head_._predict_proba(X[:, self.chosen_])

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """The head's, of heads that have it."""
        check_is_fitted(self)
        return self.head_.decision_function(self._validate(X)[:, self.chosen_])

    def to_layers(self) -> list[keras.layers.Layer]:
        from tlkeras.heads.layers import SelectColumns

        check_is_fitted(self)
        return [SelectColumns(self.chosen_.tolist(), name="head_selection"), *self.head_.to_layers()]

    def summarize(self) -> HeadResult:
        chosen = {**self.head_.summarize().chosen, "selection": self.method, "columns": len(self.chosen_)}
        return HeadResult(self.kind, chosen)

    def history(self) -> dict[str, list[float]]:
        return self.head_.history()


def score_columns(
    link: LinkFunction, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, method: SelectionMethod
) -> np.ndarray:
    """Score of each column, (d,): how well it separates the classes.

    "head2toe" is the squared length of a column's weights in a regression under a group lasso (Evci et al., ICML 2022;
    columns are standardised first), "l2" the same in a ridge regression, "f_classif" the F value of an analysis of
    variance, of several labels the largest. Rows of features (n, d) have codes of the link, and weights (n,).
    """
    if method == "f_classif":
        return np.max([measure_f(X, column, weights) for column in link.subproblems(codes)], axis=0)
    frame = fit_standardizer(X, weights)
    targets = link.indicators(codes, int(codes.max()) + 1 if codes.ndim == 1 else codes.shape[1])
    if method == "l2":
        kernel, _ = factorise(frame.apply(X), targets, weights).solve(0.1 * weights.sum())
        kernel = kernel if frame.basis is None else frame.basis @ kernel
    else:
        kernel, _ = fit_group_lasso((X - frame.mean) / frame.scale, targets, weights, several=link.several)
    return np.sum(kernel**2, axis=1)


def measure_f(X: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F value of each column in an analysis of variance, (d,); of a constant column 0.

    With equal weights it is scikit-learn's `f_classif`. Weights (n,) count as shares: twice all of them changes
    nothing. Features are (n, d), codes the class of each row, (n,).
    """
    counted = weights > 0
    X, weights = X[counted].astype(np.float64), weights[counted]
    codes = np.unique(codes[counted], return_inverse=True)[1]
    members = np.eye(int(codes.max()) + 1)[codes] * weights[:, None]
    totals = members.sum(axis=0)
    mean = weights @ X / weights.sum()
    centred = X - mean
    means = members.T @ centred / totals[:, None]
    between = totals @ means**2
    within = weights @ (centred - means[codes]) ** 2
    freedom = max(len(X) - len(totals), 1) / max(len(totals) - 1, 1)
    varies = between + within > 1e-12 * weights.sum() * np.maximum(mean**2, 1e-12)
    floor = 1e-15 * (between + within)
    return np.where(varies, freedom * between / np.where(varies, np.maximum(within, floor), 1.0), 0.0)


def fit_group_lasso(
    X: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, several: bool = False, penalty: float = 0.002
) -> LinearMap:
    """Kernel (d, k) and bias (k,) of least mean cross entropy plus the sum of the lengths of columns' weights.

    Accelerated proximal gradient descent (Beck and Teboulle, SIAM J. Imaging Sciences 2, 2009); each step shortens
    every column's weights by the same amount, down to zero. Features (n, d) are standardised, targets are indicators
    (n, k), weights of the rows (n,); the penalty is that of the lengths.
    """
    shares = (weights / weights.sum())[:, None]
    activation = expit if several else lambda logits: softmax(logits, axis=1)
    # cross entropy curves at most half (a quarter for sigmoids) as much as squares do
    rate = 2 / max(_measure_curvature(X, shares), 1e-12)
    kernel, bias = np.zeros((X.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    ahead, ahead_bias, pace = kernel, bias, 1.0
    for _ in range(_STEPS):
        slope = shares * (activation(X @ ahead + ahead_bias) - targets)
        moved, moved_bias = shrink_rows(ahead - rate * (X.T @ slope), rate * penalty), ahead_bias - rate * slope.sum(0)
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = moved + (pace - 1) / faster * (moved - kernel)
        ahead_bias = moved_bias + (pace - 1) / faster * (moved_bias - bias)
        kernel, bias, pace = moved, moved_bias, faster
    return kernel, bias


def shrink_rows(kernel: np.ndarray, amount: float) -> np.ndarray:
    """Rows (d, k) shortened by an amount, down to zero."""
    lengths = np.linalg.norm(kernel, axis=1, keepdims=True)
    return kernel * np.maximum(0, 1 - amount / np.maximum(lengths, 1e-300))


def _measure_curvature(X: np.ndarray, shares: np.ndarray) -> float:
    """The largest eigenvalue of the weighted second moments, a constant column included, by power iteration."""
    direction = np.random.default_rng(0).normal(size=X.shape[1] + 1)
    largest = 0.0
    for _ in range(50):
        direction /= np.linalg.norm(direction)
        projected = shares[:, 0] * (X @ direction[:-1] + direction[-1])
        direction = np.append(X.T @ projected, projected.sum())
        largest = float(np.linalg.norm(direction))
    return 1.05 * largest
