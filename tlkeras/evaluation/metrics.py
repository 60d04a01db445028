"""Figures with their doubt: weighted classification metrics and bootstrap intervals.

Every metric is written for a stack of weightings (b, n) at once: a bootstrap resample is nothing but another
weighting of the same examples, so the point estimate and its interval come from one piece of code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tlkeras.data.tasks import Task
from tlkeras.errors import DataError, ResourceError
from tlkeras.evaluation.labels import compute_labels
from tlkeras.evaluation.ranking import compute_ranking
from tlkeras.records import read_task
from tlkeras.runs import Run

Key = str | tuple[int, str]
"""Of a figure: its name, or the index of a label and the name."""

logger = logging.getLogger(__name__)

_CELLS = 4_000_000  # weights held in memory at a time


class Figure(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def evaluate(run: Run, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Compute the figures of a run from its stored predictions, and keep them as metrics.json.

    Returns:
        `metrics` and `baseline` (always answering how common each class was in training), each name -> value, low,
        high; `labels`, the same by name of label, where a picture can have several; `kind` of the task, `classes`,
        `examples`, `rejected`, and what the intervals mean.
    """
    stored = run.read_arrays("predictions.npz")
    targets, weights = stored["targets"], stored["weights"]
    task = read_task(run)
    majority = np.tile(stored["prior"], (len(targets), 1))
    figures = measure(targets, stored["probabilities"], weights, resamples, seed)
    result = {
        "run": run.name,
        "kind": task.kind,
        "metrics": _as_dict(figures),
        "baseline": _as_dict(measure(targets, majority, weights, resamples, seed)),
        **_divide_by_label(figures, task, task.members(targets)),
        "classes": list(task.class_names),
        "examples": {"test": len(targets), **run.manifest.get("examples", {})},
        "weighted": bool(np.ptp(weights) > 0),
        "interval": f"95 % bootstrap, {resamples} resamples",
    }
    try:
        run.write_json("metrics.json", result)
    except ResourceError as error:  # the figures are known all the same
        logger.warning("The figures could not be kept: %s", error)
    return result


def measure(
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[Key, Figure]:
    """Return every metric with the percentile interval of a bootstrap over examples.

    Args:
        targets: Class index of each example, shape (n,), or 1 for each label that it has and 0 else, shape (n, k).
        probabilities: Shape (n, k), rows summing to 1 unless there are several labels.
        weights: Weight of each example, shape (n,), or None.
        resamples: Bootstrap resamples; 0 leaves the interval at the value.
        seed: Seed of the resampling; the same seed and n give the same resamples, so two models are comparable.

    Raises:
        DataError: There are no examples, or a probability is not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    if len(targets) == 0:
        raise DataError("There must be at least one held-out picture to measure on.", 0)
    if not np.isfinite(probabilities).all():
        rows = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise DataError("Probabilities must be finite.", f"{rows} rows with NaN or infinity")
    weights = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=np.float64)
    of_kind: Callable[..., Mapping[Key, np.ndarray]] = compute if targets.ndim == 1 else compute_labels
    compute_all = partial(of_kind, targets, probabilities)
    values = compute_all(weights[None])
    samples = [compute_all(counts * weights) for counts in _resample(len(targets), resamples, seed, targets.size)]
    figures = {}
    for name in values:
        drawn = np.concatenate([values[name], *(sample[name] for sample in samples)])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn[1:] if len(drawn) > 1 else drawn, [2.5, 97.5]) if len(drawn) else [np.nan] * 2
        figures[name] = Figure(float(values[name][0]), float(low), float(high))
    return figures


def compute(targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[Key, np.ndarray]:
    """Return each metric for each weighting, shape (b,).

    Classes without weight among the targets are left out of the averages over classes; ROC AUC (one class against
    the rest, averaged over classes) is NaN where only one class is left.

    Args:
        targets: Class index of each example, shape (n,).
        probabilities: Shape (n, k).
        weights: Shape (b, n).
    """
    classes = probabilities.shape[1]
    truth = np.eye(classes)[targets]
    answer = np.eye(classes)[probabilities.argmax(axis=1)]
    total = weights.sum(axis=1)
    support, answered, right = weights @ truth, weights @ answer, weights @ (truth * answer)
    present = support > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(present, right / support, 0.0)
        f1 = np.where(present, 2 * right / (support + answered), 0.0)
    chosen = np.clip(probabilities[np.arange(len(targets)), targets], 1e-15, 1.0)
    return {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": recall.sum(axis=1) / present.sum(axis=1),
        "macro_f1": f1.sum(axis=1) / present.sum(axis=1),
        "roc_auc": _roc_auc(truth, probabilities, weights),
        "log_loss": weights @ -np.log(chosen) / total,
    }


def _roc_auc(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve per weighting; for two classes that of the second one."""
    columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = np.stack([compute_ranking(truth[:, c], probabilities[:, c], weights)[0] for c in columns])
    known = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.where(known, areas, 0.0).sum(axis=0) / known.sum(axis=0)


def _resample(count: int, resamples: int, seed: int, cells: int) -> Iterator[np.ndarray]:
    """Yield how often each example was drawn, in stacks (b, n) that bound the memory: `cells` are needed for each."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // cells)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = random.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _as_dict(figures: Mapping[Key, Figure]) -> dict[str, dict[str, float | None]]:
    """Return the figures on all classes as JSON can hold them; what is undefined is null."""
    return {name: _as_parts(figure) for name, figure in figures.items() if isinstance(name, str)}


def _divide_by_label(figures: Mapping[Key, Figure], task: Task, members: np.ndarray) -> dict[str, Any]:
    """Return the figures on single labels, with the number of pictures that have it; nothing where there are none."""
    labels: dict[str, dict[str, Any]] = {}
    for key, figure in figures.items():
        if not isinstance(key, str):
            index, name = key
            of_label = labels.setdefault(task.class_names[index], {"examples": int(members[:, index].sum())})
            of_label[name] = _as_parts(figure)
    return {"labels": labels} if labels else {}


def _as_parts(figure: Figure) -> dict[str, float | None]:
    return {part: value if np.isfinite(value) else None for part, value in figure._asdict().items()}
