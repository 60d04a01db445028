"""Late fusion: a head for each part of the features, and two ways to combine their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logit

from tlkeras.heads.folds import cross_val_predict
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.link_functions import infer_link

_CERTAIN = 1e-4  # probabilities are clipped to this distance from 0 and 1 before their odds are taken


class LateFusion:
    """Heads on parts of the features, combined by the mean of their calibrated probabilities and by stacking.

    Stacking (Wolpert, 1992) is a logistic regression on the log odds that heads predict for rows that they were not
    fitted on; the heads that predict later are fitted on all rows.

    Args:
        make_head: Makes an unfitted head; across domains one that has `on_source`, as `DomainHead` has.
        widths: Columns of each part, in order.
        folds: Folds of the rows that stacking is fitted across.
        seed: Of the folds.
    """

    def __init__(self, make_head: Callable[[], Any], widths: Sequence[int], folds: int = 5, seed: int = 0):
        self.make_head, self.widths = make_head, tuple(widths)
        self.folds, self.seed = folds, seed

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        target: np.ndarray | None = None,
    ) -> LateFusion:
        """Fit on features (n, d) and class values (n,), or indicators (n, k).

        With a target, features of another domain (m, d), each part is adapted by itself, stacking is learned on rows of
        the source, and predictions are for rows of the target. ValueError if the widths are not those of the features,
        there are fewer rows or groups than folds, or a fold leaves fewer than two classes.
        """
        parts = self._divide(X)
        makers = [self._adapt(part) for part in (self._divide(target) if target is not None else [None] * len(parts))]
        self.several_ = infer_link(y).several
        classes = np.arange(y.shape[1]) if self.several_ else np.unique(y)
        codes = y if self.several_ else np.searchsorted(classes, y)
        predicted = [
            cross_val_predict(make, part, codes, sample_weight, folds=self.folds, groups=groups, seed=self.seed)
            for make, part in zip(makers, parts, strict=True)
        ]
        self.stack_ = LinearHead(folds=self.folds, seed=self.seed).fit(
            self._join(predicted), y, sample_weight, groups=groups
        )
        fitted = [make().fit(part, y, sample_weight, groups=groups) for make, part in zip(makers, parts, strict=True)]
        self.heads_ = fitted if target is None else [head.head for head in fitted]
        return self

    def predict(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities (n, k) by rule, "mean" and "stacking"."""
        predicted = [head.predict_proba(part) for head, part in zip(self.heads_, self._divide(X), strict=True)]
        return {"mean": np.mean(predicted, axis=0), "stacking": self.stack_.predict_proba(self._join(predicted))}

    def _adapt(self, target: np.ndarray | None) -> Callable[[], Any]:
        return self.make_head if target is None else lambda: self.make_head().on_source(target)

    def _divide(self, X: np.ndarray) -> list[np.ndarray]:
        if sum(self.widths) != X.shape[1]:
            raise ValueError(f"Parts of widths {self.widths} do not add up to {X.shape[1]} features.")
        return np.split(X, np.cumsum(self.widths)[:-1], axis=1)

    def _join(self, predicted: Sequence[np.ndarray]) -> np.ndarray:
        """Log odds of all heads, concatenated; of two classes those of the second are enough."""
        columns = [one[:, 1:] if not self.several_ and one.shape[1] == 2 else one for one in predicted]
        return logit(np.clip(np.hstack(columns), _CERTAIN, 1 - _CERTAIN))


def fit_late_fusion(
    make_head: Callable[[], Any], widths: Sequence[int], training: Mapping[str, Any], X: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Probabilities of rows (m, d) by rule, (m, k); empty where late fusion cannot be fitted.

    `training` has the arguments of `LateFusion.fit`; the others are those of `LateFusion`.
    """
    try:
        return LateFusion(make_head, widths, seed=seed).fit(**training).predict(X)
    except ValueError:  # a class has too few rows for folds
        return {}
