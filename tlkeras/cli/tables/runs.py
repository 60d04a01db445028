"""Tables of trainings, evaluations, predictions, comparisons, reports, exports and searches."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from tlkeras.cli.tables.style import (
    MOST_ROWS,
    format_number,
    left,
    open_console,
    paths,
    print_issues,
    print_notes,
    print_table,
    right,
)
from tlkeras.evaluation.metric_names import METRIC_NAMES, explain_missing

if TYPE_CHECKING:
    from tlkeras.evaluation.comparison import ComparisonResult, PairedDifference
    from tlkeras.evaluation.evaluate import EvaluationResult, SubsetMetrics, TaskEvaluation
    from tlkeras.evaluation.intervals import Estimate
    from tlkeras.evaluation.other_data import ExternalEvaluationResult
    from tlkeras.evaluation.report.page import ReportResult
    from tlkeras.exporting.parity import ExportResult
    from tlkeras.inference.results import ClassProbability, ImagePrediction, PredictionFileResult, PredictionResult
    from tlkeras.tuning.report import TuningResult

_WITH_INTERVALS = ("f1", "roc_auc", "average_precision")
_SLICE_METRICS = ("accuracy", "exact_match", "macro_f1", "roc_auc", "log_loss", "r2", "mae")
_VERDICTS = {True: "[green]better[/green]", False: "[red]worse[/red]", None: ""}
_MOST_TRIALS = 20


def print_training(result: EvaluationResult) -> None:
    print_evaluation(result)
    console = open_console()
    if result.head.get("scores"):
        _print_adaptation(result)
    times = [(name, f"{seconds:,.1f}") for name, seconds in result.phases.items()]
    total = ("[bold]total[/bold]", f"[bold]{sum(result.phases.values()):,.1f}[/bold]")
    print_table("Time", left("phase") + right("seconds"), [*times, total])
    features = result.features
    engine = f" with {features['engine']}" if features["engine"] else ""
    console.print(f"Features: {features['computed']:,} computed{engine}, {features['reused']:,} from the cache.")
    console.print(f"Run: {escape(result.path)}", soft_wrap=True)
    name = result.run if os.path.dirname(result.path) == "runs" else result.path
    console.print("\nNext:")
    export = f"tlkeras export {name} --to saved_models/{result.run.rpartition('-')[0]}"
    exports = [] if features.get("handcrafted") else [(export, "a SavedModel for TensorFlow Serving")]
    for command, purpose in (
        (f"tlkeras report {name}", "mistakes, calibration, what to do, on one page"),
        (f"tlkeras predict {name} IMAGE...", "classify images"),
        *exports,
    ):
        console.print(f"  {command:<60} # {purpose}", markup=False, highlight=False)


def print_worker(result: dict[str, Any]) -> None:
    open_console().print(f"Worker {result['worker']} of {result['workers']} is done; worker 0 has the run.")


def _print_adaptation(result: EvaluationResult) -> None:
    """Print scores across domains that need no labels of the target, next to the accuracy by its labels."""
    head = result.head
    values = {name.replace("_", " "): value for name, value in head["scores"].items()}
    values |= {f"A-distance {when}, 0 alike, 2 apart": distance for when, distance in head["a_distance"].items()}
    values["oracle: accuracy by the target's labels"] = result.metrics["accuracy"].value
    columns = left("without labels of the target") + right("value")
    rows = ((name, format_number(value)) for name, value in values.items())
    print_table(f"Across domains by {head['method']}: higher is better", columns, rows)


def print_evaluation(result: EvaluationResult | ExternalEvaluationResult) -> None:
    console = open_console()
    source = getattr(result, "source", None)
    images = f"images of {source}" if source else "held-out images"
    console.print(escape(result.verdict), highlight=False)
    for name, task in result.tasks.items():
        _print_task(task, f"{result.run}, {name}" if len(result.tasks) > 1 else result.run, images)
    if gain := result.main.gain:
        console.print(_explain_gain(gain, next(iter(result.metrics)), getattr(result, "head", {})))
    if trained_on := getattr(result, "trained_on", 0):
        console.print(f"[yellow]{trained_on:,} of these images were trained on: the metrics are too good.[/yellow]")
    if result.rejected:
        reason = "they cannot be read" if source else "see rejected.csv in the run"
        console.print(f"[yellow]{result.rejected:,} images were left out; {reason}.[/yellow]")


def _explain_gain(gain: PairedDifference, metric: str, head: Mapping[str, Any]) -> str:
    """One sentence: whether a run is better than a linear head on the same frozen features, or the source alone."""
    verdict = {True: "better than", False: "worse than", None: "not proved better than"}[gain.better]
    other = "the source domain alone" if head.get("method") else "a linear head on the same frozen features"
    interval = f" ({gain.low:+.3f} to {gain.high:+.3f})" if not math.isnan(gain.low) else ""
    subject = f"Adaptation by {head['method']}" if head.get("method") else "The run"
    return f"{subject} is {verdict} {other}: {METRIC_NAMES[metric]} {gain.value:+.3f}{interval}."


def _print_task(task: TaskEvaluation, name: str, images: str) -> None:
    console = open_console()
    kinds = {"multiclass": f"{len(task.classes)} classes", "multilabel": f"{len(task.classes)} labels"}
    weighted = ", weighted" if task.weighted else ""
    title = f"{name}: {task.images:,} {images}{weighted}, {kinds.get(task.kind, 'a number')}"
    rows = []
    for metric, estimate in task.metrics.items():
        baselines = (format_number(metrics[metric].value) for metrics in task.baselines.values())
        value = f"[bold]{format_number(estimate.value)}[/bold]"
        rows.append((METRIC_NAMES[metric], value, _format_interval(estimate), *baselines))
    print_table(title, left("") + right("value", "95 % interval", *task.baselines), rows)
    for sentence in explain_missing(task.metrics):
        console.print(escape(sentence))
    if "groups" in task.interval:
        console.print(f"Intervals: {task.interval}.")
    if task.labels:
        _print_labels(task.labels, "label" if task.kind == "multilabel" else "class")
    for column, values in task.slices.items():
        _print_slices(column, values)
    if task.calibration:
        scaled = [f"{of.adaptive_ece:.4f} with {name} scaling" for name, of in task.calibration.scalings.items()]
        text = f"Adaptive calibration error {task.calibration.adaptive_ece:.4f}"
        if not math.isnan(task.calibration.interval.low):
            text += f" ({_format_interval(task.calibration.interval)})"
        console.print(f"{text}; {', '.join(scaled)}." if scaled else f"{text}.")


def _print_labels(labels: dict[str, SubsetMetrics], noun: str) -> None:
    """Print metrics of each class; of many classes, of those with the lowest F1."""
    columns = left(noun) + right("images", "precision", "recall", *(METRIC_NAMES[name] for name in _WITH_INTERVALS))
    f1 = {name: of.metrics["f1"].value for name, of in labels.items()}
    worst = sorted(labels, key=lambda name: 0.0 if math.isnan(f1[name]) else f1[name])[:MOST_ROWS]
    rows: list[tuple[str, ...]] = []
    for name in labels if len(labels) <= MOST_ROWS else worst:
        metrics = labels[name].metrics
        single = (format_number(metrics[metric].value) for metric in ("precision", "recall"))
        cells = (_format_estimate(metrics[metric], "[bold]{}[/bold]") for metric in _WITH_INTERVALS)
        rows.append((escape(name), f"{labels[name].examples:,}", *single, *cells))
    if len(worst) < len(labels):
        rows.append((f"and {len(labels) - len(worst):,} better ones",))
    print_table(f"Each {noun}, with 95 % intervals", columns, rows)


def _print_slices(name: str, values: dict[str, SubsetMetrics]) -> None:
    """Print metrics on the images that share a value of a column."""
    known = next(iter(values.values())).metrics
    metrics = [metric for metric in _SLICE_METRICS if metric in known]
    rows = (
        (
            escape(value) or "-",
            f"{subset.examples:,}",
            *(_format_estimate(subset.metrics[metric]) for metric in metrics),
        )
        for value, subset in list(values.items())[:MOST_ROWS]
    )
    print_table(f"By {name}", left(name) + right("images", *(METRIC_NAMES[metric] for metric in metrics)), rows)


def _format_interval(estimate: Estimate, sign: str = "-") -> str:
    """The interval of a metric; a dash where there is none."""
    low, high = format_number(estimate.low, sign), format_number(estimate.high, sign)
    return "-" if math.isnan(estimate.low) else f"{low} to {high}"


def _format_estimate(estimate: Estimate, value: str = "{}") -> str:
    text = value.format(format_number(estimate.value))
    return text if math.isnan(estimate.low) else f"{text} ({_format_interval(estimate)})"


def print_predictions(result: PredictionResult) -> None:
    if result.predictions:
        others = list(result.predictions[0].tasks)[1:]
        columns = left("label") + right("probability") + left("then")
        if result.threshold is not None:
            columns = left(f"labels, from {result.threshold:g} on", "probabilities")
        rows = []
        for image in result.predictions:
            labels = (escape(image.tasks[name].label) for name in others)
            rows.append((escape(image.path), *_describe(image, result.threshold), *labels))
        print_table(f"Predictions of {result.run}", paths("image") + columns + left(*others), rows)
    if result.unreadable:
        print_issues("Files that could not be read", result.unreadable)
    print_notes(result.notes)


def _describe(image: ImagePrediction, threshold: float | None) -> tuple[str, ...]:
    if threshold is not None:
        return escape(", ".join(image.labels)) or "-", _list_probabilities(image.top)
    probability = "-" if image.probability is None else f"{image.probability:.3f}"
    return escape(image.label), probability, _list_probabilities(image.top[1:])


def _list_probabilities(top: Sequence[ClassProbability]) -> str:
    return escape(", ".join(f"{best.label} {best.probability:.3f}" for best in top))


def print_prediction_file(result: PredictionFileResult) -> None:
    console = open_console()
    done = f", {result.resumed:,} of them before" if result.resumed else ""
    engine = f" with {result.engine}" if result.engine else ""
    console.print(f"Wrote {result.rows:,} predictions to {escape(result.out)}{done}.", soft_wrap=True)
    console.print(f"{result.rate:,.0f} images/s{engine}, {result.seconds:,.1f} s.")
    if result.unreadable:
        print_issues("Files that could not be read", result.unreadable, f"{result.rejected} lists every file.")
    print_notes(result.notes)


def print_comparison(result: ComparisonResult) -> None:
    console = open_console()
    console.print(escape(result.verdict), highlight=False)
    costs = []
    for run in result.runs:
        parameters = "-" if run.parameters is None else f"{run.parameters:,}"
        costs.append((escape(run.name), f"{run.minutes:,.1f}", parameters, f"{run.images:,}"))
    columns = left("run") + right("minutes", "parameters", "held-out images")
    print_table(f"Compared on {result.images:,} images", columns, costs)
    for task, compared in result.tasks.items():
        metrics = compared.metrics
        values = (
            (METRIC_NAMES[metric], *(format_number(of_run[metric].value) for of_run in metrics.values()))
            for metric in next(iter(metrics.values()))
        )
        print_table(f"{task}: metrics", left("") + right(*metrics), values)
        for name, differences in compared.differences.items():
            rows = (
                (METRIC_NAMES[metric], format_number(one.value, "+"), _format_interval(one, "+"), _VERDICTS[one.better])
                for metric, one in differences.items()
            )
            columns = left("") + right("difference", "95 % interval") + left("")
            print_table(f"{name} against {result.runs[0].name}", columns, rows)
            for sentence in explain_missing(differences):
                console.print(sentence)
    console.print("Differences are paired: both runs on each of the same resamples of images; 95 % intervals.")
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")


def print_report(result: ReportResult) -> None:
    console = open_console()
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Report: {escape(result.path)} ({result.bytes / 1e6:.1f} MB, one file)", soft_wrap=True)


def print_export(result: ExportResult) -> None:
    console = open_console()
    several = len({row.task for row in result.parity}) > 1
    rows = (
        (
            f"{row.form}, {row.task}" if several else row.form,
            f"{row.difference:.1e}",
            f"{row.agreement:.1%}",
            f"{row.accuracy.value:.4f}",
            _format_interval(row.accuracy),
            f"{row.megabytes:,.2f}",
            f"{row.milliseconds:,.1f}",
        )
        for row in result.parity
    )
    numbers = right("largest difference", "same prediction", "accuracy", "95 % interval", "MB", "ms per image")
    print_table(f"{result.run}: {result.images:,} held-out images", left("format") + numbers, rows)
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Exported version {result.version} to {escape(result.path)}", soft_wrap=True)
    console.print(
        f"Compared on {result.images:,} held-out images: largest difference in a probability from the run's own "
        f"{result.difference:.1g}; {result.warmup} warm-up requests were run."
    )
    console.print(f"Signatures: {', '.join(result.signatures)}")
    console.print("\nServe it with TensorFlow Serving:")
    console.print(f"  {result.docker}", markup=False, highlight=False, soft_wrap=True)


def print_tuning(result: TuningResult) -> None:
    console = open_console()
    columns = right("trial", *result.space, f"validation {result.objective}", "over seeds", "seconds")
    shown = f", the best {_MOST_TRIALS}" if len(result.trials) > _MOST_TRIALS else ""
    rows = []
    for trial in result.trials[:_MOST_TRIALS]:
        over, seconds = trial.over_seeds, trial.score("seconds")
        seeds = f"{over.mean:.4f} ± {over.spread:.4f} ({over.seeds})" if over.seeds > 1 else ""
        cells = (_format_value(trial.values.get(key)) for key in result.space)
        rows.append((trial.name, *cells, format_number(trial.score(result.objective)), seeds, f"{seconds:.1f}"))
    print_table(f"{result.path}: {len(result.trials)} trials{shown}", columns, rows)
    if result.importance:
        ranked = sorted(result.importance.items(), key=lambda item: -item[1])
        console.print("Importance: " + escape(", ".join(f"{key} {share:.0%}" for key, share in ranked)))
    if result.failed:
        failed = [(one.name, escape(one.error or "")) for one in result.failed[:_MOST_TRIALS]]
        print_table(f"{len(result.failed)} trials failed", right("trial") + left("reason"), failed)
    for name, seconds in result.phases.items():
        console.print(f"{name}: {seconds:.1f} s")
    for path in result.images:
        console.print(f"Image: {escape(path)}", soft_wrap=True)
    if result.best:
        console.print(f"Best recipe: {escape(result.best)}", soft_wrap=True)


def _format_value(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float) else escape(value if isinstance(value, str) else json.dumps(value))
    )
