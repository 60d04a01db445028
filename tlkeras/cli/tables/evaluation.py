"""Tables of comparisons and reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import format_number, make_table, open_console
from tlkeras.evaluation.metric_names import METRIC_NAMES, explain_missing

if TYPE_CHECKING:
    from tlkeras.evaluation.comparison import ComparisonResult, PairedDifference
    from tlkeras.evaluation.intervals import Estimate
    from tlkeras.evaluation.report.report import ReportResult

_VERDICTS = {True: "[green]better[/green]", False: "[red]worse[/red]", None: ""}


def print_comparison(result: ComparisonResult) -> None:
    """Print the cost and the metrics of each run, and their differences from the first run's."""
    console = open_console()
    console.print(_runs_table(result))
    for task, compared in result.tasks.items():
        console.print(_metrics_table(task, compared.metrics))
        for name, differences in compared.differences.items():
            console.print(_differences_table(f"{name} against {result.runs[0].name}", differences))
            for sentence in explain_missing(differences):
                console.print(sentence)
    console.print("Differences are paired: both runs on each of the same resamples of images; 95 % intervals.")
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")


def print_report(result: ReportResult) -> None:
    """Print the path of the page, and what it does not show."""
    console = open_console()
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Report: {escape(result.path)} ({result.bytes / 1e6:.1f} MB, one file)")


def _runs_table(result: ComparisonResult) -> Table:
    columns = [("run", "left"), ("minutes", "right"), ("parameters", "right"), ("held-out images", "right")]
    table = make_table(f"Compared on {result.images:,} images", columns)
    for run in result.runs:
        parameters = "-" if run.parameters is None else f"{run.parameters:,}"
        table.add_row(escape(run.name), f"{run.minutes:,.1f}", parameters, f"{run.images:,}")
    return table


def _metrics_table(task: str, metrics: dict[str, dict[str, Estimate]]) -> Table:
    table = make_table(f"{task}: metrics", [("", "left"), *((name, "right") for name in metrics)])
    for metric in next(iter(metrics.values())):
        table.add_row(METRIC_NAMES[metric], *(format_number(of_run[metric].value) for of_run in metrics.values()))
    return table


def _differences_table(title: str, differences: dict[str, PairedDifference]) -> Table:
    table = make_table(title, [("", "left"), ("difference", "right"), ("95 % interval", "right"), ("", "left")])
    for metric, difference in differences.items():
        interval = f"{format_number(difference.low, '+')} to {format_number(difference.high, '+')}"
        interval = "-" if math.isnan(difference.low) else interval
        verdict = _VERDICTS[difference.better]
        table.add_row(METRIC_NAMES[metric], format_number(difference.value, "+"), interval, verdict)
    return table
