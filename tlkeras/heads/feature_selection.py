"""Feature selection: scores of columns, and a head that selects inside its own cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.feature_selection import f_classif
from sklearn.utils.validation import check_is_fitted

from tlkeras.config.schema.features import SelectionMethod
from tlkeras.heads.base import BaseHead, HeadResult, LabelledFeatures, list_folds
from tlkeras.heads.link_functions import LinkFunction
from tlkeras.heads.ridge import factorise
from tlkeras.heads.scaling import fit_standardizer

if TYPE_CHECKING:
    import keras

_STEPS = 300


@dataclass(eq=False, repr=False)
class FeatureSelectingHead(BaseHead):
    """A head on the best columns; where it chooses a strength, columns are selected again without each fold.

    Selecting once on all rows would let the held-out ones choose the columns that they are then measured on.

    Args:
        head: An unfitted head for vectors.
        method: "head2toe", "f_classif" or "l2": see `score_columns`.
        keep: Share of the columns, above 0 and at most 1.
        folds: Number of folds that choose the strength.
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
        """The kind of the head."""
        return self.head.kind

    @property
    def supports_multilabel(self) -> bool:  # type: ignore[override]
        """Whether rows can have several labels."""
        return self.head.supports_multilabel

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        self.head_ = clone(self.head)
        name = getattr(self.head, "strength_name", None)
        if name and getattr(self.head, name) == "auto" and held is None:
            self.head_.set_params(**{name: self._choose(rows, groups)})
        self.chosen_ = self._select(rows)
        X, y, weights = self._reduce(rows, self.chosen_)
        validation = None if held is None else self._reduce(held, self.chosen_)
        self.head_.fit(X, y, weights, validation=validation, groups=groups)

    def _select(self, rows: LabelledFeatures) -> np.ndarray:
        scores = score_columns(self.link_, *rows, self.method)
        count = max(1, round(self.keep * rows.X.shape[1]))
        return np.sort(np.argsort(-scores, kind="stable")[:count])

    def _reduce(self, rows: LabelledFeatures, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chosen columns, class values and weights of rows."""
        return rows.X[:, chosen], self.link_.decode(rows.codes, self.classes_), rows.weights

    def _choose(self, rows: LabelledFeatures, groups: np.ndarray | None) -> Any:
        """The strength of least mean held-out log loss, or "auto" where nothing can be held out."""
        scores: list[dict[float, float]] = []
        for fit, held in list_folds(self.link_, rows, None, self.folds, self.seed, groups):
            chosen = self._select(rows.take(fit))
            X, y, weights = self._reduce(rows.take(fit), chosen)
            head = clone(self.head).fit(X, y, weights, validation=self._reduce(held, chosen))
            scores.append(dict(head.scores_))
        shared = set.intersection(*map(set, scores)) if scores else set()
        if not shared:
            return "auto"
        return min(sorted(shared), key=lambda strength: sum(of_fold[strength] for of_fold in scores))

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.head_.predict_proba(X[:, self.chosen_])

    def to_layers(self) -> list[keras.layers.Layer]:
        """The selection of columns, and the head's layers."""
        from tlkeras.heads.layers import SelectColumns

        check_is_fitted(self)
        return [SelectColumns(self.chosen_.tolist(), name="head_selection"), *self.head_.to_layers()]

    def summarize(self) -> HeadResult:
        """What the head chose, the method and the number of columns."""
        chosen = {**self.head_.summarize().chosen, "selection": self.method, "columns": len(self.chosen_)}
        return HeadResult(self.kind, chosen)

    def history(self) -> dict[str, list[float]]:
        """The head's history."""
        return self.head_.history()


def score_columns(
    link: LinkFunction, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, method: SelectionMethod
) -> np.ndarray:
    """Score of each column, (d,): how well it separates the classes.

    Args:
        link: The link that encoded the targets.
        X: Features (n, d).
        codes: Targets as the link encodes them.
        weights: Of the rows, (n,).
        method: "head2toe": squared length of a column's weights in a regression under a group lasso (Evci et al., ICML
            2022; columns are standardised first); "l2": the same in a ridge regression; "f_classif": the F value of an
            analysis of variance, for each label the largest.
    """
    if method == "f_classif":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = [f_classif(X, column)[0] for column in link.subproblems(codes)]
        return np.nan_to_num(np.max(values, axis=0), nan=0.0, posinf=np.finfo(np.float64).max)
    frame = fit_standardizer(X, weights)
    targets = link.indicators(codes, int(codes.max()) + 1 if codes.ndim == 1 else codes.shape[1])
    if method == "l2":
        kernel, _ = factorise(frame.apply(X), targets, weights).solve(0.1 * weights.sum())
        kernel = kernel if frame.basis is None else frame.basis @ kernel
    else:
        kernel, _ = fit_group_lasso((X - frame.mean) / frame.scale, targets, weights, several=link.several)
    return np.sum(kernel**2, axis=1)


def fit_group_lasso(
    X: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, several: bool = False, penalty: float = 0.002
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (d, k) and bias (k,) of least mean cross entropy plus the sum of the lengths of columns' weights.

    Accelerated proximal gradient descent (Beck and Teboulle, SIAM J. Imaging Sciences 2, 2009); each step shortens
    every column's weights by the same amount, down to zero.

    Args:
        X: Standardised features (n, d).
        targets: Indicators (n, k).
        weights: Of the rows, (n,).
        several: Whether a row can have several labels.
        penalty: Of the lengths.
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
