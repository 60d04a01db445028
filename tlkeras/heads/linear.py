"""Logistic regression: a regularised linear map from features to classes."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.config.schema.heads import AutoStrength
from tlkeras.heads.base import LabelledFeatures, LinearClassifierHead, has_risen_twice, make_folds
from tlkeras.heads.class_weights import compute_sample_weights

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-6, 2, 17)


@dataclass(eq=False, repr=False)
class LinearHead(LinearClassifierHead):
    """Logistic regression, multinomial or one per label; its regularisation is chosen by cross-validation.

    Columns are standardised with the training mean and standard deviation, which `to_layers` folds back into the
    weights. `C` runs upwards over half decades, each fit starting from the last, until the held-out log loss has
    risen twice: stronger regularisation is both cheaper and, on features of a pretrained network, nearly always
    what is needed. With several labels, `class_weight` is of the yes and no of each.

    Args:
        C: Inverse strength of the L2 penalty as in scikit-learn, or "auto".

    Attributes:
        strength_: The C that was used, for all labels alike.
        scores_: Mean held-out log loss by C, over folds and labels (empty unless chosen).
    """

    C: AutoStrength = "auto"

    kind = "linear"
    strength_name = "C"
    _one_thread = False

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """Weight of each row, float64 (n,); with several labels without those of classes."""
        return compute_sample_weights(y, sample_weight, None if self.link_.several else self.class_weight)

    def _column_weights(self, rows: LabelledFeatures) -> np.ndarray:
        return np.mean([weights for _, weights in self._subproblems(rows)], axis=0)

    def _subproblems(self, rows: LabelledFeatures) -> list[tuple[np.ndarray, np.ndarray]]:
        """Targets and weights, (n,) each, of the logistic regressions: one of all classes, or one per label."""
        if not self.link_.several:
            return [(rows.codes, rows.weights)]
        columns = self.link_.subproblems(rows.codes)
        return [(column, compute_sample_weights(column, rows.weights, self.class_weight)) for column in columns]

    def _fit_map(
        self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        problems = self._subproblems(rows)
        C = self._choose(self._list_trials(rows.X, problems, held, groups)) if self.C == "auto" else self.C
        self.strength_ = C
        return self.link_.merge_coefficients([_fit_logistic(rows.X, y, weights, C) for y, weights in problems])

    def _list_trials(
        self,
        X: np.ndarray,
        problems: list[tuple[np.ndarray, np.ndarray]],
        held: LabelledFeatures | None,
        groups: np.ndarray | None,
    ) -> list[tuple[_Rows, _Rows]]:
        """The rows to fit and those held out, for each regression and fold."""
        if held is not None:
            held_codes = self.link_.subproblems(held.codes)
            return [
                (_Rows(X, *problem), _Rows(held.X, codes, held.weights))
                for problem, codes in zip(problems, held_codes, strict=True)
            ]
        return [
            (_Rows(X, *problem, fit), _Rows(X, *problem, out))
            for problem in problems
            for fit, out in make_folds(problem[0], self.folds, self.seed, groups)
        ]

    def _choose(self, trials: list[tuple[_Rows, _Rows]]) -> float:
        """The C with the lowest weighted log loss on held-out rows."""
        if not trials:
            logger.warning("A class has a single example: C cannot be chosen and is 0.01.")
            return 0.01
        paths = [_LossPath(*trial) for trial in trials]
        with ExitStack() as stack:
            # one thread per fold: BLAS threads that wait for each other cost more than such small products
            stack.enter_context(threadpool_limits(1))
            pool = stack.enter_context(ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)))
            advance = stack.enter_context(progress.progress_bar("Fitting the head", len(STRENGTHS), "strengths"))
            for C in STRENGTHS:
                losses = list(pool.map(lambda path, C=C: path.step(C), paths))
                self.scores_[float(C)] = float(np.mean(losses))
                advance(1)
                if has_risen_twice(list(self.scores_.values())):
                    break
            advance(len(STRENGTHS) - len(self.scores_))
        return min(self.scores_, key=self.scores_.__getitem__)


class _Rows(NamedTuple):
    """Some rows of a regression; they are copied only when it is fitted, as there can be many regressions."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    chosen: np.ndarray | slice = slice(None)

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.X[self.chosen], self.y[self.chosen], self.weights[self.chosen]


class _LossPath:
    """One regression on one fold for rising C, each fit starting from the last solution, and its held-out loss."""

    def __init__(self, fit: _Rows, held: _Rows):
        self.fit, self.held, self.labels = fit, held, np.unique(fit.y)
        self.model = LogisticRegression(max_iter=500, tol=1e-4, warm_start=True)

    def step(self, C: float) -> float:
        (X, y, weights), (held_X, held_y, held_weights) = self.fit.take(), self.held.take()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # only the final fit has to converge
            self.model.set_params(C=C).fit(X, y, sample_weight=weights)
        return log_loss(held_y, self.model.predict_proba(held_X), sample_weight=held_weights, labels=self.labels)


def _fit_logistic(X: np.ndarray, y: np.ndarray, weights: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-5).fit(X, y, sample_weight=weights)
    return model.coef_, model.intercept_
