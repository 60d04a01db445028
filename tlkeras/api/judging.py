"""The verbs that judge runs: against each other, and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlkeras.api.running import RUNS
from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RunError
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.runs.directory import open_run


def compare(references: Sequence[str], *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Compare finished runs with the first of them; see `tlkeras.evaluation.comparison.compare`.

    Args:
        references: Names, paths or `latest`; two or more.
        runs: Folder of the run directories.
    """
    from tlkeras.evaluation import comparison

    opened = [open_run(reference, Path(runs)) for reference in references]
    options = load_recipe(str(opened[0].path / "recipe.yaml")).evaluation
    return comparison.compare(opened, resamples=options.bootstrap, seed=options.seed)


def report(
    references: Sequence[str] = ("latest",),
    to: str | Path | None = None,
    *,
    options: dict[str, Any] | None = None,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """Write a page on one or several runs: one HTML file that needs nothing beside it.

    Args:
        references: Finished runs: names, paths or `latest`.
        to: The file; by default `report.html` in the (first) run.
        options: Values of `tlkeras.evaluation.report.compute.ReportOptions` by name.
        runs: Folder of the run directories.

    Returns:
        `path`, `runs`, `notes` (what could not be shown), `bytes`.

    Raises:
        ResourceError: The file is there and no page of tlkeras, or cannot be written.
        RunError: There is no such run, or an option cannot be used.
    """
    opened = [open_run(reference, Path(runs)) for reference in references]
    if len({run.path.resolve() for run in opened}) < len(opened):
        raise RunError("A report shows each run once.", ", ".join(references))
    from tlkeras.plotting import html_page

    target = Path(to) if to else opened[0].path / "report.html"
    html_page.check_page(target)
    import_tensorflow_quietly()
    from tlkeras.evaluation import comparison
    from tlkeras.evaluation.report import compute as computing
    from tlkeras.evaluation.report.page import write_report

    chosen = computing.ReportOptions(**(options or {}))
    settings = load_recipe(str(opened[0].path / "recipe.yaml")).evaluation
    compared = None
    if len(opened) > 1:
        compared = comparison.compare(opened, resamples=settings.bootstrap, seed=settings.seed)
    reports = [computing.compute_report(run, chosen) for run in opened]
    write_report(target, reports, compared)
    notes = [f"{one.run}: {note}" for one in reports for note in one.notes]
    return {"path": str(target), "runs": [run.name for run in opened], "notes": notes, "bytes": target.stat().st_size}
