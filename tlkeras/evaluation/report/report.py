"""The page on one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RunError
from tlkeras.evaluation.comparison import compare_runs
from tlkeras.evaluation.report.compute import ReportOptions, compute_report
from tlkeras.evaluation.report.page import write_report
from tlkeras.plotting.html_page import check_page
from tlkeras.runs.directory import RUNS, Run, open_run


def report(
    references: Sequence[str | Path | Run] = ("latest",),
    to: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """The path of a page on one or several runs: one HTML file that needs nothing else.

    Args:
        references: Finished runs: names, paths, `latest` or `Run`s.
        to: The file; by default `report.html` in the (first) run.
        options: Values of `ReportOptions` by name.
        runs: Folder of the run directories.

    Returns:
        `path`, `runs`, `notes` (what could not be shown), `bytes`.

    Raises:
        ResourceError: The file is there and no page of tlkeras, or cannot be written.
        RunError: There is no such run, or an option cannot be used.
    """
    opened = [open_run(reference, runs) for reference in references]
    if len({run.path.resolve() for run in opened}) < len(opened):
        raise RunError("A report shows each run once.", ", ".join(map(str, references)))
    target = Path(to) if to else opened[0].path / "report.html"
    check_page(target)
    chosen = ReportOptions(**(options or {}))
    settings = load_recipe(opened[0].require("recipe.yaml")).evaluation
    compared = None
    if len(opened) > 1:
        compared = compare_runs(opened, resamples=settings.bootstrap_samples, seed=settings.seed)
    reports = [compute_report(run, chosen) for run in opened]
    write_report(target, reports, compared)
    notes = [f"{one.run}: {note}" for one in reports for note in one.notes]
    return {"path": str(target), "runs": [run.name for run in opened], "notes": notes, "bytes": target.stat().st_size}
