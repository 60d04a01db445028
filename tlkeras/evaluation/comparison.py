"""Whether one model is better than another: paired differences on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import load_recipe
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError
from tlkeras.evaluation.metrics import Estimate, as_parts, bootstrap_samples
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, check_finite, load_predictions, take

LOWER_IS_BETTER = ("log_loss", "brier_score", "hamming_loss", "rmse", "mae")


def compare(references: Sequence[str | Path | Run], *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Finished runs compared with the first of them; see `compare_runs`.

    Args:
        references: Names, paths, `latest` or `Run`s; two or more.
        runs: Folder of the run directories.
    """
    opened = [open_run(reference, runs) for reference in references]
    options = load_recipe(opened[0].require("recipe.yaml")).evaluation
    return compare_runs(opened, resamples=options.bootstrap_samples, seed=options.seed)


def compare_runs(runs: Sequence[Run], *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Compare runs with the first of them, on the held-out images that all of them have.

    Returns:
        `runs` (name, minutes, parameters, images), `images` (compared), `tasks`: by name, `metrics` (per run and
        metric: value, low, high) and `differences` (per other run and metric: those of the difference, and `better`:
        true or false where 0 lies outside the interval, else None); `notes`.

    Raises:
        RunError: Fewer than two runs, runs of other tasks or classes, or no common image.
    """
    names = [run.name for run in runs]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise RunError("A comparison needs two runs or more, each with a name of its own.", ", ".join(names))
    predictions = [load_predictions(run) for run in runs]
    _check_tasks(runs, predictions)
    tasks, notes, count = {}, [], 0
    for of_task in zip(*predictions, strict=True):
        aligned = _align(runs, of_task)
        count = len(aligned[0])
        whole = max(map(len, of_task))
        if count < whole:
            notes.append(f"Compared on the {count:,} images that all runs held out, of up to {whole:,}.")
        tasks[aligned[0].task.name] = _compare_predictions(names, aligned, resamples, seed)
    described = [_describe_run(run, len(of_run[0])) for run, of_run in zip(runs, predictions, strict=True)]
    return {"runs": described, "images": count, "tasks": tasks, "notes": list(dict.fromkeys(notes))}


def compare_probabilities(
    predictions: Predictions, other: np.ndarray, *, resamples: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return by how much answers are better than others on the same images: per metric value, low, high and `better`.

    Paired bootstrap: both are measured on each resample of the images, and the differences are what is looked at
    (Efron and Tibshirani, 1993, section 16; Koehn, EMNLP 2004).

    Args:
        answers: Of the model in question.
        other: Probabilities of the same images by what it is compared with, (n, k).
    """
    samples = [
        bootstrap_samples(predictions.targets, probabilities, predictions.weights, resamples, seed)
        for probabilities in (other, predictions.probabilities)
    ]
    return _find_differences(*samples)


def _compare_predictions(
    names: Sequence[str], predictions: Sequence[Predictions], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    samples = [bootstrap_samples(one.targets, one.probabilities, one.weights, resamples, seed) for one in predictions]
    metrics = {
        name: {key: _summarize(values[key], drawn[key]) for key in values if isinstance(key, str)}
        for name, (values, drawn) in zip(names, samples, strict=True)
    }
    differences = {
        name: _find_differences(samples[0], other) for name, other in zip(names[1:], samples[1:], strict=True)
    }
    return {"metrics": metrics, "differences": differences}


def _find_differences(reference: tuple[Mapping, Mapping], other: tuple[Mapping, Mapping]) -> dict[str, dict[str, Any]]:
    (values, drawn), (other_values, other_drawn) = reference, other
    found: dict[str, dict[str, Any]] = {}
    for name in values:
        if isinstance(name, str):
            parts = _summarize(other_values[name] - values[name], other_drawn[name] - drawn[name])
            found[name] = {**parts, "better": _judge(name, parts)}
    return found


def _judge(name: str, parts: Mapping[str, float | None]) -> bool | None:
    low, high = parts["low"], parts["high"]
    if low is None or high is None or low <= 0 <= high:
        return None
    return (low > 0) != (name in LOWER_IS_BETTER)


def _summarize(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return as_parts(Estimate(float(value), float(low), float(high)))


def _check_tasks(runs: Sequence[Run], predictions: Sequence[Sequence[Predictions]]) -> None:
    def describe(of_run: Sequence[Predictions]) -> list[Task]:
        return [one.task for one in of_run]

    problems = [
        f"{run.name} answers {_name(describe(of_run))}, {runs[0].name} {_name(describe(predictions[0]))}"
        for run, of_run in zip(runs[1:], predictions[1:], strict=True)
        if describe(of_run) != describe(predictions[0])
    ]
    if problems:
        raise RunError.from_problems("Runs that are compared must answer the same: tasks and classes.", problems)
    for of_run in predictions:
        for one in of_run:
            check_finite(one)


def _name(tasks: Sequence[Task]) -> str:
    return "; ".join(f"{task.name!r} ({', '.join(task.class_names[:4])}...)" for task in tasks)


def _align(runs: Sequence[Run], predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the answers on the images that all have, in one order.

    Raises:
        RunError: There is no such image, or its label differs.
    """
    common = predictions[0].keys
    for one in predictions[1:]:
        common = common[np.isin(common, one.keys)]
    if not len(common):
        raise RunError(
            "Runs that are compared must have held out some of the same images.",
            ", ".join(run.name for run in runs),
            "Train them with the same data, data.seed and data.test.",
        )
    aligned = []
    for one in predictions:
        place = {key: row for row, key in enumerate(one.keys.tolist())}
        aligned.append(take(one, np.array([place[key] for key in common.tolist()])))
    if any(not np.array_equal(one.targets, aligned[0].targets) for one in aligned):
        raise RunError("Runs that are compared must agree on what is true.", "other labels of the same images")
    return aligned


def _describe_run(run: Run, images: int) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "name": run.name,
        "minutes": sum(manifest.get("phases", {}).values()) / 60,
        "parameters": manifest.get("parameters"),
        "images": images,
    }
