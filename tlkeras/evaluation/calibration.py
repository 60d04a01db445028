"""Whether probabilities mean what they say, how to mend them, and when to ask a person instead.

Works on the probabilities alone: where a row is of one class, its logits are their logarithms but for a constant that
softmax does not see; where it can have several labels, each has the logarithm of its odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from tlkeras.errors import RunError
from tlkeras.runs.predictions import Predictions

ScalingMethod = Literal["temperature", "vector"]
METHODS: tuple[ScalingMethod, ...] = ("temperature", "vector")
BINS = 15

_TINY = 1e-12
_STEEPEST = 100.0
_MOST_CELLS = 2_000_000  # probabilities that a scaling is fitted on: more would add minutes and no precision
_MOST_STEPS = 100
_RIDGE = 1e-3  # keeps the shifts of classes that validation hardly shows near 0


@dataclass(frozen=True)
class LogitScaling:
    """What is done to logits before they become probabilities: `logits * scale + shift`.

    Attributes:
        method: How it was found.
        scale: float [k], all above 0.
        shift: float [k].
        several: Whether a row can have several labels.
    """

    method: str
    scale: np.ndarray
    shift: np.ndarray
    several: bool

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probabilities [n, k] that take their place, float64."""
        logits = find_logits(probabilities, self.several) * self.scale + self.shift
        return expit(logits) if self.several else softmax(logits, axis=1)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"method": self.method, "scale": self.scale.tolist(), "shift": self.shift.tolist()}


@dataclass(frozen=True)
class Reliability:
    """Bins of answers by confidence, each with about the same weight.

    Attributes:
        confidence: Mean probability in each bin, float [b].
        accuracy: How often that came true, float [b].
        share: Of all weight, float [b].
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, 0 to 1."""
        return float(self.share @ np.abs(self.confidence - self.accuracy))


def find_logits(probabilities: np.ndarray, several: bool) -> np.ndarray:
    """Return logits that softmax, or the logistic function of several labels, turns into the probabilities."""
    p = np.clip(np.asarray(probabilities, np.float64), _TINY, 1.0)
    return np.log(p) - np.log(np.clip(1 - p, _TINY, 1.0)) if several else np.log(p)


def fit_scaling(predictions: Predictions, method: ScalingMethod) -> LogitScaling:
    """Find the scaling of least log loss on answers that the model was not fitted on.

    "temperature" has one scale and no shift, so that no answer changes; "vector" a scale and a shift for each class,
    the shifts held back a little (Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML
    2017, section 4.2).

    Raises:
        RunError: There is nothing to fit on.
    """
    several, classes = predictions.targets.ndim == 2, predictions.probabilities.shape[1]
    if not len(predictions) or not predictions.weights.any():
        raise RunError("Calibration needs answers on images that were not trained on.", "none with weight")
    rows = _choose_rows(predictions)
    logits = find_logits(predictions.probabilities[rows], several)
    members = predictions.task.members(predictions.targets[rows]).astype(np.float64)
    weights = predictions.weights[rows] / predictions.weights[rows].sum()

    def lose(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logarithms, shift = parameters[:-classes], parameters[-classes:]
        scale = np.exp(logarithms)
        scaled = logits * scale + shift
        loss, slope = _measure_loss(scaled, members, weights, several)
        by_class = (slope * logits).sum(axis=0) * scale
        ridge = _RIDGE * shift / classes
        steps = by_class if len(logarithms) == classes else by_class.sum(keepdims=True)
        if method == "temperature":
            return loss, np.concatenate([steps, np.zeros(classes)])
        return loss + float(ridge @ shift) / 2, np.concatenate([steps, slope.sum(axis=0) + ridge])

    free = 1 if method == "temperature" else classes
    limit = np.log(_STEEPEST)
    bounds = [(-limit, limit)] * free + [(None, None) if method == "vector" else (0.0, 0.0)] * classes
    start, options = np.zeros(free + classes), {"maxiter": _MOST_STEPS}
    found = minimize(lose, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    scale = np.broadcast_to(np.exp(found[:free]), (classes,)).copy()
    return LogitScaling(method, scale, found[free:], several)


def _choose_rows(predictions: Predictions) -> np.ndarray:
    """Return which rows a scaling is fitted on, spread over all that have weight, int64."""
    rows = np.flatnonzero(predictions.weights > 0)
    most = max(_MOST_CELLS // predictions.probabilities.shape[1], 1000)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _measure_loss(
    logits: np.ndarray, members: np.ndarray, weights: np.ndarray, several: bool
) -> tuple[float, np.ndarray]:
    """Return the weighted log loss, and its slope by each logit, (n, k)."""
    if several:
        each = np.logaddexp(0, logits) - members * logits
        return float(weights @ each.mean(axis=1)), weights[:, None] * (expit(logits) - members) / logits.shape[1]
    loss = -float(weights @ (members * log_softmax(logits, axis=1)).sum(axis=1))
    return loss, weights[:, None] * (softmax(logits, axis=1) - members)


def measure_reliability(
    predictions: Predictions, probabilities: np.ndarray | None = None, bins: int = BINS
) -> Reliability:
    """Bin what a model said by how sure it was: of the class that it answers, or of every label.

    Bins hold equal weight rather than equal ranges of confidence, because most answers of a good model lie in the last
    of these ("adaptive": Nguyen and O'Connor, EMNLP 2015; Nixon et al., CVPR workshops 2019). Equal confidences share
    a bin.

    Args:
        answers: With their targets and weights.
        probabilities: Other ones in place of the answers' own, (n, k).
        bins: At most so many.
    """
    confidence, right, weights = _list_claims(predictions, probabilities)
    order = np.argsort(confidence, kind="stable")
    confidence, right, weights = confidence[order], right[order], weights[order]
    before = np.cumsum(weights) - weights
    first = np.searchsorted(confidence, confidence, side="left")  # equal confidences begin at one place
    places = np.minimum((before[first] / weights.sum() * bins).astype(int), bins - 1)
    totals = np.bincount(places, weights, minlength=bins)
    used = totals > 0
    sure, came_true = (np.bincount(places, weights * values, minlength=bins) for values in (confidence, right))
    return Reliability(sure[used] / totals[used], came_true[used] / totals[used], totals[used] / totals.sum())


def expected_calibration_error(
    predictions: Predictions, probabilities: np.ndarray | None = None, bins: int = BINS
) -> float:
    """Return the expected calibration error with bins of equal width (Naeini et al., AAAI 2015), as often published."""
    confidence, right, weights = _list_claims(predictions, probabilities)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights * (confidence - right), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def _list_claims(
    predictions: Predictions, probabilities: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the confidence, whether it came true, and the weight of each claim, (m,) each."""
    p = np.asarray(predictions.probabilities if probabilities is None else probabilities, np.float64)
    if predictions.targets.ndim == 2:
        return p.ravel(), (predictions.targets == 1).ravel().astype(float), np.repeat(predictions.weights, p.shape[1])
    return p.max(axis=1), (p.argmax(axis=1) == predictions.targets).astype(float), predictions.weights.astype(float)


def describe_calibration(predictions: Predictions, validation: Predictions | None) -> dict[str, Any]:
    """Return how reliable the probabilities are, as they are and after each scaling, as JSON can hold it.

    Args:
        answers: On held-out images.
        validation: What scalings are fitted on; None: none are.

    Returns:
        `adaptive_ece`, `ece`, `log_loss`, `brier_score`, `reliability` (`confidence`, `accuracy`, `share`); `scalings`
        by method: `scale`, `shift`, and the same after it; `fitted_on`, images.
    """
    whole = _describe(predictions, None)
    scalings = {}
    if validation is not None and len(validation) and validation.weights.any():
        for method in METHODS:
            scaling = fit_scaling(validation, method)
            scalings[method] = {
                **scaling.describe(),
                **_describe(predictions, scaling.apply(predictions.probabilities)),
            }
    return {**whole, "scalings": scalings, "fitted_on": len(validation) if validation is not None else 0}


def _describe(predictions: Predictions, probabilities: np.ndarray | None) -> dict[str, Any]:
    p = np.asarray(predictions.probabilities if probabilities is None else probabilities, np.float64)
    members = predictions.task.members(predictions.targets).astype(np.float64)
    weights = predictions.weights / predictions.weights.sum()
    several = predictions.targets.ndim == 2
    loss, _ = _measure_loss(find_logits(p, several), members, weights, several)
    squares = np.square(p - members)
    found = measure_reliability(predictions, p)
    return {
        "adaptive_ece": found.error,
        "ece": expected_calibration_error(predictions, p),
        "log_loss": loss,
        "brier_score": float(weights @ (squares.mean(axis=1) if several else squares.sum(axis=1))),
        "reliability": {name: getattr(found, name).tolist() for name in ("confidence", "accuracy", "share")},
    }
