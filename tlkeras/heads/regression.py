"""Regression of a number on features, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from tlkeras.heads.base import HeadResult, make_dense
from tlkeras.heads.folds import LabelledRows, group_kfold
from tlkeras.heads.linear import RidgeFactors, RidgeHead, factorise
from tlkeras.heads.scaling import measure_columns

if TYPE_CHECKING:
    import keras


@dataclass(eq=False)
class RidgeRegressionHead:
    """Ridge regression on standardised columns, of a standardised number.

    The strength of the penalty is that with the least squared error on rows that were left out, exactly and for all
    strengths from one eigendecomposition; groups are left out as a whole.

    Args:
        folds: Number of folds; fewer where there are fewer rows or groups.
        seed: Seed of the folds.

    Attributes:
        alpha_: The strength that was chosen.
        scale_, offset_: Weighted deviation and mean of the numbers that it was fitted on.
    """

    folds: int = 5
    seed: int = 0

    kind = "regression"
    input_kind: ClassVar[Literal["vector", "map"]] = "vector"
    supports_multilabel = False
    classes_ = np.zeros(1, np.int64)

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: LabelledRows | None = None,
        groups: np.ndarray | None = None,
    ) -> RidgeRegressionHead:
        """Fit on features (n, d) and numbers (n,); validation rows are ignored."""
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        weights = weights / weights.mean()
        self.offset_ = float(np.average(y, weights=weights))
        self.scale_ = float(np.sqrt(np.average((y - self.offset_) ** 2, weights=weights))) or 1.0
        self._mean, self._deviation = measure_columns(np.asarray(X, np.float64), weights)
        factors = factorise((X - self._mean) / self._deviation, (y[:, None] - self.offset_) / self.scale_, weights)
        self.alpha_ = self._choose(factors, weights, groups)
        self._kernel, self._bias = factors.solve(self.alpha_)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Predicted numbers, (n, 1); the name is that of all heads."""
        standard = ((X - self._mean) / self._deviation) @ self._kernel + self._bias
        return standard * self.scale_ + self.offset_

    def to_layers(self) -> list[keras.layers.Layer]:
        """The fitted layers: features to the standardised number, and that to the number."""
        import keras

        kernel = self._kernel / self._deviation[:, None]
        dense = make_dense(kernel, self._bias - self._mean @ kernel, "logits")
        return [dense, keras.layers.Rescaling(self.scale_, self.offset_, name="value")]

    def summarize(self) -> HeadResult:
        return HeadResult(self.kind, {"alpha": self.alpha_})

    def history(self) -> dict[str, list[float]]:
        """Squared error on left-out rows by strength, as columns."""
        return {"alpha": RidgeHead.strengths.tolist(), "squared_error": self._errors}

    def _choose(self, factors: RidgeFactors, weights: np.ndarray, groups: np.ndarray | None) -> float:
        groups = np.arange(len(weights)) if groups is None else np.asarray(groups)
        folds = min(self.folds, len(np.unique(groups)))
        if folds < 2:
            self._errors = [float("nan")] * len(RidgeHead.strengths)
            return RidgeHead.fallback
        parts = group_kfold(np.zeros(len(weights), np.int64), groups, folds, self.seed)
        outs = [np.flatnonzero(parts == part) for part in range(folds)]
        shares = [1 - weights[out].sum() / weights.sum() for out in outs]  # the same penalty per unit of weight

        def measure(out: np.ndarray, alpha: float) -> float:
            left = factors.targets[out] + factors.offset - factors.leave_out(out, alpha)
            return float(weights[out] @ left[:, 0] ** 2)

        pairs = [(out, share) for out, share in zip(outs, shares, strict=True) if share > 0]
        self._errors = [sum(measure(out, alpha * share) for out, share in pairs) for alpha in RidgeHead.strengths]
        return float(RidgeHead.strengths[int(np.argmin(self._errors))])
