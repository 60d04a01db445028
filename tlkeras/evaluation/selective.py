"""When to ask a person: answers only above a confidence, or several answers with a promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlkeras.errors import RunError
from tlkeras.runs.predictions import Predictions

_POINTS = 60


@dataclass(frozen=True)
class RiskCoverageCurve:
    """What is gained by answering only where the model is sure.

    Attributes:
        threshold: Confidence from which on it answers, float [m], rising.
        coverage: Share of images that it answers, float [m].
        accuracy: Of these, float [m].
    """

    threshold: np.ndarray
    coverage: np.ndarray
    accuracy: np.ndarray


def risk_coverage_curve(predictions: Predictions) -> RiskCoverageCurve:
    """Return coverage and accuracy for every threshold (Geifman and El-Yaniv, NeurIPS 2017).

    Weights count in both. Equal confidences are answered together. Where an image can have several labels, an answer
    is right if all are, and its confidence is the product of those of its labels.
    """
    confidence, right = _judge(predictions)
    order = np.argsort(-confidence, kind="stable")
    sure, weights = confidence[order], predictions.weights[order].astype(np.float64)
    covered, correct = np.cumsum(weights), np.cumsum(weights * right[order])
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    last = last[covered[last] > 0][::-1]
    return RiskCoverageCurve(sure[last], covered[last] / covered[-1], correct[last] / covered[last])


def choose_threshold(predictions: Predictions, accuracy: float) -> float | None:
    """Return the lowest threshold from which on answers are as accurate as wanted; None where none is.

    Args:
        answers: That the model was not fitted on, and not the ones it is then measured on.
        accuracy: What is wanted, 0 to 1.
    """
    trade = risk_coverage_curve(predictions)
    enough = np.flatnonzero(trade.accuracy >= accuracy)
    return float(trade.threshold[enough[0]]) if len(enough) else None


def describe_trade(
    predictions: Predictions, chosen_on: Predictions | None, accuracy: float | None = None
) -> dict[str, Any]:
    """Return the curve, and a threshold with what it gives on held-out images, as JSON can hold it.

    Args:
        answers: On held-out images.
        chosen_on: What the threshold is chosen on; None: none is chosen.
        accuracy: What is wanted of the answers given; None: half as many errors as without asking.
    """
    trade = risk_coverage_curve(predictions)
    shown = np.unique(np.linspace(0, len(trade.coverage) - 1, _POINTS).astype(int))
    curve = {name: getattr(trade, name)[shown].tolist() for name in ("threshold", "coverage", "accuracy")}
    wanted = accuracy if accuracy is not None else 1 - (1 - float(trade.accuracy[0])) / 2
    threshold = None if chosen_on is None or not len(chosen_on) else choose_threshold(chosen_on, wanted)
    result: dict[str, Any] = {**curve, "wanted": wanted, "chosen": threshold}
    if threshold is not None:
        confidence, right = _judge(predictions)
        kept = confidence >= threshold
        weight = float(predictions.weights[kept].sum())
        result["chosen_coverage"] = weight / float(predictions.weights.sum())
        result["chosen_accuracy"] = float(predictions.weights[kept] @ right[kept]) / weight if weight else None
    return result


def conformal_prediction_sets(predictions: Predictions, calibration: Predictions, alpha: float) -> dict[str, Any]:
    """Return how conformal prediction sets do: all classes whose probability is not unusually low for a true one.

    Split conformal prediction: the threshold is the quantile of 1 - p(true class) on calibration images at rank
    ceil((n + 1)(1 - alpha)), so that sets hold the true class with probability 1 - alpha at least, if images come
    from where the calibration images come from (Vovk et al., 2005; Sadinle, Lei and Wasserman, JASA 2019). Weights
    are not used.

    Args:
        answers: On held-out images.
        calibration: On images that the model was not fitted on.
        alpha: Share of sets that may miss the true class, above 0 and below 1.

    Returns:
        `alpha`, `threshold` (probability from which on a class is in the set; 0: all are), `coverage`, `mean_size`,
        `single` and `empty` (shares of sets), `sizes` (counts by size).

    Raises:
        RunError: Alpha is not between 0 and 1, or there are no calibration images.
    """
    if not 0 < alpha < 1:
        raise RunError("The error rate of conformal sets lies between 0 and 1.", alpha)
    count = len(calibration)
    if not count:
        raise RunError("Conformal sets need images that were not trained on.", 0, "Set data.validation.")
    scores = np.sort(1 - _choose(calibration))
    rank = int(np.ceil((count + 1) * (1 - alpha) - 1e-9))
    quantile = scores[rank - 1] if rank <= count else 1.0
    within = np.asarray(predictions.probabilities, np.float64) >= 1 - quantile - 1e-12
    sizes = within.sum(axis=1)
    return {
        "alpha": alpha,
        "threshold": float(max(1 - quantile, 0.0)),
        "coverage": float(within[np.arange(len(predictions)), predictions.targets].mean()),
        "mean_size": float(sizes.mean()),
        "single": float((sizes == 1).mean()),
        "empty": float((sizes == 0).mean()),
        "sizes": np.bincount(sizes).tolist(),
    }


def measure_label_sets(predictions: Predictions, calibration: Predictions, alpha: float) -> list[dict[str, Any]]:
    """Return how conformal sets do where an image can have several labels: of "yes" and "no" for each label.

    Returns:
        For each label what `measure_sets` returns of it, its `label`, and `undecided`, the share of sets with both.

    Raises:
        RunError: As `measure_sets`.
    """
    found = []
    for place, label in enumerate(predictions.task.class_names):
        sets = conformal_prediction_sets(_ask_one(predictions, place), _ask_one(calibration, place), alpha)
        found.append(
            {"label": label, **sets, "undecided": sets["sizes"][2] / len(predictions) if sets["sizes"][2:] else 0.0}
        )
    return found


def _ask_one(predictions: Predictions, place: int) -> Predictions:
    """Return the answers on one label as those of two classes, no and yes."""
    yes = predictions.probabilities[:, place]
    pair = np.stack([1 - yes, yes], axis=1)
    return replace(predictions, probabilities=pair, targets=predictions.targets[:, place].astype(np.int64))


def _judge(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return how sure each answer is, float64 [n], and whether it is right, bool [n]."""
    p = np.asarray(predictions.probabilities, np.float64)
    if predictions.targets.ndim == 1:
        return p.max(axis=1), p.argmax(axis=1) == predictions.targets
    right = (predictions.task.decide(predictions.probabilities) == predictions.task.members(predictions.targets)).all(
        axis=1
    )
    return np.maximum(p, 1 - p).prod(axis=1), right


def _choose(predictions: Predictions) -> np.ndarray:
    return np.asarray(predictions.probabilities, np.float64)[np.arange(len(predictions)), predictions.targets]
