"""What heads share: scikit-learn's interface, a strength chosen on held-out rows, calibrated scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from tlkeras.heads.folds import (
    ClassWeight,
    Fold,
    LabelledFeatures,
    LabelledRows,
    compute_class_factors,
    compute_sample_weights,
    list_folds,
)
from tlkeras.heads.held_out import Hyperparameters, calibrate, choose
from tlkeras.heads.link_functions import LinearMap, LinkFunction, infer_link
from tlkeras.heads.scaling import AffineTransform, fit_standardizer
from tlkeras.results import Result, to_plain

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class HeadResult(Result):
    """What a fit chose."""

    kind: str  # the head's word in a recipe
    chosen: Mapping[str, Any]  # values by name, such as the strength, the number of epochs or of columns

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

        ValueError if features are not finite, there are fewer than two classes, all rows have or lack a label, or
        there are several labels where the head does not support them, or has weights of classes.

        Args:
            X: Features.
            y: Class of each row, or 1 for each label that it has and 0 for the others.
            sample_weight: Weight of each row, in the loss and in every choice.
            validation: Rows to choose, calibrate or stop by, instead of folds or of a part of the training rows; with
                their groups, if they have any.
            groups: Group of each row, (n,); no group is divided between a fold and the rest.
        """
        self.link_: LinkFunction = infer_link(y)
        if self.link_.several and not self.supports_multilabel:
            raise ValueError(f"A {self.kind} head separates classes: a row cannot have several labels.")
        X, y = self._validate_fit(X, y)
        self.classes_, codes = self.link_.encode(y)
        groups = None if groups is None else np.asarray(groups)
        rows, held = LabelledFeatures(X, codes, self._weigh(y, sample_weight), groups), None
        if validation is not None:
            held_X, held_y, held_weights, *held_groups = validation
            held_codes = self.link_.transform(held_y, self.classes_)
            factors = self._class_factors(y, sample_weight, held_y)
            held = LabelledFeatures(held_X, held_codes, np.asarray(held_weights) * factors, *held_groups)
        counted = self._find_counted(rows)
        if not counted.all():
            rows = rows.take(counted)
        self.scores_ = {}
        with threadpool_limits(1) if self._one_thread else nullcontext():
            self._fit(rows, held)
        return self

    def _find_counted(self, rows: LabelledFeatures) -> np.ndarray:
        """The rows of the fit, bool (n,): those with weight, and all of a class that has none."""
        counted = rows.weights > 0
        if not self.link_.several:
            return counted | (np.bincount(rows.codes, rows.weights) == 0)[rows.codes]
        kept = rows.codes[counted]
        return counted | (kept == kept[0]).all(axis=0).any()

    def _validate_fit(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return validate_data(self, X, y, dtype=self._dtypes, multi_output=self.link_.several)

    def _validate(self, X: np.ndarray) -> np.ndarray:
        return validate_data(self, X, reset=False, dtype=self._dtypes)

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        if self.link_.several and self.class_weight is not None:
            raise ValueError(f"A row with several labels has no weight of its class. Received: {self.class_weight}.")
        return compute_sample_weights(y, sample_weight, self.class_weight)

    def _class_factors(self, y: np.ndarray, sample_weight: np.ndarray | None, held_y: np.ndarray) -> np.ndarray | float:
        """What validation rows weigh for their classes, by the weights of classes among the training rows."""
        if self.class_weight is None:
            return 1.0
        return compute_class_factors(y, sample_weight, self.class_weight)[np.searchsorted(self.classes_, held_y)]

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None) -> None:
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
    _calibrated: ClassVar[bool] = True
    """Whether scores become probabilities by a scale and shifts; else they are logits, which get a scale alone."""
    _one_against_rest: ClassVar[bool] = False
    """Whether the score of each class comes from a problem of its own, so that they can be of different sizes."""

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None) -> None:
        self.fit_folds(rows, list_folds(self.link_, rows, held, self.folds, self.seed))

    def fit_folds(self, rows: LabelledFeatures, parts: Sequence[Fold]) -> None:
        """Choose by the rows that folds hold out, fit on all rows, and calibrate on the scores of the held-out rows.

        Every head goes this way. Each fold is fitted as if it were all there is, with the strength that the fit on all
        rows has in the same units; scores of all folds are pooled, and the whole path of strengths is measured.
        """
        candidates, calibrated = self._list_candidates(rows), self._calibrated
        choice = None
        if calibrated or len(candidates) > 1:
            scoring = (self._score_fold, self._loss_weights)
            by_class = self._one_against_rest
            choice = choose(self.link_, candidates, parts, *scoring, calibrated=calibrated, by_class=by_class)
        self._fit_candidate(rows, self._fall_back(candidates) if choice is None else choice.candidate)
        if choice is not None:
            self._keep_losses(choice.candidate, choice.losses)
            self._scale(choice.scale, choice.shift)
        elif calibrated:
            self._scale(*self._calibrate_without_folds(rows))

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        """What is chosen from, from the strongest regularisation to the weakest."""
        return [(np.nan,)]

    def _fall_back(self, candidates: list[Hyperparameters]) -> Hyperparameters:
        """The candidate where no row can be held out."""
        return candidates[0]

    def _score_fold(self, part: Fold, candidates: list[Hyperparameters]) -> list[np.ndarray]:
        """Scores (m, k) of the rows that a fold holds out, by a fit without them, for each candidate."""
        raise NotImplementedError

    def _loss_weights(self, rows: LabelledFeatures) -> np.ndarray:
        """Weights of rows in the held-out loss, (n,), or of each of several labels, (n, k)."""
        return rows.weights

    def _fit_candidate(self, rows: LabelledFeatures, candidate: Hyperparameters) -> None:
        """Fit on all rows, without calibration."""
        raise NotImplementedError

    def _keep_losses(self, chosen: Hyperparameters, losses: Mapping[Hyperparameters, float]) -> None:
        self.scores_ = {candidate[-1]: loss for candidate, loss in losses.items()}

    def _calibrate_without_folds(self, rows: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Scale (k,) and shift (k,) where no row can be held out."""
        return calibrate(self.link_, rows._replace(X=self._logits(rows.X)))

    def _scale(self, scale: np.ndarray, shift: np.ndarray) -> None:
        raise NotImplementedError

    def _logits(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.link_.probabilities(self._logits(X))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Logits, (n, k); for two classes their difference, (n,), as scikit-learn has it."""
        check_is_fitted(self)
        return self.link_.decision_function(self._logits(self._validate(X)))


@dataclass(eq=False, repr=False, kw_only=True)
class LinearClassifierHead(VectorHead):
    """A head whose scores are linear in the raw features; subclasses give `_solve_path`.

    Args:
        standardize: Scale each column by its own standard deviation; else all by one number.

    Attributes:
        strength_name: The parameter that is the strength of the regularisation; None where there is none.
        strengths: What "auto" chooses from, from the strongest regularisation to the weakest.
        fallback: The strength where no row can be held out.
        strength_: The strength that was used.
        kernel_, bias_: The map from raw features to logits, (d, k) and (k,).
    """

    standardize: bool = True

    strength_name: ClassVar[str | None] = None
    strengths: ClassVar[np.ndarray] = np.array([np.nan])
    fallback: ClassVar[float] = np.nan

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        given = getattr(self, self.strength_name) if self.strength_name else np.nan
        return [(float(strength),) for strength in (self.strengths if given == "auto" else [given])]

    def _fall_back(self, candidates: list[Hyperparameters]) -> Hyperparameters:
        return (self.fallback,) if len(candidates) > 1 else candidates[0]

    def _score_fold(self, part: Fold, candidates: list[Hyperparameters]) -> list[np.ndarray]:
        strengths = [strength for (strength,) in candidates]
        return self.score_path(part.fit_rows(), part.held_rows().X, strengths, part.weight_share)

    def score_path(
        self, rows: LabelledFeatures, held: np.ndarray, strengths: Sequence[float], share: float
    ) -> list[np.ndarray]:
        """Scores of further features, (m, k), by a fit on rows that have a share of all weight, for each strength."""
        frame = self._fit_frame(rows)
        rows, held = rows._replace(X=frame.apply(rows.X)), frame.apply(held)
        in_fold = [self._in_fold(one, share) for one in strengths]
        return [held @ kernel + bias for kernel, bias in self._solve_path(rows, in_fold)]

    def _in_fold(self, strength: float, share: float) -> float:
        """The strength whose penalty per unit of weight is that of `strength` with all rows. Penalties are set against
        a sum over rows: `alpha` stands with the penalty, `C` with the sum.
        """
        return strength * share if self.strength_name == "alpha" else strength / share

    def _fit_candidate(self, rows: LabelledFeatures, candidate: Hyperparameters) -> None:
        (self.strength_,) = candidate
        frame = self._fit_frame(rows)
        rows = rows._replace(X=frame.apply(rows.X))
        ((kernel, bias),) = self._solve_path(rows, [self.strength_])
        self.kernel_, self.bias_ = frame.unfold(kernel, bias)

    def _scale(self, scale: np.ndarray, shift: np.ndarray) -> None:
        kernel, bias = self.kernel_ * scale, self.bias_ * scale + shift
        if not self.link_.several:  # what all classes have in common cancels out, and would cost float32 its digits
            kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()
        self.kernel_, self.bias_ = kernel, bias

    def _fit_frame(self, rows: LabelledFeatures) -> AffineTransform:
        """The frame in which scores are linear."""
        return fit_standardizer(rows.X, self._column_weights(rows), by_column=self.standardize)

    def _column_weights(self, rows: LabelledFeatures) -> np.ndarray:
        """Weights of the rows in the mean and deviation of the columns, (n,)."""
        return rows.weights

    def _solve_path(self, rows: LabelledFeatures, strengths: Sequence[float]) -> Iterator[LinearMap]:
        """Kernel (d, k) and bias (k,) from standardised features to scores, for each strength in turn."""
        raise NotImplementedError

    def _logits(self, X: np.ndarray) -> np.ndarray:
        return X @ self.kernel_ + self.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        check_is_fitted(self)
        return finish_layers(self.kernel_, self.bias_, self.link_)

    def summarize(self) -> HeadResult:
        return HeadResult(self.kind, {self.strength_name: self.strength_} if self.strength_name else {})

    def history(self) -> dict[str, list[float]]:
        if self.strength_name is None:
            return {}
        return {self.strength_name: list(self.scores_), "held_out_log_loss": list(self.scores_.values())}


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
