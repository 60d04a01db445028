"""What heads on vectors share: scikit-learn's manners, held-out choice of a strength, calibrated scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from tlkeras.heads.calibration import calibrate, measure_loss
from tlkeras.heads.class_weights import ClassWeight, compute_sample_weights
from tlkeras.heads.link_functions import LinkFunction, infer_link
from tlkeras.heads.scaling import AffineTransform, fit_standardizer

if TYPE_CHECKING:
    import keras


class LabelledFeatures(NamedTuple):
    """What a head is fitted on, or measured on.

    Attributes:
        X: Features (n, d).
        codes: As the link codes them, (n,) or (n, k).
        weights: (n,).
    """

    X: np.ndarray
    codes: np.ndarray
    weights: np.ndarray

    def take(self, chosen: np.ndarray) -> LabelledFeatures:
        """Return some of the rows."""
        return LabelledFeatures(self.X[chosen], self.codes[chosen], self.weights[chosen])


class Fold(NamedTuple):
    """Positions of the rows that are fitted, and rows that are held out."""

    fit: np.ndarray
    held: LabelledFeatures


class VectorHead(ClassifierMixin, BaseEstimator):
    """A head that answers by logits of a row's features; subclasses give `_fit`, `_logits` and `to_layers`.

    Attributes:
        eats: What it is fitted on: "vector" for rows (n, d), "map" for rows (n, height, width, channels).
        labels: Whether rows can have several labels.
        classes_: Class values, (k,); with several labels their numbers.
    """

    kind: ClassVar[str]
    eats: ClassVar[Literal["vector", "map"]] = "vector"
    labels: ClassVar[bool] = True
    class_weight: ClassWeight = None
    scores_: Mapping[float, float]

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        groups: np.ndarray | None = None,
    ) -> Any:
        """Fit on features (n, d) and class values (n,), or indicators (n, k) of k > 1 labels.

        Args:
            X: Features.
            y: Class of each row, or 1 for each label that it has and 0 for the others.
            sample_weight: Weight of each row, in the loss and in all that is chosen.
            validation: Features, classes and weights to choose and calibrate by, instead of folds.
            groups: Rows of one group never stand on both sides of a fold.

        Raises:
            ValueError: NaN or infinite features, fewer than two classes, or several labels where the head has none.
        """
        self.link_: LinkFunction = infer_link(y)
        if self.link_.several and not self.labels:
            raise ValueError(f"A {self.kind} head tells classes apart: a row cannot have several labels.")
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64), multi_output=self.link_.several)
        self.classes_, codes = self.link_.code(y)
        if self.link_.several and self.class_weight is not None:
            raise ValueError(f"A row with several labels has no weight of its class. Received: {self.class_weight}.")
        rows = LabelledFeatures(X, codes, compute_sample_weights(y, sample_weight, self.class_weight))
        held = None
        if validation is not None:
            held = LabelledFeatures(
                validation[0], self.link_.recode(validation[1], self.classes_), np.asarray(validation[2])
            )
        with threadpool_limits(1):  # BLAS threads that wait for each other cost more than such small products
            self._fit(rows, held, groups)
        return self

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        raise NotImplementedError

    def _logits(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return logits, shape (n, k); for two classes their difference, shape (n,), as scikit-learn does."""
        logits = self._compute_logits(X)
        return self.link_.margins(logits)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probabilities of classes or labels, shape (n, k)."""
        logits = self._compute_logits(X)
        return self.link_.probabilities(logits)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the most probable class of each row, shape (n,), or the indicators of its labels, (n, k)."""
        probabilities = self.predict_proba(X)
        return self.link_.decide(probabilities, self.classes_)

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        return {"kind": self.kind}

    def history(self) -> dict[str, list[float]]:
        """Return the held-out log loss by strength, as columns; empty where nothing was to choose."""
        return {}

    def _compute_logits(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return self._logits(validate_data(self, X, reset=False, dtype=(np.float32, np.float64)))


class LinearClassifierHead(VectorHead):
    """A head whose logits are linear in the raw features.

    Attributes:
        kernel_, bias_: The map from raw features to logits, shapes (d, k) and (k,).
    """

    kernel_: np.ndarray
    bias_: np.ndarray

    def _logits(self, X: np.ndarray) -> np.ndarray:
        return X @ self.kernel_ + self.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return the map from raw features to logits, with weights set, and the one from these to probabilities."""
        check_is_fitted(self)
        return finish_layers(self.kernel_, self.bias_, self.link_)


class CalibratedLinearHead(LinearClassifierHead):
    """A linear head of one strength, whose scores become probabilities by a scale and shifts fitted on held-out rows.

    The strength is the one whose calibrated held-out scores have the least log loss. Subclasses give `_solve`, and
    `_hold_out` where one factorisation serves many strengths.

    Attributes:
        strength_name: The parameter that is the strength; none where nothing is to choose.
        strengths: What "auto" chooses from, from the strongest regularisation to the weakest.
        strength_: The one used.
        scores_: Held-out log loss by strength.
    """

    strength_name: ClassVar[str | None] = None
    strengths: ClassVar[np.ndarray] = np.array([np.nan])
    fallback: ClassVar[float] = np.nan
    standardize: bool = True
    folds: int = 5
    seed: int = 0

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        frame = self._make_frame(rows)
        rows = rows._replace(X=frame.apply(rows.X))
        held = None if held is None else held._replace(X=frame.apply(held.X))
        parts = list_folds(self.link_, rows, held, self.folds, self.seed, groups)
        best = self._choose(rows, parts)
        kernel, bias = self._solve(rows, self.strength_, None)
        if best is None:  # a class with a single example: nothing can be held out
            best = LabelledFeatures(rows.X @ kernel + bias, rows.codes, rows.weights)
        scale, shift = calibrate(self.link_, *best)
        kernel, bias = kernel * scale, bias * scale + shift
        if not self.link_.several:  # what all classes have in common says nothing, and would cost float32 its digits
            kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()
        self.kernel_, self.bias_ = frame.unfold(kernel, bias)

    def _make_frame(self, rows: LabelledFeatures) -> AffineTransform:
        return fit_standardizer(rows.X, rows.weights, by_column=self.standardize)

    def _choose(self, rows: LabelledFeatures, parts: list[Fold]) -> LabelledFeatures | None:
        """Set the strength and return its scores on all held-out rows; None where there are none."""
        asked = getattr(self, self.strength_name) if self.strength_name else np.nan
        strengths = self.strengths if asked == "auto" else np.array([asked])
        self.scores_: dict[float, float] = {}
        self.strength_ = self.fallback if asked == "auto" else asked
        if not parts:
            return None
        codes = np.concatenate([part.held.codes for part in parts])
        weights = np.concatenate([part.held.weights for part in parts])
        if not weights.any():
            return None
        best: LabelledFeatures | None = None
        for strength, scores in self._hold_out(rows, parts, strengths):
            scale, shift = calibrate(self.link_, scores, codes, weights)
            self.scores_[float(strength)] = measure_loss(self.link_, scores * scale + shift, codes, weights)
            if best is None or self.scores_[float(strength)] <= min(self.scores_.values()):
                self.strength_, best = float(strength), LabelledFeatures(scores, codes, weights)
            if has_risen_twice(list(self.scores_.values())):
                break
        return best

    def _hold_out(
        self, rows: LabelledFeatures, parts: list[Fold], strengths: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Yield each strength with the scores of all held-out rows, part after part, (m, k)."""
        starts: list[Any] = [None] * len(parts)
        with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
            for strength in strengths:
                solve = partial(self._solve_part, rows, strength)
                starts = list(pool.map(solve, parts, starts))
                yield (
                    strength,
                    np.concatenate(
                        [part.held.X @ kernel + bias for part, (kernel, bias) in zip(parts, starts, strict=True)]
                    ),
                )

    def _solve_part(self, rows: LabelledFeatures, strength: float, part: Fold, start: tuple | None) -> tuple:
        return self._solve(rows.take(part.fit), strength, start)

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel (d, k) and bias (k,) from features in the frame to scores."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        return {"kind": self.kind, **({self.strength_name: self.strength_} if self.strength_name else {})}

    def history(self) -> dict[str, list[float]]:
        """Return the held-out log loss by strength, as columns; empty where nothing was to choose."""
        if self.strength_name is None:
            return {}
        return {self.strength_name: list(self.scores_), "held_out_log_loss": list(self.scores_.values())}


def finish_layers(kernel: np.ndarray, bias: np.ndarray, link: LinkFunction) -> list[keras.layers.Layer]:
    """Return the two layers that end every head: `logits`, with weights set, and `probabilities`."""
    import keras

    return [make_dense(kernel, bias, "logits"), keras.layers.Activation(link.activation, name="probabilities")]


def make_dense(matrix: np.ndarray, offset: np.ndarray, name: str = "aligned") -> keras.layers.Dense:
    """Return x @ matrix + offset as a Dense layer, built, from float (d, k) and (k,)."""
    import keras

    dense = keras.layers.Dense(matrix.shape[1], name=name)
    dense.build((None, matrix.shape[0]))
    dense.set_weights([matrix, offset])
    return dense


def list_folds(
    link: LinkFunction,
    rows: LabelledFeatures,
    held: LabelledFeatures | None,
    folds: int,
    seed: int,
    groups: np.ndarray | None,
) -> list[Fold]:
    """Return what is fitted and what is held out; rows that are given to validate by are the only part."""
    if held is not None:
        return [Fold(np.arange(len(rows.codes)), held)]
    strata = link.group_rows(rows.codes)
    return [Fold(fit, rows.take(out)) for fit, out in make_folds(strata, folds, seed, groups)]


def make_folds(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None) -> list[tuple]:
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


def has_risen_twice(scores: list[float]) -> bool:
    """Return whether the last two steps both went up."""
    return len(scores) > 2 and scores[-1] > scores[-2] > scores[-3]
