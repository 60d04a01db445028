"""Calibration of probabilities: reliability, expected calibration error, temperature and vector scaling.

Works on the probabilities alone: the logits of a multi-class row are their logarithms up to a constant that softmax
ignores; each label of a multi-label row has the logarithm of its odds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from tlkeras.errors import RunError
from tlkeras.evaluation.intervals import Estimate, draw_weights, find_units, make_folded_interval, support_bins
from tlkeras.results import Result
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
    """An affine map of logits before they become probabilities: `logits * scale + shift`."""

    method: str  # "temperature" or "vector"
    scale: np.ndarray  # float [k], all above 0
    shift: np.ndarray  # float [k]
    is_multilabel: bool  # a row can have several labels: sigmoid instead of softmax

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 [n, k]."""
        logits = to_logits(probabilities, self.is_multilabel) * self.scale + self.shift
        return expit(logits) if self.is_multilabel else softmax(logits, axis=1)


@dataclass(frozen=True)
class Reliability:
    """Bins of predictions by confidence, each with about the same weight."""

    confidence: np.ndarray  # mean probability in each bin, float [b]
    accuracy: np.ndarray  # fraction of correct predictions, float [b]
    share: np.ndarray  # fraction of all weight, float [b]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, 0 to 1."""
        return float(self.share @ np.abs(self.confidence - self.accuracy))


@dataclass(frozen=True)
class CalibrationErrors(Result):
    """Errors of probabilities against what is true."""

    adaptive_ece: float  # expected calibration error with bins of equal weight, 0 to 1
    ece: float  # the same with bins of equal width
    log_loss: float  # mean negative logarithm of the probability of the truth; over labels where there are several
    brier_score: float  # mean squared error, summed over classes or averaged over labels
    reliability: Reliability  # the bins behind `adaptive_ece`


@dataclass(frozen=True)
class ScaledCalibration(CalibrationErrors):
    """The errors after a scaling of the logits, with its method, scale [k] and shift [k]."""

    method: str
    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class CalibrationResult(CalibrationErrors):
    """The errors of probabilities as they are, and after each scaling by its method."""

    scalings: dict[str, ScaledCalibration]  # by method; empty where there is nothing to fit them on
    fitted_on: int  # images that the scalings were fitted on
    interval: Estimate  # `adaptive_ece` with its 95 % interval


def to_logits(probabilities: np.ndarray, is_multilabel: bool) -> np.ndarray:
    """Logits that softmax, or the sigmoid of multi-label tasks, turns into the probabilities, float64 [n, k]."""
    p = np.clip(np.asarray(probabilities, np.float64), _TINY, 1.0)
    return np.log(p) - np.log(np.clip(1 - p, _TINY, 1.0)) if is_multilabel else np.log(p)


def fit_scaling(predictions: Predictions, method: ScalingMethod) -> LogitScaling:
    """The scaling of least log loss on predictions for images that the model was not fitted on.

    "temperature" has one scale and no shift, so that no predicted class changes; "vector" a scale and a regularized
    shift for each class (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2). RunError if
    there is nothing to fit on.
    """
    is_multilabel, classes = predictions.task.is_multilabel, predictions.probabilities.shape[1]
    if not len(predictions) or not predictions.weights.any():
        raise RunError("No predictions to calibrate on: images that were not trained on are needed.", "no weight")
    rows = _choose_rows(predictions)
    logits = to_logits(predictions.probabilities[rows], is_multilabel)
    members = predictions.task.members(predictions.targets[rows]).astype(np.float64)
    weights = predictions.weights[rows] / predictions.weights[rows].sum()

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = np.exp(parameters[:-classes]), parameters[-classes:]
        loss, gradient = _log_loss(logits * scale + shift, members, weights, is_multilabel)
        by_class = (gradient * logits).sum(axis=0) * scale
        if method == "temperature":
            return loss, np.concatenate([by_class.sum(keepdims=True), np.zeros(classes)])
        ridge = _RIDGE * shift / classes
        return loss + float(ridge @ shift) / 2, np.concatenate([by_class, gradient.sum(axis=0) + ridge])

    free = 1 if method == "temperature" else classes
    limit = np.log(_STEEPEST)
    bounds = [(-limit, limit)] * free + [(None, None) if method == "vector" else (0.0, 0.0)] * classes
    start, options = np.zeros(free + classes), {"maxiter": _MOST_STEPS}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    scale = np.broadcast_to(np.exp(found[:free]), (classes,)).copy()
    return LogitScaling(method, scale, found[free:], is_multilabel)


def _choose_rows(predictions: Predictions) -> np.ndarray:
    """Rows to fit a scaling on, spread over all that have weight, int64 [m]."""
    rows = np.flatnonzero(predictions.weights > 0)
    most = max(_MOST_CELLS // predictions.probabilities.shape[1], 1000)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _log_loss(
    logits: np.ndarray, members: np.ndarray, weights: np.ndarray, is_multilabel: bool
) -> tuple[float, np.ndarray]:
    if is_multilabel:
        each = np.logaddexp(0, logits) - members * logits
        return float(weights @ each.mean(axis=1)), weights[:, None] * (expit(logits) - members) / logits.shape[1]
    loss = -float(weights @ (members * log_softmax(logits, axis=1)).sum(axis=1))
    return loss, weights[:, None] * (softmax(logits, axis=1) - members)


def measure_reliability(
    predictions: Predictions, probabilities: np.ndarray | None = None, bins: int = BINS
) -> Reliability:
    """Bins of predictions by confidence, which is the probability of the predicted class, or of every label.

    Bins, `bins` at most, hold equal weight rather than equal ranges of confidence, because most predictions of a good
    model lie in the last of these ("adaptive": Nguyen and O'Connor, EMNLP 2015; Nixon et al., CVPR workshops 2019).
    Equal confidences share a bin. Probabilities, float [n, k], replace those of the predictions.
    """
    confidence, correct, weights = _list_confidences(predictions, probabilities)
    places = _place_in_bins(confidence, weights, bins)
    totals = np.bincount(places, weights, minlength=bins)
    used = totals > 0
    sums, hits = (np.bincount(places, weights * values, minlength=bins) for values in (confidence, correct))
    return Reliability(sums[used] / totals[used], hits[used] / totals[used], totals[used] / totals.sum())


def _place_in_bins(confidence: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Bin of equal weight of each confidence, int [m]; the same for equal confidences."""
    order = np.argsort(confidence, kind="stable")
    rising, weights = confidence[order], weights[order]
    before = np.cumsum(weights) - weights
    first = np.searchsorted(rising, rising, side="left")
    places = np.empty(len(order), np.int64)
    places[order] = np.minimum((before[first] / weights.sum() * bins).astype(np.int64), bins - 1)
    return places


def estimate_calibration_error(predictions: Predictions, resamples: int, seed: int, bins: int = BINS) -> Estimate:
    """Expected calibration error with bins of equal weight, `bins` at most, and its 95 % interval.

    The gaps of the bins are resampled in the bins of the predictions, images of one group as a whole. A random gap has
    no sign in the error, which is therefore too large on few images, and larger still in resamples: see
    `make_folded_interval`.
    """
    confidence, correct, weights = _list_confidences(predictions, None)
    each = len(weights) // len(predictions)  # labels of an image
    places = _place_in_bins(confidence, weights, bins)
    cells = np.zeros((len(predictions), bins))
    np.add.at(cells, (np.arange(len(weights)) // each, places), (confidence - correct) * weights)
    own = predictions.weights.astype(np.float64)
    units = find_units(own, predictions.slices.get("group"))
    gaps = cells.sum(axis=0) / weights.sum()
    support, drawn = support_bins(units, bins), []
    for counts in draw_weights(units, 0 if support.reason else resamples, seed, len(own)):
        drawn.append(counts @ cells / (each * (counts @ own))[:, None])
    return make_folded_interval(gaps, np.concatenate([np.empty((0, bins)), *drawn]), support)


def expected_calibration_error(
    predictions: Predictions, probabilities: np.ndarray | None = None, bins: int = BINS
) -> float:
    """Expected calibration error with bins of equal width (Naeini et al., AAAI 2015), 0 to 1."""
    confidence, correct, weights = _list_confidences(predictions, probabilities)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights * (confidence - correct), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def _list_confidences(
    predictions: Predictions, probabilities: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, whether it was correct, and weight of each predicted class or label, float64 [m] each."""
    p = np.asarray(predictions.probabilities if probabilities is None else probabilities, np.float64)
    if predictions.task.is_multilabel:
        return p.ravel(), (predictions.targets == 1).ravel().astype(float), np.repeat(predictions.weights, p.shape[1])
    return p.max(axis=1), (p.argmax(axis=1) == predictions.targets).astype(float), predictions.weights.astype(float)


def evaluate_calibration(
    predictions: Predictions, validation: Predictions | None, resamples: int = 2000, seed: int = 0
) -> CalibrationResult:
    """Calibration on held-out images, as it is and after each scaling fitted on the validation images, if any."""
    scalings: dict[str, ScaledCalibration] = {}
    if validation is not None and len(validation) and validation.weights.any():
        for method in METHODS:
            fitted = fit_scaling(validation, method)
            errors = _measure_errors(predictions, fitted.apply(predictions.probabilities))
            scalings[method] = ScaledCalibration(**vars(errors), method=method, scale=fitted.scale, shift=fitted.shift)
    errors = _measure_errors(predictions, predictions.probabilities)
    fitted_on = 0 if validation is None else len(validation)
    interval = estimate_calibration_error(predictions, resamples, seed)
    return CalibrationResult(**vars(errors), scalings=scalings, fitted_on=fitted_on, interval=interval)


def _measure_errors(predictions: Predictions, probabilities: np.ndarray) -> CalibrationErrors:
    p, is_multilabel = np.asarray(probabilities, np.float64), predictions.task.is_multilabel
    members = predictions.task.members(predictions.targets).astype(np.float64)
    weights = predictions.weights / predictions.weights.sum()
    loss, _ = _log_loss(to_logits(p, is_multilabel), members, weights, is_multilabel)
    squares = np.square(p - members)
    reliability = measure_reliability(predictions, p)
    return CalibrationErrors(
        adaptive_ece=reliability.error,
        ece=expected_calibration_error(predictions, p),
        log_loss=loss,
        brier_score=float(weights @ (squares.mean(axis=1) if is_multilabel else squares.sum(axis=1))),
        reliability=reliability,
    )
