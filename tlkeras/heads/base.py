"""What heads share: scikit-learn's interface, a strength chosen on held-out rows, calibrated scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from tlkeras.heads.calibration import calibrate, measure_loss
from tlkeras.heads.class_weights import ClassWeight, compute_sample_weights
from tlkeras.heads.link_functions import LinkFunction, infer_link
from tlkeras.heads.scaling import fit_standardizer
from tlkeras.results import Result, to_plain

if TYPE_CHECKING:
    import keras

LabelledRows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features (n, d) or maps (n, h, w, c), class values (n,) or indicators (n, k), and weights (n,)."""


class LabelledFeatures(NamedTuple):
    """Rows that a head is fitted or measured on.

    Attributes:
        X: Features (n, d), or maps (n, h, w, c).
        codes: Targets as the link encodes them, (n,) or (n, k).
        weights: (n,).
    """

    X: np.ndarray
    codes: np.ndarray
    weights: np.ndarray

    def take(self, chosen: np.ndarray) -> LabelledFeatures:
        """Some of the rows."""
        return LabelledFeatures(self.X[chosen], self.codes[chosen], self.weights[chosen])


class Fold(NamedTuple):
    """Positions of the rows to fit on, and the rows that are held out."""

    fit: np.ndarray
    held: LabelledFeatures


@dataclass(frozen=True)
class HeadResult(Result):
    """What a fit chose.

    Attributes:
        kind: The head's word in a recipe.
        chosen: Values by name, such as the strength, the number of epochs or of columns.
    """

    kind: str
    chosen: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The kind and the chosen values in one mapping, as values that JSON has."""
        return {"kind": self.kind, **to_plain(self.chosen)}


class BaseHead(ClassifierMixin, BaseEstimator):
    """A head as a scikit-learn classifier; subclasses give `_fit`, `_predict_proba` and `to_layers`.

    Heads are dataclasses, whose fields are the parameters that scikit-learn sees. Their types and defaults are those of
    the recipe's section `head` (`tlkeras.config.schema.heads`), which validates them.

    Attributes:
        kind: The head's word in a recipe.
        input_kind: What it is fitted on: "vector" for rows (n, d), "map" for rows (n, height, width, channels).
        supports_multilabel: Whether a row can have several labels.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        classes_: Class values, (k,); with several labels their numbers.
        scores_: Held-out log loss by strength; empty where none was chosen.
    """

    kind: ClassVar[str]
    input_kind: ClassVar[Literal["vector", "map"]] = "vector"
    supports_multilabel: ClassVar[bool] = True
    class_weight: ClassWeight = None
    _dtypes: ClassVar[Any] = (np.float32, np.float64)
    _one_thread: ClassVar[bool] = False
    """Whether BLAS has one thread in a fit: threads that wait for each other cost more than such small products."""
    scores_: dict[float, float]

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: LabelledRows | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on features (n, d), or maps (n, h, w, c), and class values (n,), or indicators (n, k) of k > 1 labels.

        Args:
            X: Features.
            y: Class of each row, or 1 for each label that it has and 0 for the others.
            sample_weight: Weight of each row, in the loss and in every choice.
            validation: Rows to choose, calibrate or stop by, instead of folds or of a part of the training rows.
            groups: Group of each row, (n,); no group is divided between a fold and the rest.

        Raises:
            ValueError: NaN or infinite features, fewer than two classes, a label that all rows have or lack, several
                labels where the head does not support them, or with weights of classes.
        """
        self.link_: LinkFunction = infer_link(y)
        if self.link_.several and not self.supports_multilabel:
            raise ValueError(f"A {self.kind} head separates classes: a row cannot have several labels.")
        X, y = self._validate_fit(X, y)
        self.classes_, codes = self.link_.encode(y)
        rows, held = LabelledFeatures(X, codes, self._weigh(y, sample_weight)), None
        if validation is not None:
            held_X, held_y, held_weights = validation
            held = LabelledFeatures(held_X, self.link_.transform(held_y, self.classes_), np.asarray(held_weights))
        self.scores_ = {}
        with threadpool_limits(1) if self._one_thread else nullcontext():
            self._fit(rows, held, groups)
        return self

    def _validate_fit(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and targets, checked; the number of columns is remembered."""
        return validate_data(self, X, y, dtype=self._dtypes, multi_output=self.link_.several)

    def _validate(self, X: np.ndarray) -> np.ndarray:
        """Features, checked against those of the fit."""
        return validate_data(self, X, reset=False, dtype=self._dtypes)

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """Weight of each row, float64 (n,)."""
        if self.link_.several and self.class_weight is not None:
            raise ValueError(f"A row with several labels has no weight of its class. Received: {self.class_weight}.")
        return compute_sample_weights(y, sample_weight, self.class_weight)

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        raise NotImplementedError

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities (n, k) of validated features."""
        raise NotImplementedError

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of classes or labels, (n, k)."""
        check_is_fitted(self)
        return self._predict_proba(self._validate(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each row, (n,), or the indicators of its labels, (n, k)."""
        probabilities = self.predict_proba(X)
        return self.link_.decide(probabilities, self.classes_)

    def to_layers(self) -> list[keras.layers.Layer]:
        """The fitted layers, raw features to probabilities."""
        raise NotImplementedError

    def summarize(self) -> HeadResult:
        """What the fit chose."""
        return HeadResult(self.kind, {})

    def history(self) -> dict[str, list[float]]:
        """Columns of equal length: losses by epoch or by strength; none where nothing was chosen."""
        return {}


@dataclass(eq=False, repr=False, kw_only=True)
class VectorHead(BaseHead):
    """A head with logits on features (n, d); subclasses give `_logits`.

    Args:
        folds: Number of folds to choose and calibrate by; fewer where a class has fewer rows.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        seed: Seed of the folds.
    """

    folds: int = 5
    class_weight: ClassWeight = None
    seed: int = 0

    _one_thread = True

    def _logits(self, X: np.ndarray) -> np.ndarray:
        """Logits (n, k) of validated features."""
        raise NotImplementedError

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.link_.probabilities(self._logits(X))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Logits, (n, k); for two classes their difference, (n,), as scikit-learn has it."""
        check_is_fitted(self)
        return self.link_.decision_function(self._logits(self._validate(X)))


@dataclass(eq=False, repr=False, kw_only=True)
class LinearClassifierHead(VectorHead):
    """A head whose logits are linear in the raw features; subclasses give `_fit_map`.

    Args:
        standardize: Scale each column by its own standard deviation; else all by one number.

    Attributes:
        strength_name: The parameter that is the strength of the regularisation; None where there is none.
        strength_: The strength that was used.
        kernel_, bias_: The map from raw features to logits, (d, k) and (k,).
    """

    standardize: bool = True

    strength_name: ClassVar[str | None] = None

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        frame = fit_standardizer(rows.X, self._column_weights(rows), by_column=self.standardize)
        rows = rows._replace(X=frame.apply(rows.X))
        held = None if held is None else held._replace(X=frame.apply(held.X))
        self.kernel_, self.bias_ = frame.unfold(*self._fit_map(rows, held, groups))

    def _column_weights(self, rows: LabelledFeatures) -> np.ndarray:
        """Weights of the rows in the mean and deviation of the columns, (n,)."""
        return rows.weights

    def _fit_map(
        self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (d, k) and bias (k,) from standardised features to logits."""
        raise NotImplementedError

    def _logits(self, X: np.ndarray) -> np.ndarray:
        return X @ self.kernel_ + self.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        """The map from raw features to logits, and that to probabilities."""
        check_is_fitted(self)
        return finish_layers(self.kernel_, self.bias_, self.link_)

    def summarize(self) -> HeadResult:
        """The strength that was used."""
        return HeadResult(self.kind, {self.strength_name: self.strength_} if self.strength_name else {})

    def history(self) -> dict[str, list[float]]:
        """The held-out log loss by strength, as columns; empty where nothing was to choose."""
        if self.strength_name is None:
            return {}
        return {self.strength_name: list(self.scores_), "held_out_log_loss": list(self.scores_.values())}


class CalibratedLinearHead(LinearClassifierHead):
    """A linear head of one strength, whose scores become probabilities by a scale and shifts fitted on held-out rows.

    The strength is the one whose calibrated held-out scores have the least log loss. Subclasses give `_solve`, and
    `_held_out_scores` where one factorisation serves many strengths.

    Attributes:
        strengths: What "auto" chooses from, from the strongest regularisation to the weakest.
        fallback: The strength where no row can be held out.
    """

    strengths: ClassVar[np.ndarray] = np.array([np.nan])
    fallback: ClassVar[float] = np.nan

    def _fit_map(
        self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        best = self._choose(rows, list_folds(self.link_, rows, held, self.folds, self.seed, groups))
        kernel, bias = self._solve(rows, self.strength_, None)
        if best is None:  # a class with a single example: nothing can be held out
            best = LabelledFeatures(rows.X @ kernel + bias, rows.codes, rows.weights)
        scale, shift = calibrate(self.link_, *best)
        kernel, bias = kernel * scale, bias * scale + shift
        if not self.link_.several:  # what all classes have in common cancels out, and would cost float32 its digits
            kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()
        return kernel, bias

    def _choose(self, rows: LabelledFeatures, parts: list[Fold]) -> LabelledFeatures | None:
        """Set the strength and return its scores on all held-out rows; None where there are none."""
        given = getattr(self, self.strength_name) if self.strength_name else np.nan
        strengths = self.strengths if given == "auto" else np.array([given])
        self.strength_ = self.fallback if given == "auto" else given
        if not parts:
            return None
        codes = np.concatenate([part.held.codes for part in parts])
        weights = np.concatenate([part.held.weights for part in parts])
        if not weights.any():
            return None
        best: LabelledFeatures | None = None
        for strength, scores in self._held_out_scores(rows, parts, strengths):
            scale, shift = calibrate(self.link_, scores, codes, weights)
            self.scores_[float(strength)] = measure_loss(self.link_, scores * scale + shift, codes, weights)
            if best is None or self.scores_[float(strength)] <= min(self.scores_.values()):
                self.strength_, best = float(strength), LabelledFeatures(scores, codes, weights)
            if has_risen_twice(list(self.scores_.values())):
                break
        return best

    def _held_out_scores(
        self, rows: LabelledFeatures, parts: list[Fold], strengths: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Yield each strength with the scores of all held-out rows, part after part, (m, k)."""
        starts: list[Any] = [None] * len(parts)
        with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
            for strength in strengths:
                starts = list(pool.map(partial(self._solve_part, rows, strength), parts, starts))
                scores = [part.held.X @ kernel + bias for part, (kernel, bias) in zip(parts, starts, strict=True)]
                yield strength, np.concatenate(scores)

    def _solve_part(self, rows: LabelledFeatures, strength: float, part: Fold, start: tuple | None) -> tuple:
        return self._solve(rows.take(part.fit), strength, start)

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (d, k) and bias (k,) from standardised features to scores; `start` is a solution to begin from."""
        raise NotImplementedError


def finish_layers(kernel: np.ndarray, bias: np.ndarray, link: LinkFunction) -> list[keras.layers.Layer]:
    """The two layers that end every head: `logits`, with weights set, and `probabilities`."""
    import keras

    return [make_dense(kernel, bias, "logits"), keras.layers.Activation(link.activation, name="probabilities")]


def make_dense(matrix: np.ndarray, offset: np.ndarray, name: str = "aligned") -> keras.layers.Dense:
    """The map x @ matrix + offset as a built Dense layer, from float (d, k) and (k,)."""
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
    """The folds of rows; validation rows, where they are given, are the only fold."""
    if held is not None:
        return [Fold(np.arange(len(rows.codes)), held)]
    strata = link.group_rows(rows.codes)
    return [Fold(fit, rows.take(out)) for fit, out in make_folds(strata, folds, seed, groups)]


def make_folds(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None) -> list[tuple]:
    """Stratified folds, each with every class in its rest, as positions (fit, held); none if a class has one row."""
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
    """Whether the last two steps both went up."""
    return len(scores) > 2 and scores[-1] > scores[-2] > scores[-3]
