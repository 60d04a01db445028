"""Selective and conformal prediction: predict only above a confidence, or predict sets of classes."""

from dataclasses import dataclass, replace

import numpy as np

from tlkeras.errors import RunError
from tlkeras.results import Result
from tlkeras.runs.predictions import Predictions

_POINTS = 60
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RiskCoverageCurve(Result):
    """Accuracy of the predictions above a confidence, and their fraction of all images."""

    threshold: np.ndarray  # confidence from which on predictions are accepted, float [m], rising
    coverage: np.ndarray  # fraction of images accepted, by weight, float [m]
    accuracy: np.ndarray  # accuracy on these, float [m]


@dataclass(frozen=True)
class SelectiveResult(RiskCoverageCurve):
    """Some points of the risk-coverage curve, and a threshold chosen on other images."""

    wanted: float  # accuracy that the accepted predictions should reach, 0 to 1
    chosen: float | None = None  # the threshold; None where none reaches it
    chosen_coverage: float | None = None  # fraction of held-out images that it accepts
    chosen_accuracy: float | None = None  # accuracy on these; None where there are none


@dataclass(frozen=True)
class ConformalResult(Result):
    """Coverage and size of conformal prediction sets on held-out images."""

    alpha: float  # fraction of sets that may miss the true class
    threshold: float  # probability from which on a class is in the set; 0: all are
    coverage: float  # fraction of sets that contain the true class
    mean_size: float  # classes in a set
    single: float  # fraction of sets of one class
    empty: float  # fraction of empty sets
    sizes: list[int]  # sets by size, from 0 on


@dataclass(frozen=True)
class LabelConformalResult(ConformalResult):
    """Conformal sets of "yes" and "no" for one label; `undecided` is the fraction of sets with both."""

    label: str
    undecided: float


def risk_coverage_curve(predictions: Predictions) -> RiskCoverageCurve:
    """Coverage and accuracy for every threshold (Geifman and El-Yaniv, NeurIPS 2017).

    Weights count in both. Equal confidences are accepted together. A multi-label prediction is correct if all of its
    labels are, and its confidence is the product of those of its labels.
    """
    confidence, correct = _confidence_and_correctness(predictions)
    order = np.argsort(-confidence, kind="stable")
    falling, weights = confidence[order], predictions.weights[order].astype(np.float64)
    covered, hits = np.cumsum(weights), np.cumsum(weights * correct[order])
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    last = last[covered[last] > 0][::-1]
    return RiskCoverageCurve(falling[last], covered[last] / covered[-1], hits[last] / covered[last])


def choose_threshold(predictions: Predictions, accuracy: float) -> float | None:
    """The lowest threshold from which on predictions are as accurate as wanted, 0 to 1; None where there is none.

    They should be for images that the model was neither fitted on nor is then evaluated on.
    """
    curve = risk_coverage_curve(predictions)
    enough = np.flatnonzero(curve.accuracy >= accuracy)
    return float(curve.threshold[enough[0]]) if len(enough) else None


def evaluate_selective(
    predictions: Predictions, chosen_on: Predictions | None, accuracy: float | None = None
) -> SelectiveResult:
    """The risk-coverage curve on held-out images, with a threshold chosen on other ones, if there are some.

    The accepted predictions should have the accuracy; None: half as many errors as without a threshold.
    """
    curve = risk_coverage_curve(predictions)
    shown = np.unique(np.linspace(0, len(curve.coverage) - 1, _POINTS).astype(int))
    wanted = accuracy if accuracy is not None else 1 - (1 - float(curve.accuracy[0])) / 2
    points = SelectiveResult(**{name: values[shown] for name, values in vars(curve).items()}, wanted=wanted)
    threshold = None if chosen_on is None or not len(chosen_on) else choose_threshold(chosen_on, wanted)
    if threshold is None:
        return points
    confidence, correct = _confidence_and_correctness(predictions)
    accepted = confidence >= threshold
    weight = float(predictions.weights[accepted].sum())
    coverage = weight / float(predictions.weights.sum())
    right = float(predictions.weights[accepted] @ correct[accepted]) / weight if weight else None
    return replace(points, chosen=threshold, chosen_coverage=coverage, chosen_accuracy=right)


def conformal_prediction_sets(predictions: Predictions, calibration: Predictions, alpha: float) -> ConformalResult:
    """Conformal prediction sets: all classes whose probability is not unusually low for a true one.

    Split conformal prediction: the threshold is the quantile of 1 - p(true class) on calibration images, which the
    model was not fitted on, at rank ceil((n + 1)(1 - alpha)), so that sets hold the true class with probability 1 -
    alpha at least, if images come from where the calibration images come from (Vovk et al., 2005; Sadinle, Lei and
    Wasserman, JASA 2019). Weights are not used. RunError if alpha is not between 0 and 1, or there are no calibration
    images.
    """
    threshold = find_conformal_threshold(calibration, alpha)
    within = np.asarray(predictions.probabilities, np.float64) >= threshold
    sizes = within.sum(axis=1)
    return ConformalResult(
        alpha=alpha,
        threshold=max(threshold + _ROUNDING, 0.0),
        coverage=float(within[np.arange(len(predictions)), predictions.targets].mean()),
        mean_size=float(sizes.mean()),
        single=float((sizes == 1).mean()),
        empty=float((sizes == 0).mean()),
        sizes=np.bincount(sizes).tolist(),
    )


def find_conformal_threshold(calibration: Predictions, alpha: float) -> float:
    """The probability from which on a class is in a conformal set; arguments and errors as in the sets."""
    if not 0 < alpha < 1:
        raise RunError("The error rate of conformal sets is not between 0 and 1.", alpha)
    count = len(calibration)
    if not count:
        raise RunError("No images to calibrate conformal sets on.", 0, "Train with a validation set: data.validation.")
    known = np.asarray(calibration.probabilities, np.float64)
    scores = np.sort(1 - known[np.arange(count), calibration.targets])
    rank = int(np.ceil((count + 1) * (1 - alpha) - 1e-9))
    quantile = scores[rank - 1] if rank <= count else 1.0
    return float(1 - quantile - _ROUNDING)


def conformal_label_sets(
    predictions: Predictions, calibration: Predictions, alpha: float
) -> list[LabelConformalResult]:
    """Conformal prediction sets of "yes" and "no" for each label; errors are those of `conformal_prediction_sets`."""
    results = []
    for index, label in enumerate(predictions.task.class_names):
        sets = conformal_prediction_sets(_take_label(predictions, index), _take_label(calibration, index), alpha)
        undecided = sets.sizes[2] / len(predictions) if sets.sizes[2:] else 0.0
        results.append(LabelConformalResult(**vars(sets), label=label, undecided=undecided))
    return results


def _take_label(predictions: Predictions, index: int) -> Predictions:
    """Predictions of one label as two classes, no and yes."""
    yes = predictions.probabilities[:, index]
    pair = np.stack([1 - yes, yes], axis=1)
    return replace(predictions, probabilities=pair, targets=predictions.targets[:, index].astype(np.int64))


def _confidence_and_correctness(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of each prediction, float64 [n], and whether it is correct, bool [n]."""
    p, task = np.asarray(predictions.probabilities, np.float64), predictions.task
    if not task.is_multilabel:
        return p.max(axis=1), p.argmax(axis=1) == predictions.targets
    correct = (task.decide(predictions.probabilities) == task.members(predictions.targets)).all(axis=1)
    return np.maximum(p, 1 - p).prod(axis=1), correct
