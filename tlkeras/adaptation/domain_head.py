"""A head that is fitted on one domain and predicts another, and the shares of classes there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from tlkeras.adaptation import alignment, model_selection
from tlkeras.adaptation.adversarial import AdaptationOptions, AdaptedHead
from tlkeras.adaptation.alignment import Aligner, Domain
from tlkeras.adaptation.penalties import DiscrepancyMethod
from tlkeras.adaptation.tca import JointDistributionAdaptation, TransferComponentAnalysis
from tlkeras.errors import DataError, RecipeError, suggest
from tlkeras.heads.base import HeadResult, LabelledRows, make_dense
from tlkeras.heads.folds import ClassWeight, compute_sample_weights
from tlkeras.heads.heads import Head

if TYPE_CHECKING:
    import keras

LabelShiftCorrection = Literal["none", "confusion", "likelihood"]
ALIGNERS: dict[str, Callable[[int], Aligner]] = {
    "none": lambda components: alignment.Identity(),
    "coral": lambda components: alignment.Coral(),
    "transport": lambda components: alignment.GaussianTransport(),
    "subspace": alignment.SubspaceAlignment,
    "joint_pca": alignment.JointPca,
    "tca": TransferComponentAnalysis,
    "jda": JointDistributionAdaptation,
}
"""From the number of components to an aligner of features, by name."""
ADAPTATIONS: dict[str, DiscrepancyMethod] = {
    "dann": "dann",
    "cdan": "cdan",
    "mmd": "mmd",
    "deep_coral": "coral",
    "mcc": "mcc",
}
"""Deep methods by name in a recipe; see `AdaptationOptions`."""
METHODS = (*ALIGNERS, *ADAPTATIONS)


_TINY = 1e-12


def estimate_bbse(predictions: np.ndarray, y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Target priors (k,) by black box shift estimation (BBSE).

    With C[i, j] the share of source rows predicted i and of class j, and q[i] the share of target rows predicted i, the
    weights w of classes solve C w = q, none negative; the priors are w times the source's. `predictions` are
    probabilities of source rows that were not trained on, (n, k), `y` their classes, `target` those of target rows.

    Source: Lipton, Wang and Smola, Detecting and Correcting for Label Shift with Black Box Predictors, ICML 2018.
    """
    indicators = np.eye(predictions.shape[1])
    predicted, truth = indicators[predictions.argmax(axis=1)], indicators[y]
    weights, _ = nnls(predicted.T @ truth / len(y), indicators[target.argmax(axis=1)].mean(axis=0))
    priors = weights * truth.mean(axis=0)
    return priors / max(priors.sum(), _TINY)


def estimate_em(target: np.ndarray, prior: np.ndarray, rounds: int = 1000) -> np.ndarray:
    """Target priors (k,) by expectation maximisation (EM), in `rounds` at most.

    Probabilities of target rows, (m, k), are those under the class priors of the training rows, (k,), and should be
    calibrated.

    Source: Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities,
    Neural Computation 2002, equation 4.
    """
    estimate = prior / prior.sum()
    for _ in range(rounds):
        updated = reweight_priors(target, prior, estimate).mean(axis=0)
        if np.abs(updated - estimate).max() < 1e-9:
            return updated
        estimate = updated
    return estimate


def reweight_priors(probabilities: np.ndarray, prior: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) under the class priors `other` in place of `prior`.

    >>> reweight_priors(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.2, 0.8])).tolist()
    [[0.2, 0.8]]
    """
    scaled = probabilities * (other / other.sum()) / np.maximum(prior / prior.sum(), _TINY)
    return scaled / np.maximum(scaled.sum(axis=1, keepdims=True), _TINY)


class DomainAdaptedHead(ClassifierMixin, BaseEstimator):
    """A head adapted to a target domain by an aligner before it, or by a deep method in its place.

    As a scikit-learn estimator it is fitted with the target's features, `fit(X, y, target=T)`, and predicts the target.

    Args:
        method: One of `METHODS`.
        make: Makes the unfitted head that follows an aligner.
        components: Of aligners that have them.
        correction: Class priors of the target: those of the source, or estimated by confusion (BBSE) or likelihood
            (EM).
        options: Options of deep methods; their `method` is replaced.
        scored: Whether distances and scores are measured, which can take longer than the fit.

    Attributes:
        classes_: Class values, (k,).
        priors_: Class priors of the source, in the measure that the head was fitted in (sample and class weights), and
            of the target, as estimated, in that of sample weights; None without correction.
        scores_: Scores that need no target labels, higher is better; see `tlkeras.adaptation.model_selection`.
        distances_: A-distance of the domains before and after.
    """

    def __init__(
        self,
        method: str,
        make: Callable[[], Head],
        components: int = 30,
        correction: LabelShiftCorrection = "none",
        options: AdaptationOptions | None = None,
        *,
        scored: bool = True,
    ):
        if method not in METHODS:
            raise RecipeError(f"Unknown method {method!r}.", way_out=suggest(method, METHODS))
        self.method, self.make, self.components = method, make, components
        self.correction, self.options, self.scored = correction, options, scored

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        target: np.ndarray,
        validation: LabelledRows | None = None,
        groups: np.ndarray | None = None,
    ) -> DomainAdaptedHead:
        """Fit on source features (n, d) with classes (n,), and target features (m, d); all but these are the source's.

        Raises:
            DataError: The domains cannot be aligned, rows have several labels, or there are no validation rows to
                measure confusions on.
        """
        if np.ndim(y) > 1:
            raise DataError("Images with several labels cannot be adapted across domains.")
        if self.correction == "confusion" and validation is None:
            raise DataError("There are no validation images to measure confusions on.", way_out="Set data.validation.")
        self._aligner: Aligner | None = None
        self._head: Any
        if self.method in ADAPTATIONS:
            options = replace(self.options or AdaptationOptions(), method=ADAPTATIONS[self.method])
            self._head = AdaptedHead(options).fit(X, y, target, sample_weight)
        else:
            self._aligner = ALIGNERS[self.method](self.components).fit(X, y, target=target)
            held = validation and (self._encode(validation[0], "source"), *validation[1:])
            self._head = self.make()
            self._head.fit(self._encode(X, "source"), y, sample_weight, validation=held, groups=groups)
        self.classes_ = self._head.classes_
        self.priors_ = self._estimate_priors(y, sample_weight, target, validation)
        self.distances_: dict[str, float] = {}
        self.scores_: dict[str, float] = {}
        if self.scored:
            aligned = self._encode(X, "source"), self._encode(target, "target")
            self.distances_ = {
                "before": model_selection.measure_a_distance(X, target),
                "after": model_selection.measure_a_distance(*aligned),
            }
            self.scores_ = self._score(X, target, validation)
        return self

    @property
    def unadapted(self) -> Any:
        """The fitted head, if it is that of the source alone; None behind an aligner, a deep method or a correction."""
        return self._head if self.method == "none" and self.correction == "none" else None

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of target rows (rows, k)."""
        check_is_fitted(self, "classes_")
        predictions = self.predict_domain(X, "target")
        return predictions if self.priors_ is None else reweight_priors(predictions, *self.priors_).astype(np.float32)

    def predict_domain(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        """Probabilities of rows of a domain (rows, k), under the class priors of the source."""
        check_is_fitted(self, "classes_")
        return self._head.predict_proba(X if self._aligner is None else self._aligner.transform(X, domain))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each target row."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def to_layers(self) -> list[keras.layers.Layer]:
        """The layers from target features to probabilities; a correction is in the bias of the logits.

        Raises:
            DataError: There is a correction, and the head's logits do not come from a dense layer.
        """
        check_is_fitted(self, "classes_")
        layers = [*([] if self._aligner is None else self._aligner.to_layers()), *self._head.to_layers()]
        if self.priors_ is not None:
            source, target = self.priors_
            kind = type(layers[-2]).__name__
            if kind != "Dense":
                raise DataError("Only logits of a dense layer can be corrected.", kind, "Take a linear head.")
            kernel, bias = layers[-2].get_weights()  # a layer of its own: the head still predicts the source
            shift = np.log(np.maximum(target, 1e-12) / np.maximum(source, 1e-12))
            layers[-2] = make_dense(kernel, bias + shift, "logits")
        return layers

    def on_source(self, target: np.ndarray) -> SourceDomainHead:
        """This head, aligned to target features (m, d), as one that is fitted on and predicts rows of the source."""
        return SourceDomainHead(self, target)

    def summarize(self) -> HeadResult:
        """What the head chose, the method, and distances, scores and priors that need no target labels."""
        result = self._head.summarize()
        facts = {"method": self.method, "a_distance": self.distances_, "scores": self.scores_, "priors": self.priors_}
        return HeadResult(result.kind, {**result.chosen, **facts})

    def history(self) -> dict[str, list[float]]:
        """The head's history."""
        return self._head.history()

    def _encode(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        """Features after the alignment."""
        return self._head.encode(X) if self._aligner is None else self._aligner.transform(X, domain)

    def _estimate_priors(
        self, y: np.ndarray, sample_weight: np.ndarray | None, target: np.ndarray, validation: LabelledRows | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Class priors of both domains; None without correction. Estimates count target rows alike, and metrics weigh
        them. Their own weights may come from their labels, so a class counts by the mean weight of its rows in the
        source.
        """
        if self.correction == "none":
            return None
        codes, count = np.searchsorted(self.classes_, y), len(self.classes_)
        own = compute_sample_weights(y, sample_weight, None)
        fitted = np.bincount(codes, compute_sample_weights(y, own, self._find_class_weight()), count)
        source = fitted / fitted.sum()
        predictions = self.predict_domain(target, "target")
        if self.correction == "likelihood" or validation is None:
            counted = estimate_em(predictions, source)
        else:
            held = np.searchsorted(self.classes_, validation[1])
            counted = estimate_bbse(self.predict_domain(validation[0], "source"), held, predictions)
        weighted = counted * np.bincount(codes, own, count) / np.bincount(codes, minlength=count)
        return source, weighted / max(weighted.sum(), 1e-12)

    def _find_class_weight(self) -> ClassWeight:
        """The class weights that the head was fitted with; a head that selects features holds the one that has them."""
        if isinstance(self._head, AdaptedHead):
            return self._head.options.class_weight
        return getattr(self._head, "head", self._head).class_weight

    def _score(self, X: np.ndarray, target: np.ndarray, validation: LabelledRows | None) -> dict[str, float]:
        predictions = self.predict_proba(target)
        scores = {
            "entropy": model_selection.entropy_score(predictions),
            "information": model_selection.mutual_information_score(predictions),
        }
        if validation is None:
            return scores
        held, codes = self.predict_domain(validation[0], "source"), np.searchsorted(self.classes_, validation[1])
        encoded = [self._encode(X, "source"), self._encode(target, "target"), self._encode(validation[0], "source")]
        weights, right = model_selection.importance_weights(*encoded), held.argmax(axis=1) == codes
        losses, own = -np.log(np.maximum(held[np.arange(len(codes)), codes], 1e-12)), validation[2]
        return scores | {
            "source": float(np.average(right, weights=own)),
            "importance": model_selection.importance_weighted_validation(weights, right, own),
            "deep_embedded_validation": model_selection.deep_embedded_validation(weights, losses, own),
        }


class SourceDomainHead:
    """A head across domains, `head`, that is fitted on folds of the source and predicts rows of the source."""

    def __init__(self, head: DomainAdaptedHead, target: np.ndarray):
        self.head, self._target = head, target

    def fit(
        self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None, groups: np.ndarray | None
    ) -> SourceDomainHead:
        """Fit on rows of the source, float (n, d), with classes (n,)."""
        self.head.fit(X, y, weights, target=self._target, groups=groups)
        self.classes_ = self.head.classes_
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of rows of the source, (n, k)."""
        return self.head.predict_domain(X, "source")
