"""Logistic regression: a regularised linear map from features to classes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tlkeras.config.schema.heads import AutoStrength
from tlkeras.heads.base import LinearClassifierHead
from tlkeras.heads.class_weights import compute_class_factors, compute_sample_weights
from tlkeras.heads.folds import LabelledFeatures
from tlkeras.heads.held_out import Hyperparameters

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-6, 2, 17)


@dataclass(eq=False, repr=False)
class LinearHead(LinearClassifierHead):
    """Logistic regression, multinomial or one per label; its regularisation is chosen by cross-validation.

    Columns are standardised with the training mean and standard deviation, which `to_layers` folds back into the
    weights. `C` runs upwards over half decades, each fit starting from the last, and the one with the least held-out
    log loss is taken. With several labels, `class_weight` is of the yes and no of each.

    Args:
        C: Inverse strength of the L2 penalty as in scikit-learn, or "auto".

    Attributes:
        strength_: The C that was used, for all labels alike.
        scores_: Held-out log loss by C, the mean over labels (empty unless chosen).
    """

    C: AutoStrength = "auto"

    kind = "linear"
    strength_name = "C"
    strengths = STRENGTHS
    fallback = 0.01
    _one_thread = False
    _calibrated = False

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """Weight of each row, float64 (n,); with several labels without those of classes."""
        several = self.link_.several
        weights = compute_sample_weights(y, sample_weight, None if several else self.class_weight)
        # by label, of its no and yes
        self._factors = (
            np.array([compute_class_factors(column, weights, self.class_weight) for column in np.asarray(y).T])
            if several
            else None
        )
        return weights

    def _class_factors(self, y: np.ndarray, sample_weight: np.ndarray | None, held_y: np.ndarray) -> np.ndarray | float:
        return 1.0 if self.link_.several else super()._class_factors(y, sample_weight, held_y)

    def _loss_weights(self, rows: LabelledFeatures) -> np.ndarray:
        if self._factors is None:
            return rows.weights
        return rows.weights[:, None] * self._factors[np.arange(len(self._factors)), rows.codes.astype(int)]

    def _column_weights(self, rows: LabelledFeatures) -> np.ndarray:
        weights = self._loss_weights(rows)
        return weights.mean(axis=1) if weights.ndim == 2 else weights

    def _fall_back(self, candidates: list[Hyperparameters]) -> Hyperparameters:
        if len(candidates) > 1:
            logger.warning("Each class has a single example: C cannot be chosen and is %g.", self.fallback)
        return super()._fall_back(candidates)

    def _solve_path(
        self, rows: LabelledFeatures, strengths: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        codes = self.link_.subproblems(rows.codes)
        weights = self._loss_weights(rows)
        by_problem = [weights] if weights.ndim == 1 else list(weights.T)
        paths = [
            _follow_path(rows.X, *problem, strengths)  # one regression of all classes, or one per label
            for problem in zip(codes, by_problem, strict=True)
        ]
        for solutions in zip(*paths, strict=True):
            yield self.link_.merge_coefficients(list(solutions))


def _follow_path(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray, strengths: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Coefficients and intercepts for rising C, each fit starting from the last; exact where there is only one."""
    if (y == y[0]).all():  # a label that a fold has or lacks throughout
        certain = np.log(len(y) + 1.0) * (1 if y[0] else -1)
        yield from [(np.zeros((1, X.shape[1])), np.array([certain]))] * len(strengths)
        return
    one = len(strengths) == 1
    model = LogisticRegression(max_iter=2000 if one else 500, tol=1e-5 if one else 1e-4, warm_start=True)
    for C in strengths:
        with warnings.catch_warnings():
            if not one:  # only the final fit has to converge
                warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=C).fit(X, y, sample_weight=weights)
        yield model.coef_.copy(), model.intercept_.copy()
