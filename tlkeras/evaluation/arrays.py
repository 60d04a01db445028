"""Metrics with intervals, comparisons, calibration and conformal sets of any model, from plain arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import DataError, suggest
from tlkeras.evaluation.calibration import (
    CalibrationResult,
    LogitScaling,
    ScalingMethod,
    evaluate_calibration,
    fit_scaling,
)
from tlkeras.evaluation.comparison import PairedDifference, compare_probabilities
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.metrics import overall_metrics, resample_predictions
from tlkeras.evaluation.selective import find_conformal_threshold
from tlkeras.runs.predictions import Predictions

_ROUNDING = 1e-2  # of probabilities in float16, summed


def make_predictions(
    targets: Any,
    probabilities: Any,
    classes: Sequence[Any] | None = None,
    weights: Any = None,
    groups: Any = None,
) -> Predictions:
    """Predictions and what is true, checked, from arrays: what all functions of this room take.

    Args:
        targets: Of each example the class, (n,), as an index or as one of `classes`; or 1 for each label that it has
            and 0 else, integers (n, k); or a number, floating, (n,).
        probabilities: (n, k), of one class rows that sum to 1; a column, (n,) or (n, 1), is the probability of the
            second of two classes, or the predicted number.
        classes: Their values, in the order of the columns; sorted targets, where these are strings.
        weights: Of each example, (n,).
        groups: Of each example, (n,), resampled as a whole; "" for none.

    DataError if the arrays do not fit each other, or probabilities are none.

    >>> make_predictions(["cat", "dog"], [[0.9, 0.1], [0.2, 0.8]]).task.class_names
    ('cat', 'dog')
    """
    y, p = np.asarray(targets), np.asarray(probabilities, np.float64)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    p = p[:, None] if p.ndim == 1 else p
    is_number = y.dtype.kind == "f"
    if p.ndim != 2 or len(p) != len(y) or not len(y):
        raise DataError("Targets and probabilities are not of the same examples.", f"shapes {y.shape} and {p.shape}")
    if is_number and (y.ndim != 1 or p.shape[1] != 1):
        way_out = "Give classes as integers: y.astype(int), or y.argmax(axis=1) of one-hot rows."
        raise DataError("Floating targets are numbers, with one predicted number each.", f"shape {y.shape}", way_out)
    if y.ndim == 1 and p.shape[1] == 1 and not is_number:
        p = np.concatenate([1 - p, p], axis=1)
    if not is_number:
        _check_probabilities(p, is_multilabel=y.ndim == 2)
        y, classes = _encode(y, p.shape[1], classes)
    names = tuple(map(str, classes or ("value",)))
    separator, kind = ("|" if y.ndim == 2 else None), ("regression" if is_number else None)
    return _assemble(make_task("label", names, separator, kind), y, p, weights, groups)


def measure_metrics(
    targets: Any,
    probabilities: Any,
    classes: Sequence[Any] | None = None,
    weights: Any = None,
    groups: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics with 95 % intervals of a bootstrap over examples, or groups of them, by name.

    Arrays are as of `make_predictions`; without `resamples` there are no intervals.

    >>> measure_metrics([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.3], resamples=0)["accuracy"].value
    0.75
    """
    predictions = make_predictions(targets, probabilities, classes, weights, groups)
    samples = resample_predictions(predictions, predictions.probabilities, resamples, seed)
    return overall_metrics(samples.list_estimates())


def compare_models(
    targets: Any,
    probabilities: Any,
    reference: Any,
    classes: Sequence[Any] | None = None,
    groups: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Differences of a model from a reference on the same examples, by metric, with their 95 % intervals.

    Arrays are as of `make_predictions`; `better` tells whether the model is, None if the difference may be chance.

    >>> better = np.array([0.1, 0.9] * 40)
    >>> compare_models([0, 1] * 40, better, 1 - better, resamples=200)["accuracy"].better
    True
    """
    own, other = (make_predictions(targets, one, classes, None, groups) for one in (probabilities, reference))
    return compare_probabilities(own, other.probabilities, resamples, seed)


def fit_calibration(
    targets: Any,
    probabilities: Any,
    method: ScalingMethod = "temperature",
    classes: Sequence[Any] | None = None,
    weights: Any = None,
) -> LogitScaling:
    """The temperature or vector scaling of least log loss on examples that the model was not fitted on.

    Arrays are as of `make_predictions`; the scaling's `apply` calibrates further probabilities (n, k).

    >>> scaling = fit_calibration([0, 1, 1, 0], [[0.99, 0.01], [0.01, 0.99], [0.99, 0.01], [0.99, 0.01]])
    >>> bool(scaling.apply([[0.99, 0.01]]).max() < 0.8)
    True
    """
    return fit_scaling(_of_classes(targets, probabilities, classes, weights), method)


def measure_calibration(
    targets: Any,
    probabilities: Any,
    classes: Sequence[Any] | None = None,
    weights: Any = None,
    groups: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> CalibrationResult:
    """Calibration errors, the bins of a reliability diagram, and the interval of the expected calibration error.

    Arrays are as of `make_predictions`.

    >>> round(measure_calibration([0, 1] * 10, [0.25, 0.75] * 10, resamples=0).ece, 3)
    0.25
    """
    predictions = _of_classes(targets, probabilities, classes, weights, groups)
    return evaluate_calibration(predictions, None, resamples, seed)


def predict_sets(
    probabilities: Any,
    calibration_targets: Any,
    calibration_probabilities: Any,
    alpha: float = 0.1,
    classes: Sequence[Any] | None = None,
) -> np.ndarray:
    """Conformal prediction sets, bool (n, k): they hold the true class with probability 1 - `alpha` at least.

    The calibration arrays are as of `make_predictions`, of one class per example that the model was not fitted on; see
    `conformal_prediction_sets` for the method.

    >>> predict_sets([[0.6, 0.4], [0.9, 0.1]], [0] * 9, [[0.5, 0.5]] * 9)
    array([[ True, False],
           [ True, False]])
    """
    calibration = _of_classes(calibration_targets, calibration_probabilities, classes)
    p = np.asarray(probabilities, np.float64)
    p = np.stack([1 - p.ravel(), p.ravel()], axis=1) if p.ndim == 1 or p.shape[1] == 1 else p
    if calibration.task.is_multilabel or p.shape[1] != calibration.probabilities.shape[1]:
        rule = "Conformal sets are of the one class of each example, with the columns of the calibration."
        raise DataError(rule, f"shapes {p.shape} and {calibration.probabilities.shape}")
    return p >= find_conformal_threshold(calibration, alpha)


def _of_classes(targets: Any, probabilities: Any, classes: Any, weights: Any = None, groups: Any = None) -> Predictions:
    predictions = make_predictions(targets, probabilities, classes, weights, groups)
    if not predictions.task.has_classes:
        way_out = "Give classes as integers: y.astype(int)."
        raise DataError("Numbers have no probabilities to calibrate.", "floating targets", way_out)
    return predictions


def _check_probabilities(p: np.ndarray, is_multilabel: bool) -> None:
    if not np.isfinite(p).all():
        raise DataError("Some probabilities are not finite.", f"{int((~np.isfinite(p)).any(axis=1).sum())} rows")
    wrong = (p < 0) | (p > 1)
    if wrong.any() or (not is_multilabel and (np.abs(p.sum(axis=1) - 1) > _ROUNDING).any()):
        row = p[int(np.argmax(wrong.any(axis=1) | (np.abs(p.sum(axis=1) - 1) > _ROUNDING)))]
        way_out = "Of logits take the softmax, of several labels the sigmoid."
        raise DataError(
            "These are no probabilities: rows are from 0 to 1 and sum to 1.", row.round(3).tolist(), way_out
        )


def _encode(y: np.ndarray, count: int, classes: Sequence[Any] | None) -> tuple[np.ndarray, list[Any]]:
    """Targets as a task has them, and the values of the classes."""
    if y.ndim == 2:
        if y.shape[1] != count or not np.isin(y, (0, 1)).all():
            raise DataError(f"Labels are 0 or 1 in {count} columns, as the probabilities.", f"shape {y.shape}")
        return y.astype(np.int8), list(range(count) if classes is None else classes)
    if classes is None:
        classes = sorted(set(y.tolist())) if y.dtype.kind in "OUS" else list(range(count))
    places = {value: place for place, value in enumerate(classes)}
    if len(places) != count:
        way_out = "Give `classes`, a value for each column."
        raise DataError(f"There are {count} columns of probabilities.", f"{len(places)} classes", way_out)
    unknown = sorted({str(value) for value in y.tolist() if value not in places})
    if unknown:
        hint = suggest(unknown[0], map(str, classes))
        raise DataError("Some targets are none of the classes.", ", ".join(map(repr, unknown[:3])), hint)
    return np.array([places[value] for value in y.tolist()], np.int64), list(classes)


def _assemble(task: Task, y: np.ndarray, p: np.ndarray, weights: Any, groups: Any) -> Predictions:
    count = len(y)
    own = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    names = np.full(count, "") if groups is None else np.asarray(groups).astype(str)
    if own.shape != (count,) or names.shape != (count,) or not (own >= 0).all() or not own.any():
        rule = "Weights and groups are one per example, and some weight is above 0."
        raise DataError(rule, f"shapes {own.shape} and {names.shape} for {count} examples")
    keys = np.arange(count).astype(str)
    return Predictions(task, keys, y, p, own, p.mean(axis=0), {"group": names})
