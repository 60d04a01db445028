"""Whether an export answers as its run did, and whether it answers well enough to be published."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.data.tasks import Task
from tlkeras.evaluation.metrics import Estimate, bootstrap_metrics
from tlkeras.exporting.held_out import HeldOut
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.progress import progress_bar

PredictFn = Callable[[list[bytes], np.ndarray], list[np.ndarray]]
"""From images, as bytes and as uint8 [n, size, size, 3], to the probabilities [n, k] of each task."""

REFERENCE = "Keras model of the run"
_RESAMPLES = 1000
_TIMED = 9


@dataclass(frozen=True)
class AcceptanceCriteria:
    """What a form of the model must satisfy to be published.

    Attributes:
        tolerance: Largest difference in a probability from the model of the run; None: any.
        min_accuracy: Lowest accuracy on the images compared; None: any.
        max_drop: What accuracy may be lost against the model of the run; None: any.
    """

    tolerance: float | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class ParityResult:
    """How one form of the model answered one task.

    Attributes:
        form: The form's name.
        task: The task's.
        difference: Largest difference in a probability from the Keras model; of a number as a share of the largest.
        agreement: Share of images that are answered as by the Keras model.
        accuracy: Share of right answers (all labels right, where there are several; of a number R2): value, low, high.
        megabytes: On disk.
        milliseconds: One image, alone, from uint8 to probabilities: the median.
    """

    form: str
    task: str
    difference: float
    agreement: float
    accuracy: dict[str, float]
    megabytes: float
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self)


def compare(
    forms: Mapping[str, PredictFn],
    sizes: Mapping[str, float],
    held_out: HeldOut,
    tasks: Sequence[Task],
    entry: Preprocessing,
) -> tuple[list[ParityResult], dict[str, list[np.ndarray]]]:
    """Ask all forms about all images; the first is what the others are compared with.

    Args:
        sizes: Megabytes of each form.

    Returns:
        A row per form and task; the probabilities [n, k] of each task, by form.
    """
    parts: dict[str, list[list[np.ndarray]]] = {name: [] for name in forms}
    times: dict[str, list[float]] = {name: [] for name in forms}
    with progress_bar("Comparing", len(held_out), "images") as advance:
        for encoded, images in held_out.batches(entry):
            for name, ask in forms.items():
                parts[name].append(ask(encoded, images))
                times[name] += _time_one(ask, encoded, images) if len(times[name]) < _TIMED else []
            advance(len(encoded))
    predictions = {
        name: [np.concatenate(of_task) for of_task in zip(*of_form, strict=True)] for name, of_form in parts.items()
    }
    reference = predictions[next(iter(forms))]
    rows = []
    for name, of_form in predictions.items():
        for place, task in enumerate(tasks):
            accuracy = _measure_accuracy(task, held_out.targets[place], of_form[place], held_out.weights)
            same = task.same_decision(reference[place], of_form[place])
            rows.append(
                ParityResult(
                    name,
                    task.name,
                    float(task.measure_difference(reference[place], of_form[place]).max()),
                    float(same.mean()),
                    accuracy._asdict(),
                    sizes[name],
                    statistics.median(times[name]) * 1e3,
                )
            )
    return rows, predictions


def _measure_accuracy(task: Task, targets: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> Estimate:
    """Return the accuracy, of a number R2, on images whose target is known; NaN where it is of none."""
    known = task.is_labelled(targets)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    figures = bootstrap_metrics(targets[known], predictions[known], weights[known], _RESAMPLES)
    return next(figures[name] for name in ("accuracy", "exact_match", "r2") if name in figures)


def _time_one(ask: PredictFn, encoded: list[bytes], images: np.ndarray) -> list[float]:
    """Return the seconds that single images take; the first call, which prepares, is left out."""
    ask(encoded[:1], images[:1])
    seconds = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        ask(encoded[:1], images[:1])
        seconds.append(time.perf_counter() - started)
    return seconds


def list_failures(rows: Sequence[ParityResult], gates: Mapping[str, AcceptanceCriteria]) -> list[str]:
    """Say which forms do not pass their gates, and why."""
    reference = {row.task: row for row in reversed(rows) if row.form == REFERENCE}
    problems = []
    for row in rows:
        gate = gates.get(row.form)
        if gate is None:
            continue
        value, of = row.accuracy["value"], f"{row.form}, {row.task!r}"
        drop = reference[row.task].accuracy["value"] - value
        if gate.tolerance is not None and not row.difference <= gate.tolerance:
            problems.append(f"{of}: a probability differs by {row.difference:.2g}, more than {gate.tolerance:g}")
        if gate.min_accuracy is not None and not value >= gate.min_accuracy:
            problems.append(f"{of}: an accuracy of {value:.4f} is below {gate.min_accuracy:g}")
        if gate.max_drop is not None and not drop <= gate.max_drop + 1e-9:
            problems.append(f"{of}: {drop:.4f} of accuracy is lost, more than {gate.max_drop:g}")
    return problems


def measure_size(path: Path) -> float:
    """Return the megabytes of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
