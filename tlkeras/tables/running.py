"""Trainings, figures and predictions as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlkeras.tables.drawing import METRIC_NAMES, format_number, list_findings, make_table, open_console


def draw_training(result: dict[str, Any]) -> None:
    """Print figures, the time of each phase, where the run lies, and what to do next."""
    draw_evaluation(result)
    console = open_console()
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
    for command, purpose in (
        (f"tlkeras predict {name} PICTURE...", "classify pictures"),
        (f"tlkeras export {name} --to saved_models/{run.rpartition('-')[0]}", "a SavedModel for TensorFlow Serving"),
        ("tlkeras cp quickstart mine.yaml", "a recipe of your own"),
    ):
        console.print(f"  {command:<60} # {purpose}", markup=False, highlight=False)


def draw_evaluation(result: dict[str, Any]) -> None:
    """Print each figure with its interval, beside the majority baseline."""
    counts = result["examples"]
    weighted = ", weighted" if result["weighted"] else ""
    classes = "labels" if "labels" in result else "classes"
    title = f"{result['run']}: {counts['test']:,} held-out pictures{weighted}, {len(result['classes'])} {classes}"
    table = make_table(
        title, [("", "left"), ("value", "right"), ("95 % interval", "right"), ("majority baseline", "right")]
    )
    for name, figure in result["metrics"].items():
        table.add_row(
            METRIC_NAMES[name],
            f"[bold]{format_number(figure['value'])}[/bold]",
            f"{format_number(figure['low'])} to {format_number(figure['high'])}",
            format_number(result["baseline"][name]["value"]),
        )
    console = open_console()
    console.print(table)
    if "labels" in result:
        console.print(_list_labels(result["labels"]))
    if result["rejected"]:
        console.print(f"[yellow]{result['rejected']:,} pictures were left out; see rejected.csv in the run.[/yellow]")


def draw_predictions(result: dict[str, Any]) -> None:
    """Print the best classes of each picture, and what could not be read."""
    console = open_console()
    draw = _list_answers if result["threshold"] is None else _list_labels_found
    if result["predictions"]:
        console.print(draw(result))
    if result["unreadable"]:
        console.print(list_findings(f"{len(result['unreadable'])} could not be read", result["unreadable"]))


def draw_written(result: dict[str, Any]) -> None:
    """Print what was written where, how fast, and what could not be read."""
    console = open_console()
    done = f", {result['resumed']:,} of them before" if result["resumed"] else ""
    engine = f" with {result['engine']}" if result["engine"] else ""
    console.print(f"Wrote {result['rows']:,} predictions to {escape(result['out'])}{done}.")
    console.print(f"{result['rate']:,.0f} pictures/s{engine}, {result['seconds']:,.1f} s.")
    if result["unreadable"]:
        console.print(f"[yellow]{result['unreadable']:,} could not be read; see {escape(result['rejected'])}[/yellow]")


def _list_answers(result: dict[str, Any]) -> Table:
    columns = [("picture", "left"), ("label", "left"), ("probability", "right"), ("then", "left")]
    table = make_table(f"Predictions of {result['run']}", columns)
    for row in result["predictions"]:
        table.add_row(
            escape(row["path"]), escape(row["label"]), f"{row['probability']:.3f}", _list_best(row["top"][1:])
        )
    return table


def _list_labels_found(result: dict[str, Any]) -> Table:
    columns = [("picture", "left"), (f"labels, from {result['threshold']:g} on", "left"), ("probabilities", "left")]
    table = make_table(f"Predictions of {result['run']}", columns)
    for row in result["predictions"]:
        table.add_row(escape(row["path"]), escape(", ".join(row["labels"])) or "-", _list_best(row["top"]))
    return table


def _list_best(top: Sequence[dict[str, Any]]) -> str:
    return escape(", ".join(f"{best['label']} {best['probability']:.3f}" for best in top))


def _list_labels(labels: dict[str, dict[str, Any]]) -> Table:
    """Return a table of each label's figures with their intervals."""
    names = [name for name in next(iter(labels.values())) if name != "examples"]
    columns = [("label", "left"), ("pictures", "right"), *((METRIC_NAMES[name], "right") for name in names)]
    table = make_table("Labels, each figure with its 95 % interval", columns)
    for label, figures in labels.items():
        cells = [
            f"[bold]{format_number(figures[name]['value'])}[/bold] "
            f"({format_number(figures[name]['low'])} to {format_number(figures[name]['high'])})"
            for name in names
        ]
        table.add_row(escape(label), f"{figures['examples']:,}", *cells)
    return table
