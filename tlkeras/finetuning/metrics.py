"""Metrics on held-out examples, after each epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit, log_softmax
from sklearn.metrics import roc_auc_score

METRICS = {"val_loss": True, "val_accuracy": False, "val_roc_auc": False}
"""Name, and whether less is better."""


class TaskSlice(NamedTuple):
    """The columns of a task among targets and logits."""

    task: str = ""
    width: int | None = None
    several: bool = False  # whether an example can have several labels
    units: tuple[float, float] | None = None  # scale and offset of a regression: logits are (target - offset) / scale


def compute_validation_metrics(
    targets: np.ndarray, logits: np.ndarray, weights: np.ndarray, tasks: Sequence[TaskSlice]
) -> dict[str, float]:
    """Metrics, averaged over tasks, and where there are several those of each as `NAME_task`.

    Targets are dense, [n, k], the tasks side by side as are logits [n, k]; rows of NaN, where a target is not known,
    are left out. Tasks are in the order of the columns; a width of None takes all that are left. Weights are [n].
    """
    found, start = {}, 0
    for task in tasks:
        stop = targets.shape[1] if task.width is None else start + task.width
        own, predicted = targets[:, start:stop], logits[:, start:stop]
        known, start = np.isfinite(own).all(axis=1) & (weights > 0), stop
        if not known.any():
            continue
        rows = own[known], predicted[known], weights[known]
        found[task.task] = measure_number(*rows, task.units) if task.units else measure(*rows, several=task.several)
    means = {name: float(np.mean([of_task[name] for of_task in found.values() if name in of_task])) for name in METRICS}
    if len(tasks) == 1:
        return means
    return means | {f"{name}_{task}": value for task, values in found.items() for name, value in values.items()}


def measure(targets: np.ndarray, logits: np.ndarray, weights: np.ndarray, *, several: bool = False) -> dict[str, float]:
    """Metrics of logits [n, k] with dense targets [n, k] and weights [n], a value per name in `METRICS`.

    The loss is the plain cross entropy whatever is minimised: smoothing and focus would be monitored too. The area
    under the ROC curve is the mean over the classes, NaN where one of them, or all the others, are absent.
    With `several` labels per example the loss is binary, and accuracy the fraction of labels predicted correctly.
    """
    if several:
        truth, predictions, scores = targets > 0.5, logits > 0, expit(logits)
        losses = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).mean(axis=1)
        right = (predictions == truth).mean(axis=1)
    else:
        truth = np.eye(targets.shape[1], dtype=bool)[targets.argmax(axis=1)]
        scores = log_softmax(logits.astype(np.float64), axis=1)
        losses = -(targets * scores).sum(axis=1)
        right = logits.argmax(axis=1) == targets.argmax(axis=1)
    return {
        "val_loss": float(np.average(losses, weights=weights)),
        "val_accuracy": float(np.average(right, weights=weights)),
        "val_roc_auc": _average_roc_auc(truth, scores, weights),
    }


def measure_number(
    targets: np.ndarray, logits: np.ndarray, weights: np.ndarray, units: tuple[float, float]
) -> dict[str, float]:
    """Half the squared error in units of the standard deviation, and the mean absolute error in those of the targets.

    Of a regression and its standardised predictions, [n, 1] both, with weights [n] and the units of `TaskSlice`.
    """
    scale, offset = units
    errors = (targets[:, 0] - offset) / scale - logits[:, 0]
    return {
        "val_loss": float(np.average(0.5 * errors**2, weights=weights)),
        "val_mae": float(np.average(np.abs(errors), weights=weights) * scale),
    }


def _average_roc_auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    counted = truth[weights > 0]
    if counted.all(axis=0).any() or not counted.any(axis=0).all():
        return float("nan")
    areas = [roc_auc_score(of, by, sample_weight=weights) for of, by in zip(truth.T, scores.T, strict=True)]
    return float(np.mean(areas))
