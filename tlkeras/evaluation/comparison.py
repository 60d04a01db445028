"""Paired comparison of models on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tlkeras.config.recipe import bootstrap_options
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError
from tlkeras.evaluation.intervals import Estimate, Metrics, make_difference
from tlkeras.evaluation.metric_names import METRIC_NAMES
from tlkeras.evaluation.metrics import BootstrapSamples, overall_metrics, resample_predictions
from tlkeras.plotting.notebook import render_card, render_table
from tlkeras.results import Result
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, check_finite, load_predictions, take

_IN_POINTS = ("accuracy", "exact_match")  # told in hundredths
LOWER_IS_BETTER = ("log_loss", "brier_score", "hamming_loss", "rmse", "mae")


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """A difference of a metric; `better` is None where 0 lies within its interval, or there is none."""

    better: bool | None = None


@dataclass(frozen=True)
class ComparedRun(Result):
    """A run's name, minutes of training, number of parameters, and number of held-out images."""

    name: str
    minutes: float
    parameters: int | None
    images: int


@dataclass(frozen=True)
class TaskComparison(Result):
    """Metrics of one task by run, and the differences of the other runs from the first, by run and metric."""

    metrics: dict[str, Metrics]
    differences: dict[str, dict[str, PairedDifference]]


@dataclass(frozen=True)
class ComparisonResult(Result):
    """Runs compared with the first of them."""

    runs: list[ComparedRun]  # in the order given
    images: int  # held-out images of the first task that all runs share
    tasks: dict[str, TaskComparison]
    notes: list[str]  # remarks for the reader

    @property
    def verdict(self) -> str:
        """Whether another run is better than the first, by the first metric of the first task; a sentence for each."""
        of_runs = next(iter(self.tasks.values())).differences
        return " ".join(self._judge(name, *next(iter(found.items()))) for name, found in of_runs.items())

    def _judge(self, name: str, metric: str, found: PairedDifference) -> str:
        scale, unit = (100, " points") if metric in _IN_POINTS else (1, "")
        between = f" ({scale * found.low:+.3g} to {scale * found.high:+.3g})" if not np.isnan(found.low) else ""
        verdict = {True: "is better than", False: "is worse than", None: "is not proved different from"}[found.better]
        told = f"{METRIC_NAMES[metric]} {scale * found.value:+.3g}{unit}{between}"
        return f"{name} {verdict} {self.runs[0].name}: {told} on {self.images:,} images."

    def _repr_html_(self) -> str:
        parts = []
        for task in self.tasks.values():
            first = next(iter(task.metrics.values()))
            rows = [(METRIC_NAMES[name], *(of_run[name].value for of_run in task.metrics.values())) for name in first]
            parts.append(render_table(("", *task.metrics), rows))
        return render_card("Comparison", [self.verdict, *self.notes], *parts)


def compare(references: Sequence[str | Path | Run], *, runs: str | Path = RUNS) -> ComparisonResult:
    """Finished runs compared with the first of them, on the held-out images that all of them share.

    References are names, paths, `latest` or `Run`s; two or more. RunError if they are fewer, of other tasks or classes,
    or have no common image.
    """
    opened = [open_run(reference, runs) for reference in references]
    names = [run.name for run in opened]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise RunError("A comparison needs two runs or more, each with a name of its own.", ", ".join(names))
    options = bootstrap_options(opened[0].require("recipe.yaml"))
    predictions = [load_predictions(run) for run in opened]
    _check_tasks(opened, predictions)
    tasks, notes, counts = {}, [], []
    for of_task in zip(*predictions, strict=True):
        aligned = _align(opened, of_task)
        counts.append(len(aligned[0]))
        if counts[-1] < (whole := max(map(len, of_task))):
            notes.append(f"Compared on the {counts[-1]:,} images that all runs held out, of up to {whole:,}.")
        samples = {
            name: resample_predictions(one, one.probabilities, options.bootstrap_samples, options.seed)
            for name, one in zip(names, _share_groups(aligned), strict=True)
        }
        if samples[names[0]].units.noun == "groups":
            notes.append("Groups of images were resampled, not single images.")
        metrics = {name: overall_metrics(of_run.list_estimates()) for name, of_run in samples.items()}
        differences = {name: _differences(samples[names[0]], samples[name]) for name in names[1:]}
        tasks[aligned[0].task.name] = TaskComparison(metrics, differences)
    compared = []
    for run, of_run in zip(opened, predictions, strict=True):
        minutes = sum(run.manifest.get("phases", {}).values()) / 60
        compared.append(ComparedRun(run.name, minutes, run.manifest.get("parameters"), len(of_run[0])))
    return ComparisonResult(compared, counts[0], tasks, list(dict.fromkeys(notes)))


def compare_probabilities(
    predictions: Predictions, reference: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, PairedDifference]:
    """Differences of predictions from other probabilities of the same images, the reference, float [n, k], by metric.

    Paired bootstrap: both are evaluated on each resample of the images, or of their groups, and the differences are
    summarized (Efron and Tibshirani, 1993, section 16; Koehn, EMNLP 2004).
    """
    both = (reference, predictions.probabilities)
    return _differences(*(resample_predictions(predictions, of_one, resamples, seed) for of_one in both))


def _differences(reference: BootstrapSamples, other: BootstrapSamples) -> dict[str, PairedDifference]:
    found = {}
    for key, value in reference.values.items():
        if isinstance(key, str):
            resampled = other.resampled[key] - reference.resampled[key]
            support, units = reference.support[key], reference.units
            between = make_difference(key, other.values[key] - value, resampled, support, units)
            unclear = not (between.low > 0 or between.high < 0)
            better = None if unclear else (between.low > 0) != (key in LOWER_IS_BETTER)
            found[key] = PairedDifference(**vars(between), better=better)
    return found


def _share_groups(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Predictions of the same images, all with the groups of the first that has some, so that resamples agree."""
    grouped = [one.slices["group"] for one in predictions if (one.slices.get("group", np.empty(0)) != "").any()]
    if not grouped:
        return list(predictions)
    return [replace(one, slices={**one.slices, "group": grouped[0]}) for one in predictions]


def _check_tasks(runs: Sequence[Run], predictions: Sequence[Sequence[Predictions]]) -> None:
    tasks = [[one.task for one in of_run] for of_run in predictions]
    problems = [
        f"{run.name} predicts {_format_tasks(of_run)}, {runs[0].name} {_format_tasks(tasks[0])}"
        for run, of_run in zip(runs, tasks, strict=True)
        if of_run != tasks[0]
    ]
    if problems:
        raise RunError.from_problems("These runs predict different tasks or classes:", problems)
    for of_run in predictions:
        for one in of_run:
            check_finite(one)


def _format_tasks(tasks: Sequence[Task]) -> str:
    return "; ".join(f"{task.name!r} ({', '.join(task.class_names[:4])}...)" for task in tasks)


def _align(runs: Sequence[Run], predictions: Sequence[Predictions]) -> list[Predictions]:
    """Predictions on the images that all have, in one order; RunError if there is none, or its label differs."""
    common = predictions[0].keys
    for one in predictions[1:]:
        common = common[np.isin(common, one.keys)]
    if not len(common):
        raise RunError(
            "These runs share no held-out images, so they cannot be compared.",
            ", ".join(run.name for run in runs),
            "Train them with the same data, data.seed and data.test.",
        )
    aligned = []
    for one in predictions:
        rows = {key: row for row, key in enumerate(one.keys.tolist())}
        aligned.append(take(one, np.array([rows[key] for key in common.tolist()])))
    if any(not np.array_equal(one.targets, aligned[0].targets) for one in aligned):
        raise RunError("The runs have different labels for the same images.", ", ".join(run.name for run in runs))
    return aligned
