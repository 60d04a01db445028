"""Comparisons as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import format_number, make_table, open_console
from tlkeras.evaluation.metric_names import METRIC_NAMES

_VERDICTS = {True: "[green]better[/green]", False: "[red]worse[/red]", None: ""}


def print_comparison(result: dict[str, Any]) -> None:
    """Print what each run cost, its figures, and how they differ from the first run's."""
    console = open_console()
    console.print(_list_runs(result))
    for task, compared in result["tasks"].items():
        console.print(_list_figures(task, compared["metrics"]))
        first, *_ = compared["metrics"]
        for name, differences in compared["differences"].items():
            console.print(_list_differences(f"{name} against {first}", differences))
    console.print("Differences are paired: both runs on each of the same resamples of images; 95 % intervals.")
    for note in result["notes"]:
        console.print(f"[yellow]{escape(note)}[/yellow]")


def print_report(result: dict[str, Any]) -> None:
    """Print where the page lies and what it does not show."""
    console = open_console()
    for note in result["notes"]:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Report: {escape(result['path'])} ({result['bytes'] / 1e6:.1f} MB, one file)")


def _list_runs(result: Mapping[str, Any]) -> Table:
    columns = [("run", "left"), ("minutes", "right"), ("parameters", "right"), ("held-out images", "right")]
    table = make_table(f"Compared on {result['images']:,} images", columns)
    for run in result["runs"]:
        parameters = "-" if run["parameters"] is None else f"{run['parameters']:,}"
        table.add_row(escape(run["name"]), f"{run['minutes']:,.1f}", parameters, f"{run['images']:,}")
    return table


def _list_figures(task: str, metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = make_table(f"{task}: figures", [("", "left"), *((name, "right") for name in metrics)])
    for metric in next(iter(metrics.values())):
        table.add_row(METRIC_NAMES[metric], *(format_number(of_run[metric]["value"]) for of_run in metrics.values()))
    return table


def _list_differences(title: str, differences: Mapping[str, Mapping[str, Any]]) -> Table:
    table = make_table(title, [("", "left"), ("difference", "right"), ("95 % interval", "right"), ("", "left")])
    for metric, parts in differences.items():
        table.add_row(
            METRIC_NAMES[metric],
            _sign(parts["value"]),
            f"{_sign(parts['low'])} to {_sign(parts['high'])}",
            _VERDICTS[parts["better"]],
        )
    return table


def _sign(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
