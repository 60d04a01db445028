"""Comparison of exported models with the run's own model, and the criteria for publishing them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlkeras.data.tasks import Task
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.metrics import bootstrap_metrics
from tlkeras.exporting.held_out import HeldOut
from tlkeras.progress import progress_bar
from tlkeras.results import Result

PredictFn = Callable[[list[bytes], np.ndarray], list[np.ndarray]]
"""From images, as bytes and as uint8 [n, size, size, 3], to the probabilities [n, k] of each task."""

REFERENCE = "Keras model of the run"
_TIMED_CALLS = 9


@dataclass(frozen=True)
class AcceptanceCriteria:
    """Conditions for publishing a model."""

    tolerance: float | None = None  # largest difference in a probability from the model of the run; None: any
    min_accuracy: float | None = None  # lowest accuracy on the images compared; None: any
    max_drop: float | None = None  # largest loss of accuracy against the model of the run; None: any


@dataclass(frozen=True)
class ParityResult(Result):
    """Agreement of one format of the model with the run's, on one task."""

    form: str
    task: str
    # largest difference in a probability from the Keras model; of a regression as a fraction of the largest value
    difference: float
    agreement: float  # fraction of images with the same prediction as the Keras model's
    accuracy: Estimate  # accuracy (exact match of several labels, R2 of a regression) with its 95 % interval
    megabytes: float  # size on disk
    milliseconds: float  # time of one image, alone, from uint8 to probabilities: the median


def compare_formats(
    models: Mapping[str, PredictFn], sizes: Mapping[str, float], held_out: HeldOut, tasks: Sequence[Task]
) -> tuple[list[ParityResult], dict[str, list[np.ndarray]]]:
    """A row per model and task that compares with the first model; the probabilities [n, k] of each task, by model."""
    parts: dict[str, list[list[np.ndarray]]] = {name: [] for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    with progress_bar("Comparing", len(held_out), "images") as advance:
        for encoded, images in held_out.batches():
            for name, predict in models.items():
                parts[name].append(predict(encoded, images))
                times[name] += _time_one(predict, encoded, images) if len(times[name]) < _TIMED_CALLS else []
            advance(len(encoded))
    predictions = {
        name: [np.concatenate(of_task) for of_task in zip(*batches, strict=True)] for name, batches in parts.items()
    }
    reference = predictions[next(iter(models))]
    rows = []
    for name, of_model in predictions.items():
        milliseconds = statistics.median(times[name]) * 1e3
        for task, targets, expected, found in zip(tasks, held_out.targets, reference, of_model, strict=True):
            difference = float(task.measure_difference(expected, found).max())
            agreement = float(task.same_decision(expected, found).mean())
            accuracy = _measure_accuracy(task, targets, found, held_out)
            rows.append(ParityResult(name, task.name, difference, agreement, accuracy, sizes[name], milliseconds))
    return rows, predictions


def _measure_accuracy(task: Task, targets: np.ndarray, predictions: np.ndarray, held_out: HeldOut) -> Estimate:
    """Accuracy, or R2 of a regression, on images whose target is known; NaN where none is.

    Resampled as the run's metrics are, so that the same images have the same interval.
    """
    known = task.is_labelled(targets)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    weights, groups, options = held_out.weights[known], held_out.groups[known], held_out.bootstrap
    metrics = bootstrap_metrics(
        targets[known], predictions[known], weights, options.bootstrap_samples, options.seed, groups
    )
    return next(metrics[name] for name in ("accuracy", "exact_match", "r2") if name in metrics)


def _time_one(predict: PredictFn, encoded: list[bytes], images: np.ndarray) -> list[float]:
    """Seconds per call with a single image; a first call, which prepares, is left out."""
    predict(encoded[:1], images[:1])
    seconds = []
    for _ in range(_TIMED_CALLS):
        started = time.perf_counter()
        predict(encoded[:1], images[:1])
        seconds.append(time.perf_counter() - started)
    return seconds


def list_failures(rows: Sequence[ParityResult], criteria: Mapping[str, AcceptanceCriteria]) -> list[str]:
    """Sentences on the models that miss their acceptance criteria."""
    reference = {row.task: row for row in reversed(rows) if row.form == REFERENCE}
    problems = []
    for row, limits in ((row, criteria[row.form]) for row in rows if row.form in criteria):
        value, of = row.accuracy.value, f"{row.form}, {row.task!r}"
        drop = reference[row.task].accuracy.value - value
        if limits.tolerance is not None and not row.difference <= limits.tolerance:
            problems.append(f"{of}: a probability differs by {row.difference:.2g}, more than {limits.tolerance:g}")
        if limits.min_accuracy is not None and not value >= limits.min_accuracy:
            problems.append(f"{of}: an accuracy of {value:.4f} is below {limits.min_accuracy:g}")
        if limits.max_drop is not None and not drop <= limits.max_drop + 1e-9:
            problems.append(f"{of}: {drop:.4f} of accuracy is lost, more than {limits.max_drop:g}")
    return problems


def measure_size(path: Path) -> float:
    """Megabytes of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
