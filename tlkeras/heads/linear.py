"""Linear heads: a regularised linear map from features to classes."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.heads.base import LinearClassifierHead, has_risen_twice, make_folds
from tlkeras.heads.class_weights import ClassWeight, compute_sample_weights
from tlkeras.heads.link_functions import LinkFunction, infer_link
from tlkeras.heads.scaling import fit_standardizer

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-6, 2, 17)


class LinearHead(LinearClassifierHead):
    """Logistic regression, multinomial or one per label; its regularisation is chosen by cross-validation.

    Columns are standardised with the training mean and standard deviation, which `to_layers` folds back into the
    weights. `C` runs upwards over half decades, each fit starting from the last, until the held-out log loss has
    risen twice: stronger regularisation is both cheaper and, on features of a pretrained network, nearly always
    what is needed.

    Args:
        C: Inverse strength of the L2 penalty as in scikit-learn, or "auto".
        folds: Number of folds for "auto"; fewer where a class has fewer examples.
        class_weight: A factor per class, "balanced", or None; with several labels, of the yes and no of each.
        standardize: Scale each column by its own deviation; else all by one.
        seed: Seed of the folds.

    Attributes:
        classes_: Class values, shape (k,); with several labels their numbers.
        C_: The strength that was used, for all labels alike.
        scores_: Mean held-out log loss by C, over folds and labels (empty unless chosen).
        kernel_, bias_: The map from raw features to logits, shapes (d, k) and (k,).
    """

    kind = "linear"
    strength_name = "C"

    def __init__(
        self,
        C: float | Literal["auto"] = "auto",
        folds: int = 5,
        class_weight: ClassWeight = None,
        standardize: bool = True,
        seed: int = 0,
    ):
        self.C = C
        self.folds = folds
        self.class_weight = class_weight
        self.standardize = standardize
        self.seed = seed

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        groups: np.ndarray | None = None,
    ) -> LinearHead:
        """Fit on features (n, d) and class values (n,), or indicators (n, k) of k > 1 labels.

        Args:
            X: Features.
            y: Class of each row, or 1 for each label that it has and 0 for the others.
            sample_weight: Weight of each row, in the loss and in the choice of C.
            validation: Features, classes and weights that choose C instead of the folds.
            groups: Rows of one group never stand on both sides of a fold.

        Raises:
            ValueError: NaN or infinite features, fewer than two classes, or a label that all rows have or lack.
        """
        self.link_: LinkFunction = infer_link(y)
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64), multi_output=self.link_.several)
        self.classes_, codes = self.link_.code(y)
        weights = [compute_sample_weights(of, sample_weight, self.class_weight) for of in self.link_.list_questions(y)]
        questions = list(zip(self.link_.list_questions(codes), weights, strict=True))
        frame = fit_standardizer(X, np.mean(weights, axis=0), by_column=self.standardize)
        Z = frame.apply(X)
        self.scores_: dict[float, float] = {}
        if self.C == "auto":
            if validation is not None:
                validation = (frame.apply(validation[0]), *validation[1:])
            self.C_ = self._choose(self._list_trials(Z, questions, validation, groups))
        else:
            self.C_ = self.C
        kernel, bias = self.link_.merge([_fit_logistic(Z, of, weighed, self.C_) for of, weighed in questions])
        self.kernel_, self.bias_ = frame.unfold(kernel, bias)
        return self

    def _list_trials(
        self,
        Z: np.ndarray,
        questions: list[tuple[np.ndarray, np.ndarray]],
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
        groups: np.ndarray | None,
    ) -> list[tuple[_Rows, _Rows]]:
        """Return, for each question and fold, what is fitted and what is held out."""
        if validation is not None:
            held, y, held_weights = validation
            predictions = self.link_.list_questions(self.link_.recode(y, self.classes_))
            return [
                (_Rows(Z, *question), _Rows(held, answer, held_weights))
                for question, answer in zip(questions, predictions, strict=True)
            ]
        return [
            (_Rows(Z, *question, fit), _Rows(Z, *question, held))
            for question in questions
            for fit, held in make_folds(question[0], self.folds, self.seed, groups)
        ]

    def _choose(self, trials: list[tuple[_Rows, _Rows]]) -> float:
        """Return the C with the lowest weighted log loss on held-out rows."""
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

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        return {"kind": "linear", "C": self.C_}

    def history(self) -> dict[str, list[float]]:
        """Return the held-out log loss by strength, as columns; empty where C was given."""
        return {"C": list(self.scores_), "held_out_log_loss": list(self.scores_.values())}


class _Rows(NamedTuple):
    """Some rows of what a regression sees; they are copied only when it sees them, as there can be many regressions."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    chosen: np.ndarray | slice = slice(None)

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.X[self.chosen], self.y[self.chosen], self.weights[self.chosen]


class _LossPath:
    """Fits one question on one fold for rising C, each time from the last solution, and measures the held-out loss."""

    def __init__(self, fit: _Rows, held: _Rows):
        self.fit, self.held, self.labels = fit, held, np.unique(fit.y)
        self.model = LogisticRegression(max_iter=500, tol=1e-4, warm_start=True)

    def step(self, C: float) -> float:
        (X, y, weights), (held_X, held_y, held_weights) = self.fit.take(), self.held.take()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # on the way; the final fit says it
            self.model.set_params(C=C).fit(X, y, sample_weight=weights)
        return log_loss(held_y, self.model.predict_proba(held_X), sample_weight=held_weights, labels=self.labels)


def _fit_logistic(X: np.ndarray, y: np.ndarray, weights: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-5).fit(X, y, sample_weight=weights)
    return model.coef_, model.intercept_
