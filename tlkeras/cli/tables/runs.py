"""Trainings, figures and predictions as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import MOST_ROWS, format_number, issues_table, make_table, open_console
from tlkeras.evaluation.metric_names import METRIC_NAMES, baseline_names
from tlkeras.inference.results import ClassProbability, PredictionFileResult, PredictionResult

_WITH_INTERVALS = ("f1", "roc_auc", "average_precision")


def print_training(result: dict[str, Any]) -> None:
    """Print figures, the time of each phase, where the run lies, and what to do next."""
    if "worker" in result:
        open_console().print(f"Worker {result['worker']} of {result['workers']} is done; worker 0 has the run.")
        return
    print_evaluation(result)
    console = open_console()
    if result["head"].get("scores"):
        console.print(_list_scores(result))
    phases = result["phases"]
    table = make_table("Time", [("phase", "left"), ("seconds", "right")])
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds:,.1f}")
    table.add_row("[bold]in all[/bold]", f"[bold]{sum(phases.values()):,.1f}[/bold]")
    console.print(table)
    features, run = result["features"], result["run"]
    engine = f" with {features['engine']}" if features["engine"] else ""
    console.print(f"Features: {features['computed']:,} computed{engine}, {features['reused']:,} from the cache.")
    console.print(f"Run: {escape(result['path'])}")
    name = run if os.path.dirname(result["path"]) == "runs" else result["path"]
    console.print("\nNext:")
    export = f"tlkeras export {name} --to saved_models/{run.rpartition('-')[0]}"
    exports = [] if features.get("handcrafted") else [(export, "a SavedModel for TensorFlow Serving")]
    for command, purpose in (
        (f"tlkeras predict {name} IMAGE...", "classify images"),
        *exports,
        ("tlkeras cp quickstart mine.yaml", "a recipe of your own"),
    ):
        console.print(f"  {command:<60} # {purpose}", markup=False, highlight=False)


def _list_scores(result: dict[str, Any]) -> Table:
    """Return what can be said across domains without labels of the target, and beside it what these say."""
    head, accuracy = result["head"], result["metrics"]["accuracy"]["value"]
    title = f"Across domains by {head['method']}: higher is better"
    table = make_table(title, [("without labels of the target", "left"), ("value", "right")])
    for name, value in head["scores"].items():
        table.add_row(name.replace("_", " "), format_number(value))
    for when, distance in head["a_distance"].items():
        table.add_row(f"A-distance {when}, 0 alike, 2 apart", format_number(distance))
    table.add_row("oracle: accuracy by the target's labels", format_number(accuracy))
    return table


def print_evaluation(result: dict[str, Any]) -> None:
    """Print each figure with its interval beside the baselines, then those of classes and slices."""
    console = open_console()
    for of_task in result.get("tasks", {"": result}).values():
        _draw_task({**result, **of_task})
    if result.get("trained_on"):
        console.print(f"[yellow]{result['trained_on']:,} of these images were trained on: figures flatter.[/yellow]")
    if result["rejected"]:
        where = "they cannot be read" if "source" in result else "see rejected.csv in the run"
        console.print(f"[yellow]{result['rejected']:,} images were left out; {where}.[/yellow]")


def _draw_task(result: dict[str, Any]) -> None:
    console = open_console()
    of_which = f"images of {result['source']}" if "source" in result else "held-out images"
    weighted = ", weighted" if result["weighted"] else ""
    kinds = {"multiclass": f"{len(result['classes'])} classes", "multilabel": f"{len(result['classes'])} labels"}
    several = f", {result['task']}" if "tasks" in result else ""
    kind = kinds.get(result["kind"], "a number")
    title = f"{result['run']}{several}: {result['images']:,} {of_which}{weighted}, {kind}"
    columns = [("", "left"), ("value", "right"), ("95 % interval", "right")]
    beside = baseline_names(result)
    table = make_table(title, [*columns, *((name, "right") for name in beside)])
    for name, figure in result["metrics"].items():
        table.add_row(
            METRIC_NAMES[name],
            f"[bold]{format_number(figure['value'])}[/bold]",
            _tell_interval(figure),
            *(format_number(figures[name]["value"]) for figures in beside.values()),
        )
    console.print(table)
    if result["labels"]:
        console.print(_list_labels(result["labels"], "label" if result["kind"] == "multilabel" else "class"))
    for name, values in result["slices"].items():
        console.print(_list_slices(name, values))
    if result["calibration"]:
        console.print(_tell_calibration(result["calibration"]))


def _tell_interval(figure: dict[str, float | None]) -> str:
    return f"{format_number(figure['low'])} to {format_number(figure['high'])}"


def _tell_calibration(calibration: dict[str, Any]) -> str:
    text = f"Adaptive calibration error {calibration['adaptive_ece']:.4f}"
    found = [
        f"{calibration['scalings'][name]['adaptive_ece']:.4f} with {name} scaling" for name in calibration["scalings"]
    ]
    return f"{text}; {', '.join(found)}." if found else f"{text}."


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


def _list_labels(labels: dict[str, dict[str, Any]], what: str) -> Table:
    """Return a table of each class's figures; of many classes, the worst."""
    columns = [(what, "left"), ("images", "right"), ("precision", "right"), ("recall", "right")]
    columns += [(METRIC_NAMES[name], "right") for name in _WITH_INTERVALS]
    worst = sorted(labels, key=lambda label: labels[label]["f1"]["value"] or 0.0)[:MOST_ROWS]
    shown = labels if len(labels) <= MOST_ROWS else worst
    table = make_table(f"Each {what}, with 95 % intervals", columns)
    for label in shown:
        figures = labels[label]
        cells = [
            f"[bold]{format_number(figures[name]['value'])}[/bold] ({_tell_interval(figures[name])})"
            for name in _WITH_INTERVALS
        ]
        single = [format_number(figures[name]["value"]) for name in ("precision", "recall")]
        table.add_row(escape(label), f"{figures['examples']:,}", *single, *cells)
    if len(shown) < len(labels):
        table.add_row(f"and {len(labels) - len(shown):,} better ones", "")
    return table


def _list_slices(name: str, values: dict[str, dict[str, Any]]) -> Table:
    """Return a table of the figures on images that have a value in common."""
    known = next(iter(values.values()))
    metrics = [
        metric
        for metric in ("accuracy", "exact_match", "macro_f1", "roc_auc", "log_loss", "r2", "mae")
        if metric in known
    ]
    table = make_table(
        f"By {name}", [(name, "left"), ("images", "right"), *((METRIC_NAMES[m], "right") for m in metrics)]
    )
    for value in list(values)[:MOST_ROWS]:
        cells = [f"{format_number(values[value][m]['value'])} ({_tell_interval(values[value][m])})" for m in metrics]
        table.add_row(escape(value) or "-", f"{values[value]['examples']:,}", *cells)
    return table
