"""Linear heads: a regularised linear map from features to classes."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.mapping.weighting import ClassWeight, weigh_examples

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-6, 2, 17)


class LinearHead(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression; its regularisation is chosen by cross-validation.

    Columns are standardised with the training mean and standard deviation, which `to_layers` folds back into the
    weights. `C` runs upwards over half decades, each fit starting from the last, until the held-out log loss has
    risen twice: stronger regularisation is both cheaper and, on features of a pretrained network, nearly always
    what is needed.

    Args:
        C: Inverse strength of the L2 penalty as in scikit-learn, or "auto".
        folds: Number of folds for "auto"; fewer where a class has fewer examples.
        class_weight: A factor per class, "balanced", or None.
        seed: Seed of the folds.

    Attributes:
        classes_: Class values, shape (k,).
        C_: The strength that was used.
        scores_: Mean held-out log loss by C (empty unless chosen).
        kernel_, bias_: The map from raw features to logits, shapes (d, k) and (k,).
    """

    def __init__(
        self,
        C: float | Literal["auto"] = "auto",
        folds: int = 5,
        class_weight: ClassWeight = None,
        seed: int = 0,
    ):
        self.C = C
        self.folds = folds
        self.class_weight = class_weight
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
        """Fit on features (n, d) and class values (n,).

        Args:
            X: Features.
            y: Class of each row.
            sample_weight: Weight of each row, in the loss and in the choice of C.
            validation: Features, classes and weights that choose C instead of the folds.
            groups: Rows of one group never stand on both sides of a fold.

        Raises:
            ValueError: NaN or infinite features, or fewer than two classes.
        """
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"A head needs two classes or more. Received: {len(self.classes_)} class.")
        weights = weigh_examples(y, sample_weight, self.class_weight)
        mean, scale = _measure_columns(X, weights)
        Z = (X - mean) / scale
        self.scores_: dict[float, float] = {}
        self.C_ = self.C if self.C != "auto" else self._choose(Z, codes, weights, (validation, groups, mean, scale))
        model = _fit_logistic(Z, codes, weights, self.C_)
        kernel, bias = _two_sided(model)
        self.kernel_ = kernel / scale[:, None]
        self.bias_ = bias - mean @ self.kernel_
        return self

    def _choose(self, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray, context: tuple) -> float:
        """Return the C with the lowest weighted log loss on held-out rows."""
        validation, groups, mean, scale = context
        if validation is not None:
            held, held_y, held_weights = validation
            held_codes = np.searchsorted(self.classes_, held_y)
            parts = [(Z, codes, weights, (held - mean) / scale, held_codes, held_weights)]
        else:
            parts = [
                (Z[fit], codes[fit], weights[fit], Z[held], codes[held], weights[held])
                for fit, held in _make_folds(codes, self.folds, self.seed, groups)
            ]
        if not parts:
            logger.warning("A class has a single example: C cannot be chosen and is 0.01.")
            return 0.01
        paths = [_LossPath(part, len(self.classes_)) for part in parts]
        with ExitStack() as stack:
            # one thread per fold: BLAS threads that wait for each other cost more than such small products
            stack.enter_context(threadpool_limits(1))
            pool = stack.enter_context(ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)))
            advance = stack.enter_context(progress.track("Fitting the head", len(STRENGTHS), "strengths"))
            for C in STRENGTHS:
                losses = list(pool.map(lambda path, C=C: path.step(C), paths))
                self.scores_[float(C)] = float(np.mean(losses))
                advance(1)
                if _has_risen_twice(list(self.scores_.values())):
                    break
            advance(len(STRENGTHS) - len(self.scores_))
        return min(self.scores_, key=self.scores_.__getitem__)

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return logits, shape (n, k); for two classes their difference, shape (n,), as scikit-learn does."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities, shape (n, k)."""
        logits = self._logits(X)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the most probable class of each row, shape (n,)."""
        check_is_fitted(self)
        return self.classes_[self._logits(X).argmax(axis=1)]

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return the map from raw features to logits, with weights set, and the softmax to probabilities."""
        import keras

        check_is_fitted(self)
        dense = keras.layers.Dense(len(self.classes_), name="logits")
        dense.build((None, len(self.kernel_)))
        dense.set_weights([self.kernel_, self.bias_])
        return [dense, keras.layers.Activation("softmax", name="probabilities")]

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        return {"kind": "linear", "C": self.C_}

    def history(self) -> dict[str, list[float]]:
        """Return the held-out log loss by strength, as columns; empty where C was given."""
        return {"C": list(self.scores_), "held_out_log_loss": list(self.scores_.values())}

    def _logits(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=(np.float32, np.float64))
        return X @ self.kernel_ + self.bias_


def _measure_columns(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean and standard deviation of each column; constant columns get a deviation of 1."""
    mean = np.average(X, axis=0, weights=weights).astype(X.dtype)
    scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights)).astype(X.dtype)
    scale[scale <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    return mean, scale


class _LossPath:
    """Fits one fold for rising C, each time from the last solution, and measures the held-out loss."""

    def __init__(self, part: tuple[np.ndarray, ...], classes: int):
        self.part, self.labels = part, np.arange(classes)
        self.model = LogisticRegression(max_iter=500, tol=1e-4, warm_start=True)

    def step(self, C: float) -> float:
        X, y, weights, held_X, held_y, held_weights = self.part
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # on the way; the final fit says it
            self.model.set_params(C=C).fit(X, y, sample_weight=weights)
        return log_loss(held_y, self.model.predict_proba(held_X), sample_weight=held_weights, labels=self.labels)


def _fit_logistic(X: np.ndarray, y: np.ndarray, weights: np.ndarray, C: float) -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=2000, tol=1e-5).fit(X, y, sample_weight=weights)


def _two_sided(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel (d, k) and bias (k,); scikit-learn keeps one row for two classes, a softmax wants two."""
    kernel, bias = model.coef_.T, model.intercept_
    if kernel.shape[1] == 1:
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.concatenate([-bias / 2, bias / 2])
    return kernel, bias


def _make_folds(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None) -> list[tuple]:
    """Return stratified folds in which every class can be learned; none if a class has one example."""
    folds = min(folds, int(np.bincount(codes).min()))
    if groups is not None:
        folds = min(folds, len(np.unique(groups)))
    if folds < 2:
        return []
    if groups is None:
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes))
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(codes, codes, groups)
    return [(fit, held) for fit, held in parts if len(held) and len(np.unique(codes[fit])) == codes.max() + 1]


def _has_risen_twice(scores: list[float]) -> bool:
    return len(scores) > 2 and scores[-1] > scores[-2] > scores[-3]
