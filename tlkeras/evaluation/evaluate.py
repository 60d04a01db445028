"""All figures of a run: whole, per class, per slice of the images, with the baselines beside; as JSON and as CSV."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import load_recipe
from tlkeras.errors import ResourceError
from tlkeras.evaluation.calibration import describe_calibration
from tlkeras.evaluation.metrics import Estimate, Key, as_parts, bootstrap_metrics, choose_whole, count_ranked
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import (
    Predictions,
    check_finite,
    has_predictions,
    load_predictions,
    read_fusion,
    read_probes,
    take,
)

logger = logging.getLogger(__name__)

COLUMNS = ("task", "scope", "name", "metric", "examples", "value", "low", "high", "majority", "linear_probe")
MOST_SLICES = 50
_SLICE_RESAMPLES = 500


def evaluate(run: str | Path | Run = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """The figures of a finished run on its held-out images, kept as metrics.json and metrics.csv.

    Args:
        run: A name, a path, `latest`, or a `Run`.
        runs: Folder of the run directories.

    Returns:
        What `evaluate_run` returns, and `path`, `phases` (seconds), `features`, `head`, `rejected` (a count).

    Raises:
        RunError: There is no such run, it did not finish, or it keeps no predictions.
    """
    opened = open_run(run, runs)
    options = load_recipe(opened.require("recipe.yaml")).evaluation
    result = evaluate_run(opened, resamples=options.bootstrap_samples, seed=options.seed)
    manifest = opened.manifest
    facts = {key: manifest.get(key) for key in ("phases", "features", "head", "rejected")}
    return {**result, "path": str(opened.path), **facts}


def evaluate_run(run: Run, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Compute the figures of a run from its stored predictions, and keep them as metrics.json and metrics.csv.

    Returns:
        What `measure_answers` returns of the first task, and `late_fusion`: by rule ("mean", "stacking") the metrics of
        heads on each part of fused features, joined afterwards; `run`, `examples`; `tasks`, the same of each task by
        name, where there are several.

    Raises:
        RunError: The run keeps no predictions, or some are not finite.
    """
    probes, fused = read_probes(run), read_fusion(run)
    tasks = {}
    for predictions in load_predictions(run):
        validation = _find_validation(run, predictions.task.name)
        tasks[predictions.task.name] = evaluate_predictions(
            predictions, probes.get(predictions.task.name), validation, resamples=resamples, seed=seed
        )
        late = fused.get(predictions.task.name, {})
        tasks[predictions.task.name]["late_fusion"] = {
            rule: _as_dict(bootstrap_metrics(predictions.targets, predicted, predictions.weights, resamples, seed))
            for rule, predicted in late.items()
        }
    result = {"run": run.name, **merge_tasks(tasks)}
    result["examples"] = {**run.manifest.get("examples", {}), "test": result["images"]}
    try:
        run.write_json("metrics.json", result)
        run.write_table("metrics.csv", COLUMNS, list_rows(tasks))
    except ResourceError as error:  # the figures are known all the same
        logger.warning("The figures could not be kept: %s", error)
    return result


def merge_tasks(tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the first task, with those of each by name where there are several."""
    first = next(iter(tasks.values()))
    return {**first, "tasks": dict(tasks)} if len(tasks) > 1 else dict(first)


def evaluate_predictions(
    predictions: Predictions,
    probe: np.ndarray | None = None,
    validation: Predictions | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of one task.

    Args:
        answers: On held-out images.
        probe: What a linear head on the same frozen features says of them, (n, k).
        validation: What temperature and vector scaling can be fitted on.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `task`, `kind`, `classes`, `images`, `weighted`; `metrics`, `baseline` (always answering how common each class
        was in training) and `probe` (or None), each name -> value, low, high; `labels`, these by class; `slices`, by
        what tells images apart ("group", "domain", "stratum") and its values; `calibration`; `interval`, what
        intervals mean. Of a number there are no `labels`, its `calibration` is None, and the baseline always says the
        mean.

    Raises:
        RunError: A probability is not finite.
    """
    check_finite(predictions)
    task, targets, weights = predictions.task, predictions.targets, predictions.weights
    majority = np.tile(predictions.prior, (len(targets), 1))
    figures = bootstrap_metrics(targets, predictions.probabilities, weights, resamples, seed)
    return {
        "task": task.name,
        "kind": task.kind,
        "classes": list(task.class_names),
        "images": len(targets),
        "weighted": bool(np.ptp(weights) > 0),
        "interval": _explain_interval(predictions.probabilities.size, resamples),
        "metrics": _as_dict(figures),
        "baseline": _as_dict(bootstrap_metrics(targets, majority, weights, 0)),
        "probe": None if probe is None else _as_dict(bootstrap_metrics(targets, probe, weights, resamples, seed)),
        "labels": _divide_by_label(figures, predictions) if task.has_classes else {},
        "slices": {name: _measure_slices(predictions, values, seed) for name, values in _list_slices(predictions)},
        "calibration": describe_calibration(predictions, validation) if task.has_classes else None,
    }


def list_rows(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple]:
    """Yield the rows of metrics.csv, in the order of `COLUMNS`; what is undefined is empty."""
    for task, result in tasks.items():
        for metric, figure in result["metrics"].items():
            beside = [(result[name] or {}).get(metric, {}).get("value") for name in ("baseline", "probe")]
            yield task, "all", "", metric, result["images"], *figure.values(), *beside
        for rule, of_rule in result.get("late_fusion", {}).items():
            yield from _list_scope(task, "late fusion", rule, {"examples": result["images"], **of_rule})
        for label, of_label in result["labels"].items():
            yield from _list_scope(task, "class", label, of_label)
        for scope, values in result["slices"].items():
            for value, of_slice in values.items():
                yield from _list_scope(task, scope, value, of_slice)
        for metric in ("adaptive_ece", "ece") if result["calibration"] else ():
            yield task, "all", "", metric, result["images"], result["calibration"][metric], None, None, None, None


def _list_scope(task: str, scope: str, name: str, figures: Mapping[str, Any]) -> Iterator[tuple]:
    for metric, figure in figures.items():
        if metric != "examples":
            yield task, scope, name, metric, figures["examples"], *figure.values(), None, None


def _find_validation(run: Run, task: str) -> Predictions | None:
    if not has_predictions(run, "validation"):
        return None
    return next(
        (predictions for predictions in load_predictions(run, "validation") if predictions.task.name == task), None
    )


def _explain_interval(cells: int, resamples: int) -> str:
    ranked = count_ranked(cells, resamples)
    text = f"95 % bootstrap, {resamples} resamples"
    if ranked == resamples:
        return text
    return f"{text}; of ROC AUC and average precision {ranked or 'none'}, as so many images and classes take long"


def _list_slices(predictions: Predictions) -> list[tuple[str, np.ndarray]]:
    """Return what parts the images in two or more, by name."""
    return [(name, values) for name, values in predictions.slices.items() if len(np.unique(values)) > 1]


def _measure_slices(predictions: Predictions, values: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each value, the largest ones first, of `MOST_SLICES` at most."""
    names, counts = np.unique(values, return_counts=True)
    order = np.lexsort((names, -counts))[:MOST_SLICES]
    slices = {}
    for name, count in zip(names[order].tolist(), counts[order].tolist(), strict=True):
        part = take(predictions, values == name)
        if part.weights.any():
            measured = bootstrap_metrics(part.targets, part.probabilities, part.weights, _SLICE_RESAMPLES, seed)
            slices[name] = {"examples": count, **_as_dict(measured)}
    return slices


def _as_dict(figures: Mapping[Key, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: as_parts(figure) for name, figure in choose_whole(figures).items()}


def _divide_by_label(figures: Mapping[Key, Estimate], predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Return the figures on single classes or labels, with the number of images that have it."""
    names, members = predictions.task.class_names, predictions.task.members(predictions.targets)
    labels: dict[str, dict[str, Any]] = {
        name: {"examples": int(members[:, index].sum())} for index, name in enumerate(names)
    }
    for key, figure in figures.items():
        if not isinstance(key, str):
            index, metric = key
            labels[names[index]][metric] = as_parts(figure)
    return labels
