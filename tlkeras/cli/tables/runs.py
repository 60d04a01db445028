"""Tables of trainings, evaluations and predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import MOST_ROWS, format_number, issues_table, make_table, open_console
from tlkeras.evaluation.metric_names import METRIC_NAMES, explain_missing
from tlkeras.inference.results import ClassProbability, PredictionFileResult, PredictionResult

if TYPE_CHECKING:
    from tlkeras.evaluation.evaluate import EvaluationResult, SubsetMetrics, TaskEvaluation
    from tlkeras.evaluation.intervals import Estimate
    from tlkeras.evaluation.other_data import ExternalEvaluationResult

_WITH_INTERVALS = ("f1", "roc_auc", "average_precision")
_SLICE_METRICS = ("accuracy", "exact_match", "macro_f1", "roc_auc", "log_loss", "r2", "mae")


def print_training(result: EvaluationResult) -> None:
    """Print the metrics, the time of each phase, the run's folder, and commands to go on with."""
    print_evaluation(result)
    console = open_console()
    if result.head.get("scores"):
        console.print(_adaptation_table(result))
    table = make_table("Time", [("phase", "left"), ("seconds", "right")])
    for name, seconds in result.phases.items():
        table.add_row(name, f"{seconds:,.1f}")
    table.add_row("[bold]total[/bold]", f"[bold]{sum(result.phases.values()):,.1f}[/bold]")
    console.print(table)
    features = result.features
    engine = f" with {features['engine']}" if features["engine"] else ""
    console.print(f"Features: {features['computed']:,} computed{engine}, {features['reused']:,} from the cache.")
    console.print(f"Run: {escape(result.path)}")
    name = result.run if os.path.dirname(result.path) == "runs" else result.path
    console.print("\nNext:")
    export = f"tlkeras export {name} --to saved_models/{result.run.rpartition('-')[0]}"
    exports = [] if features.get("handcrafted") else [(export, "a SavedModel for TensorFlow Serving")]
    for command, purpose in (
        (f"tlkeras predict {name} IMAGE...", "classify images"),
        *exports,
        ("tlkeras cp quickstart mine.yaml", "a recipe of your own"),
    ):
        console.print(f"  {command:<60} # {purpose}", markup=False, highlight=False)


def print_worker(result: dict[str, Any]) -> None:
    """Print that a worker of a training on several machines has ended."""
    open_console().print(f"Worker {result['worker']} of {result['workers']} is done; worker 0 has the run.")


def _adaptation_table(result: EvaluationResult) -> Table:
    """Scores across domains that need no labels of the target, next to the accuracy by its labels."""
    head = result.head
    title = f"Across domains by {head['method']}: higher is better"
    table = make_table(title, [("without labels of the target", "left"), ("value", "right")])
    for name, value in head["scores"].items():
        table.add_row(name.replace("_", " "), format_number(value))
    for when, distance in head["a_distance"].items():
        table.add_row(f"A-distance {when}, 0 alike, 2 apart", format_number(distance))
    table.add_row("oracle: accuracy by the target's labels", format_number(result.metrics["accuracy"].value))
    return table


def print_evaluation(result: EvaluationResult | ExternalEvaluationResult) -> None:
    """Print each metric with its interval next to the baselines, then those of classes and slices."""
    console = open_console()
    source = getattr(result, "source", None)
    images = f"images of {source}" if source else "held-out images"
    for name, task in result.tasks.items():
        _print_task(task, f"{result.run}, {name}" if len(result.tasks) > 1 else result.run, images)
    if trained_on := getattr(result, "trained_on", 0):
        console.print(f"[yellow]{trained_on:,} of these images were trained on: the metrics are too good.[/yellow]")
    if result.rejected:
        reason = "they cannot be read" if source else "see rejected.csv in the run"
        console.print(f"[yellow]{result.rejected:,} images were left out; {reason}.[/yellow]")


def _print_task(task: TaskEvaluation, name: str, images: str) -> None:
    console = open_console()
    kinds = {"multiclass": f"{len(task.classes)} classes", "multilabel": f"{len(task.classes)} labels"}
    weighted = ", weighted" if task.weighted else ""
    title = f"{name}: {task.images:,} {images}{weighted}, {kinds.get(task.kind, 'a number')}"
    columns = [("", "left"), ("value", "right"), ("95 % interval", "right")]
    table = make_table(title, [*columns, *((baseline, "right") for baseline in task.baselines)])
    for metric, estimate in task.metrics.items():
        baselines = (format_number(metrics[metric].value) for metrics in task.baselines.values())
        value = f"[bold]{format_number(estimate.value)}[/bold]"
        table.add_row(METRIC_NAMES[metric], value, _format_interval(estimate), *baselines)
    console.print(table)
    for sentence in explain_missing(task.metrics):
        console.print(escape(sentence))
    if "groups" in task.interval:
        console.print(f"Intervals: {task.interval}.")
    if task.labels:
        console.print(_labels_table(task.labels, "label" if task.kind == "multilabel" else "class"))
    for column, values in task.slices.items():
        console.print(_slices_table(column, values))
    if task.calibration:
        scaled = [f"{of.adaptive_ece:.4f} with {name} scaling" for name, of in task.calibration.scalings.items()]
        text = f"Adaptive calibration error {task.calibration.adaptive_ece:.4f}"
        if not math.isnan(task.calibration.interval.low):
            text += f" ({_format_interval(task.calibration.interval)})"
        console.print(f"{text}; {', '.join(scaled)}." if scaled else f"{text}.")


def _format_interval(estimate: Estimate) -> str:
    """The interval of a metric; a dash where there is none."""
    return "-" if math.isnan(estimate.low) else f"{format_number(estimate.low)} to {format_number(estimate.high)}"


def _format_estimate(estimate: Estimate, value: str = "{}") -> str:
    """A metric, and its interval where there is one."""
    text = value.format(format_number(estimate.value))
    return text if math.isnan(estimate.low) else f"{text} ({_format_interval(estimate)})"


def print_predictions(result: PredictionResult) -> None:
    """Print the best classes of each image, and the images that could not be read."""
    console = open_console()
    draw = _list_best_classes if result.threshold is None else _list_labels_found
    if result.predictions:
        console.print(draw(result))
    if result.unreadable:
        console.print(issues_table(f"{len(result.unreadable)} could not be read", result.unreadable))


def print_prediction_file(result: PredictionFileResult) -> None:
    """Print where the table is, how fast it was computed, and how many images could not be read."""
    console = open_console()
    done = f", {result.resumed:,} of them before" if result.resumed else ""
    engine = f" with {result.engine}" if result.engine else ""
    console.print(f"Wrote {result.rows:,} predictions to {escape(result.out)}{done}.")
    console.print(f"{result.rate:,.0f} images/s{engine}, {result.seconds:,.1f} s.")
    if result.unreadable:
        where = escape(result.rejected or "")
        console.print(f"[yellow]{len(result.unreadable):,} could not be read; see {where}[/yellow]")


def _list_best_classes(result: PredictionResult) -> Table:
    others = _list_other_tasks(result)
    columns = [("image", "left"), ("label", "left"), ("probability", "right"), ("then", "left")]
    columns += [(name, "left") for name in others]
    table = make_table(f"Predictions of {result.run}", columns)
    for image in result.predictions:
        labels = [escape(image.tasks[name].label) for name in others]
        probability = f"{image.probability:.3f}"
        table.add_row(escape(image.path), escape(image.label), probability, _list_probabilities(image.top[1:]), *labels)
    return table


def _list_labels_found(result: PredictionResult) -> Table:
    others = _list_other_tasks(result)
    columns = [("image", "left"), (f"labels, from {result.threshold:g} on", "left"), ("probabilities", "left")]
    columns += [(name, "left") for name in others]
    table = make_table(f"Predictions of {result.run}", columns)
    for image in result.predictions:
        labels = [escape(image.tasks[name].label) for name in others]
        found = escape(", ".join(image.labels)) or "-"
        table.add_row(escape(image.path), found, _list_probabilities(image.top), *labels)
    return table


def _list_other_tasks(result: PredictionResult) -> list[str]:
    """Names of all tasks but the first."""
    return list(result.predictions[0].tasks)[1:]


def _list_probabilities(top: Sequence[ClassProbability]) -> str:
    return escape(", ".join(f"{best.label} {best.probability:.3f}" for best in top))


def _labels_table(labels: dict[str, SubsetMetrics], noun: str) -> Table:
    """Metrics of each class; of many classes, of those with the lowest F1."""
    columns = [(noun, "left"), ("images", "right"), ("precision", "right"), ("recall", "right")]
    columns += [(METRIC_NAMES[name], "right") for name in _WITH_INTERVALS]
    f1 = {name: of.metrics["f1"].value for name, of in labels.items()}
    worst = sorted(labels, key=lambda name: 0.0 if math.isnan(f1[name]) else f1[name])[:MOST_ROWS]
    table = make_table(f"Each {noun}, with 95 % intervals", columns)
    for name in labels if len(labels) <= MOST_ROWS else worst:
        metrics = labels[name].metrics
        cells = [_format_estimate(metrics[m], "[bold]{}[/bold]") for m in _WITH_INTERVALS]
        single = [format_number(metrics[m].value) for m in ("precision", "recall")]
        table.add_row(escape(name), f"{labels[name].examples:,}", *single, *cells)
    if len(worst) < len(labels):
        table.add_row(f"and {len(labels) - len(worst):,} better ones", "")
    return table


def _slices_table(name: str, values: dict[str, SubsetMetrics]) -> Table:
    """Metrics on the images that share a value of a column."""
    known = next(iter(values.values())).metrics
    metrics = [metric for metric in _SLICE_METRICS if metric in known]
    columns = [(name, "left"), ("images", "right"), *((METRIC_NAMES[metric], "right") for metric in metrics)]
    table = make_table(f"By {name}", columns)
    for value, subset in list(values.items())[:MOST_ROWS]:
        estimates = [subset.metrics[metric] for metric in metrics]
        cells = [_format_estimate(one) for one in estimates]
        table.add_row(escape(value) or "-", f"{subset.examples:,}", *cells)
    return table
