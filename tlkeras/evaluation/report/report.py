"""The verb that writes the page on one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkeras.errors import RunError
from tlkeras.evaluation.comparison import compare
from tlkeras.evaluation.report.compute import ReportOptions, compute_report
from tlkeras.evaluation.report.page import write_report
from tlkeras.plotting.html_page import check_page
from tlkeras.results import Result
from tlkeras.runs.directory import RUNS, Run, open_run


@dataclass(frozen=True)
class ReportResult(Result):
    """A page that was written."""

    path: str  # the file
    runs: list[str]  # names of the runs
    notes: list[str]  # what could not be shown, and why
    bytes: int  # size of the file


def report(
    references: Sequence[str | Path | Run] = ("latest",),
    to: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    runs: str | Path = RUNS,
) -> ReportResult:
    """Write the page on one or several runs: one HTML file that needs no others.

    Args:
        references: Finished runs: names, paths, `latest` or `Run`s.
        to: The file; by default `report.html` in the (first) run.
        options: Values of `ReportOptions` by name.
        runs: Folder of the run directories.

    Raises:
        ResourceError: The file exists and is not a page of tlkeras, or cannot be written.
        RunError: There is no such run, or an option is invalid.
    """
    opened = [open_run(reference, runs) for reference in references]
    if len({run.path.resolve() for run in opened}) < len(opened):
        raise RunError("The same run is given twice.", ", ".join(map(str, references)))
    target = Path(to) if to else opened[0].path / "report.html"
    check_page(target)
    chosen = ReportOptions(**(options or {}))
    compared = compare(opened) if len(opened) > 1 else None
    reports = [compute_report(run, chosen) for run in opened]
    write_report(target, reports, compared)
    notes = [f"{one.run}: {note}" for one in reports for note in one.notes]
    return ReportResult(str(target), [run.name for run in opened], notes, target.stat().st_size)
