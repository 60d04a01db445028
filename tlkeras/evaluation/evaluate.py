"""Metrics of a run: overall, per class and per slice of the images, next to baselines; as JSON and as CSV."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkeras.config.recipe import bootstrap_options
from tlkeras.errors import ResourceError
from tlkeras.evaluation.calibration import CalibrationResult, evaluate_calibration
from tlkeras.evaluation.comparison import PairedDifference, compare_probabilities
from tlkeras.evaluation.intervals import Estimate, Metrics, Units
from tlkeras.evaluation.metric_names import METRIC_NAMES
from tlkeras.evaluation.metrics import MetricKey, count_ranked, overall_metrics, resample_predictions
from tlkeras.plotting.notebook import render_card, render_table
from tlkeras.results import FLAT, Result, make_frame
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

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)

COLUMNS = ("task", "scope", "name", "metric", "examples", "value", "low", "high", "majority", "linear_probe", "reason")
MOST_SLICES = 50
QUICK = "Shrunk by --quick: these figures mean nothing."
_FEWEST_TO_NAME = 10  # held-out images of a class that is called the weakest
_FAR_BELOW = 0.1  # of the mean recall of the others


@dataclass(frozen=True)
class SubsetMetrics(Result):
    """Metrics of one class, or on the images of a slice."""

    examples: int  # images of the class or slice
    metrics: Metrics = field(metadata=FLAT)


class MetricsBySubset(dict[str, SubsetMetrics]):
    """Metrics by class, label, or value of a slice."""

    def to_frame(self) -> "pandas.DataFrame":
        """A row per subset with `examples` and a column per metric; MissingExtraError without pandas."""
        return make_frame(self._list_rows(), self)

    def _list_rows(self) -> list[Mapping[str, Any]]:
        values = [{name: one.value for name, one in of.metrics.items()} for of in self.values()]
        return [{"examples": of.examples, **row} for of, row in zip(self.values(), values, strict=True)]

    def _repr_html_(self) -> str:
        rows = [{"": name, **row} for name, row in zip(self, self._list_rows(), strict=True)]
        header = [METRIC_NAMES.get(name, name) for name in rows[0]] if rows else []
        return render_table(header, [tuple(row.values()) for row in rows])


@dataclass(frozen=True)
class TaskEvaluation(Result):
    """Metrics of one task on held-out images."""

    task: str
    kind: str  # "multiclass", "multilabel" or "regression"
    classes: list[str]  # names of the classes or labels
    images: int
    weighted: bool  # whether the images have different weights
    interval: str  # what the intervals mean, for people
    metrics: Metrics
    baseline: Metrics  # of always predicting the frequencies of the classes, or the mean, in training
    probe: Metrics | None  # of a linear head on the same frozen features; None if the model is such a head
    gain: PairedDifference | None  # of the first metric over that head's
    labels: MetricsBySubset  # by class or label; empty for a regression
    slices: dict[str, MetricsBySubset]  # by what divides the images ("group", "domain", "stratum") and value
    calibration: CalibrationResult | None  # None for a regression
    late_fusion: dict[str, Metrics]  # by rule, of the heads on each part of fused features, joined

    @property
    def baselines(self) -> dict[str, Metrics]:
        """Metrics to compare with, by the name that people read."""
        name = "always the mean" if self.kind == "regression" else "majority baseline"
        others = {"linear probe": self.probe} if self.probe else {}
        return {name: self.baseline, **others, **{f"late fusion: {rule}": of for rule, of in self.late_fusion.items()}}


@dataclass(frozen=True)
class Evaluation(Result):
    """Metrics of all tasks of a run on some images."""

    run: str
    tasks: dict[str, TaskEvaluation]  # the first one is the main one
    examples: dict[str, int]  # images by split

    @property
    def main(self) -> TaskEvaluation:
        return next(iter(self.tasks.values()))

    @property
    def metrics(self) -> Metrics:
        """Metrics of the main task."""
        return self.main.metrics

    @property
    def verdict(self) -> str:
        """How good the main task's predictions are, in a sentence or two."""
        trial = f"{QUICK} " if is_quick(self.run) else ""
        return trial + describe_task(self.main)

    def _repr_html_(self) -> str:
        return render_card(self.run, [self.verdict], self.metrics._repr_html_(), self.main.labels._repr_html_())

    def to_dict(self) -> dict[str, Any]:
        """The attributes and those of the main task, by name; `tasks` only where there are several."""
        plain = super().to_dict()
        tasks = plain.pop("tasks")
        several = {"tasks": tasks} if len(tasks) > 1 else {}
        return {"run": self.run, **tasks[self.main.task], **several, **plain}


@dataclass(frozen=True)
class EvaluationResult(Evaluation):
    """Metrics of a run on its held-out images, and facts of its training."""

    path: str
    phases: dict[str, float]  # seconds
    features: dict[str, Any]  # how many were computed and reused, and the engine
    head: dict[str, Any]  # its configuration
    rejected: int  # images that were left out


def evaluate(run: str | Path | Run = "latest", *, runs: str | Path = RUNS) -> EvaluationResult:
    """Metrics of a finished run on its held-out images, from its stored predictions.

    The run, a name, a path, `latest`, or a `Run`, keeps them as metrics.json and metrics.csv. RunError if there is no
    such run, it did not finish, it keeps no predictions, or some are not finite.
    """
    opened = open_run(run, runs)
    options = bootstrap_options(opened.require("recipe.yaml"))
    probes, fused, validation = read_probes(opened), read_fusion(opened), {}
    if has_predictions(opened, "validation"):
        validation = {one.task.name: one for one in load_predictions(opened, "validation")}
    tasks, resamples, seed = {}, options.bootstrap_samples, options.seed
    for one in load_predictions(opened):
        name = one.task.name
        known = probes.get(name), validation.get(name), fused.get(name)
        tasks[name] = evaluate_predictions(one, *known, resamples=resamples, seed=seed)
    manifest = opened.manifest
    images = next(iter(tasks.values())).images
    evaluation = Evaluation(opened.name, tasks, {**manifest.get("examples", {}), "test": images})
    try:
        opened.write_json("metrics.json", evaluation.to_dict())
        opened.write_table("metrics.csv", COLUMNS, list_rows(tasks))
    except ResourceError as error:  # the metrics are known all the same
        logger.warning("The metrics could not be written: %s", error)
    facts = {name: manifest.get(name, {}) for name in ("phases", "features", "head")}
    return EvaluationResult(**vars(evaluation), path=str(opened.path), rejected=manifest.get("rejected", 0), **facts)


def evaluate_predictions(
    predictions: Predictions,
    probe: np.ndarray | None = None,
    validation: Predictions | None = None,
    late_fusion: Mapping[str, np.ndarray] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> TaskEvaluation:
    """Metrics of one task; RunError if a probability is not finite.

    Args:
        predictions: On held-out images.
        probe: Probabilities of the same images by a linear head on the same frozen features, float [n, k].
        validation: Predictions to fit temperature and vector scaling on.
        late_fusion: Probabilities of the same images by rule of late fusion, float [n, k] each.
        resamples, seed: Of the bootstrap.
    """
    check_finite(predictions)
    task = predictions.task

    def measure(probabilities: np.ndarray, resamples: int = resamples) -> Metrics:
        return overall_metrics(resample_predictions(predictions, probabilities, resamples, seed).list_estimates())

    samples = resample_predictions(predictions, predictions.probabilities, resamples, seed)
    estimates = samples.list_estimates()
    slices = {name: values for name, values in predictions.slices.items() if len(np.unique(values)) > 1}
    first = next(iter(overall_metrics(estimates)))
    return TaskEvaluation(
        task=task.name,
        kind=task.kind,
        classes=list(task.class_names),
        images=len(predictions),
        weighted=bool(np.ptp(predictions.weights) > 0),
        interval=_explain_interval(samples.units, predictions.probabilities.size, resamples),
        metrics=overall_metrics(estimates),
        baseline=measure(np.tile(predictions.prior, (len(predictions), 1)), 0),
        probe=None if probe is None else measure(probe),
        gain=None if probe is None else compare_probabilities(predictions, probe, resamples, seed)[first],
        labels=_group_by_label(estimates, predictions) if task.has_classes else MetricsBySubset(),
        slices={name: _evaluate_slices(predictions, values, resamples, seed) for name, values in slices.items()},
        calibration=evaluate_calibration(predictions, validation, resamples, seed) if task.has_classes else None,
        late_fusion={rule: measure(predicted) for rule, predicted in (late_fusion or {}).items()},
    )


def is_quick(run: str) -> bool:
    """Whether a run of that name was shrunk to seconds."""
    return re.search(r"-quick-\d+$", run) is not None


def describe_task(task: TaskEvaluation) -> str:
    """How good the predictions of a task are: beside the simplest ones, and where most mistakes are."""
    if task.kind == "regression":
        mae, mean = task.metrics["mae"], task.baseline["mae"]
        return (
            f"Off by {mae.value:.4g} on average{_between(mae, 1, '.4g')}; always predicting the mean: {mean.value:.4g}."
        )
    name = "accuracy" if "accuracy" in task.metrics else "exact_match"
    right, majority = task.metrics[name], task.baseline[name]
    what = "right" if name == "accuracy" else "with all labels right"
    other = "the most common class" if name == "accuracy" else "the most common labels"
    told = f"{100 * right.value:.0f} % {what}{_between(right, 100, '.0f')}"
    return f"{told}; always answering {other}: {100 * majority.value:.0f} %. {_describe_weakest(task)}".strip()


def _between(estimate: Estimate, factor: float, form: str) -> str:
    """The interval of an estimate in brackets, or nothing where it has none."""
    return "" if np.isnan(estimate.low) else f" ({factor * estimate.low:{form}} to {factor * estimate.high:{form}})"


def _describe_weakest(task: TaskEvaluation) -> str:
    """The class with the lowest recall of those with ten images or more, where it is far below the others."""
    recalls = {name: of.metrics["recall"].value for name, of in task.labels.items() if of.examples >= _FEWEST_TO_NAME}
    if len(recalls) < 2 or task.kind == "multilabel":
        return ""
    weakest = min(recalls, key=recalls.__getitem__)
    others = float(np.mean([value for name, value in recalls.items() if name != weakest]))
    if not recalls[weakest] < others - _FAR_BELOW:
        return ""
    found, mean = 100 * recalls[weakest], 100 * others
    return f"Weakest class: {weakest}, of which {found:.0f} % are found (of the others {mean:.0f} %)."


def list_rows(tasks: Mapping[str, TaskEvaluation]) -> Iterator[tuple]:
    """Rows of metrics.csv, in the order of `COLUMNS`; undefined values are empty."""
    for task, result in tasks.items():
        for metric, estimate in result.metrics.items():
            references = [(of or Metrics()).get(metric) for of in (result.baseline, result.probe)]
            cells = [reference and reference.to_dict()["value"] for reference in references]
            yield task, "all", "", metric, result.images, *_list_cells(estimate), *cells, estimate.reason
        subsets = [("late fusion", rule, SubsetMetrics(result.images, of)) for rule, of in result.late_fusion.items()]
        subsets += [("class", label, of_label) for label, of_label in result.labels.items()]
        subsets += [(name, value, of) for name, values in result.slices.items() for value, of in values.items()]
        for scope, name, subset in subsets:
            for metric, estimate in subset.metrics.items():
                yield task, scope, name, metric, subset.examples, *_list_cells(estimate), None, None, estimate.reason
        if result.calibration:
            measured = result.calibration.interval
            yield task, "all", "", "adaptive_ece", result.images, *_list_cells(measured), None, None, measured.reason
            yield task, "all", "", "ece", result.images, result.calibration.ece, *[None] * 5


def _list_cells(estimate: Estimate) -> list[float | None]:
    """Value and interval; None where they are undefined."""
    return [estimate.to_dict()[name] for name in ("value", "low", "high")]


def _explain_interval(units: Units, cells: int, resamples: int) -> str:
    of = "images" if units.noun == "images" else f"{units.count:,} groups of images, each as a whole"
    text = f"95 %, Bayesian bootstrap, {resamples:,} resamples of {of}"
    ranked = count_ranked(cells, resamples)
    if ranked == resamples:
        return text
    return f"{text}; of ROC AUC and average precision {ranked or 'none'}, as so many images and classes take long"


def _evaluate_slices(predictions: Predictions, values: np.ndarray, resamples: int, seed: int) -> MetricsBySubset:
    """Metrics by value, the most frequent values first, `MOST_SLICES` at most."""
    names, counts = np.unique(values, return_counts=True)
    slices = MetricsBySubset()
    for name in names[np.lexsort((names, -counts))[:MOST_SLICES]].tolist():
        part = take(predictions, values == name)
        if part.weights.any():
            estimates = resample_predictions(part, part.probabilities, resamples, seed).list_estimates()
            slices[name] = SubsetMetrics(len(part), overall_metrics(estimates))
    return slices


def _group_by_label(estimates: Mapping[MetricKey, Estimate], predictions: Predictions) -> MetricsBySubset:
    """Metrics of single classes or labels, with the number of images that have it."""
    names, counts = predictions.task.class_names, predictions.task.members(predictions.targets).sum(axis=0).tolist()
    labels = MetricsBySubset((name, SubsetMetrics(n, Metrics())) for name, n in zip(names, counts, strict=True))
    for key, estimate in estimates.items():
        if not isinstance(key, str):
            index, metric = key
            labels[names[index]].metrics[metric] = estimate
    return labels
