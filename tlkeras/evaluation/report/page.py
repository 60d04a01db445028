"""The page on one or several runs: one HTML file."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tlkeras.errors import RunError
from tlkeras.evaluation.comparison import ComparisonResult, compare
from tlkeras.evaluation.evaluate import SubsetMetrics, TaskEvaluation
from tlkeras.evaluation.metric_names import METRIC_NAMES, explain_missing
from tlkeras.evaluation.report import charts, summaries
from tlkeras.evaluation.report.compute import Report, ReportOptions, TaskReport, compute_report
from tlkeras.evaluation.run_data import Reproducibility
from tlkeras.plotting import html_page
from tlkeras.plotting.charts import plot_head_history, plot_history
from tlkeras.results import Result
from tlkeras.runs.directory import RUNS, Run, open_run

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_LABELS = 60
_HEADLINE_METRICS = ("accuracy", "exact_match", "balanced_accuracy", "macro_f1", "roc_auc")
_SLICE_METRICS = ("accuracy", "exact_match", "macro_f1", "roc_auc", "r2", "mae")
_PARTS = (
    ("metrics", "Metrics", ""),
    ("gain", "Was it worth it?", "gain_over_probe"),
    ("learning", "Would more images help?", "learning_curve"),
    ("calibration", "Calibration", "calibration"),
    ("mistakes", "Mistakes", ""),
    ("robustness", "Robustness", "robustness"),
)
"""Anchor and title of each part on a task, and the attribute of its report that has to be there, if any."""
_CHARTS: dict[str, tuple[str, Callable[[Any, Path], None], str]] = {
    "reliability": ("Accuracy against confidence", charts.plot_reliability, "calibration"),
    "risk_coverage": (
        "Accuracy against the fraction of images predicted automatically",
        charts.plot_risk_coverage,
        "risk_coverage",
    ),
    "robustness": ("Accuracy against the strength of corruptions", charts.plot_robustness, "robustness"),
    "learning": ("Accuracy against the number of training images", charts.plot_learning_curve, "learning_curve"),
    "points": ("Predicted against true numbers", charts.plot_regression, "points"),
}
"""Title and function of each chart on a task, and the attribute of its report that is drawn."""


@dataclass(frozen=True)
class ReportResult(Result):
    """A page that was written."""

    path: str
    runs: list[str]  # names
    notes: list[str]  # what could not be shown, and why
    bytes: int


@dataclass(frozen=True)
class _TaskSection:
    """The part of a page on one task."""

    anchor: str
    prefix: str
    evaluation: TaskEvaluation
    report: TaskReport
    charts: Mapping[str, Markup]
    overlays: Mapping[str, str]  # attribution maps over their images, by name of the image

    @property
    def noun(self) -> str:
        return "label" if self.evaluation.kind == "multilabel" else "class"

    @property
    def headline(self) -> list[str]:
        """Names of the metrics shown as tiles."""
        return [name for name in _HEADLINE_METRICS if name in self.evaluation.metrics]

    @property
    def slice_metrics(self) -> list[str]:
        return [name for name in _SLICE_METRICS if name in self.evaluation.metrics]

    @property
    def labels(self) -> list[tuple[str, SubsetMetrics]]:
        """All classes, or those of the lowest F1 of many."""
        labels = list(self.evaluation.labels.items())
        if len(labels) > _MOST_LABELS:
            f1 = {name: of_label.metrics["f1"].value for name, of_label in labels}
            labels.sort(key=lambda pair: 2.0 if math.isnan(f1[pair[0]]) else f1[pair[0]])
        return labels[:_MOST_LABELS]


@dataclass(frozen=True)
class _RunSection:
    """The part of a page on one run."""

    anchor: str
    report: Report
    tasks: Sequence[_TaskSection]
    history: Markup | None  # the chart of the training
    images: Mapping[str, str]  # thumbnails by name


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
    html_page.check_page(target)
    chosen = ReportOptions(**(options or {}))
    compared = compare(opened) if len(opened) > 1 else None
    reports = [compute_report(run, chosen) for run in opened]
    html_page.write_html(target, render_report(reports, compared))
    notes = [f"{one.run}: {note}" for one in reports for note in one.notes]
    return ReportResult(str(target), [run.name for run in opened], notes, target.stat().st_size)


def render_report(reports: Sequence[Report], compared: ComparisonResult | None = None) -> str:
    """The page as text; all values in it are escaped."""
    sections = [_make_section(report, f"r{number}") for number, report in enumerate(reports)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "number": summaries.format_number,
        "interval": summaries.format_interval,
        "signed_interval": partial(summaries.format_interval, write=summaries.format_signed),
        "explain_missing": explain_missing,
        "percent": summaries.format_percent,
        "signed": summaries.format_signed,
        "count": lambda value: summaries.UNDEFINED if value is None else f"{value:,}",
        "amount": lambda value: f"{value:,.0f}" if value == round(value) else f"{value:,.2f}",
        "metric": lambda name: METRIC_NAMES.get(name, name),
        "verdict": {True: "better", False: "worse", None: "no clear difference"}.get,
        "verdict_class": {True: "good", False: "bad", None: "faint"}.get,
        "prose": _mark_code,
    }
    return environment.get_template("report.html").render(
        summaries=summaries,
        mark=Markup(html_page.MARK),
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        title=f"Report on {', '.join(report.run for report in reports)}",
        version=version("tlkeras"),
        compared=compared,
        sections=sections,
        contents=_list_contents(sections, compared),
    )


def _mark_code(text: str) -> Markup:
    """A sentence, escaped, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _list_contents(sections: Sequence[_RunSection], compared: ComparisonResult | None) -> list[tuple[str, str]]:
    """Anchor and title of each entry of the table of contents."""
    contents = [("compared", "Comparison")] if compared else []
    if len(sections) > 1:
        return contents + [(section.anchor, section.report.run) for section in sections]
    (section,) = sections
    for task in section.tasks:
        for part, title, needed in _PARTS:
            if not needed or getattr(task.report, needed, None) is not None:
                contents.append((f"{task.anchor}-{part}", f"{task.prefix}{title}"))
    if section.report.other_data:
        contents.append((f"{section.anchor}-other", "Other images"))
    return [*contents, (f"{section.anchor}-reproducibility", "Reproducibility")]


def _make_section(report: Report, anchor: str) -> _RunSection:
    tasks = []
    for number, (name, of_task) in enumerate(report.tasks.items()):
        of_anchor = f"{anchor}-t{number}"
        overlays = {
            key: charts.embed_image(charts.overlay(report.images[key], heat))
            for (task, key), heat in report.maps.items()
            if task == name
        }
        drawn = _draw_charts(of_task, of_anchor)
        prefix = f"{name}: " if len(report.tasks) > 1 else ""
        tasks.append(_TaskSection(of_anchor, prefix, report.evaluation.tasks[name], of_task, drawn, overlays))
    images = {key: charts.embed_image(pixels) for key, pixels in report.images.items()}
    return _RunSection(anchor, report, tasks, _draw_history(report.reproducibility, anchor), images)


def _draw_charts(report: TaskReport, anchor: str) -> dict[str, Markup]:
    return {
        name: charts.embed_chart(f"{anchor}-{name}", title, plot, content)
        for name, (title, plot, drawn) in _CHARTS.items()
        if (content := getattr(report, drawn, None)) is not None
    }


def _draw_history(made: Reproducibility, anchor: str) -> Markup | None:
    if not made.history:
        return None
    if "stage" not in made.history[0]:
        return charts.embed_chart(f"{anchor}-history", "Losses of the fit", plot_head_history, made.history)
    best = (made.finetuning or {}).get("best_epoch")
    rows = [{**row, "best": row["epoch"] == best} for row in made.history]
    return charts.embed_chart(f"{anchor}-history", "Losses, metrics and learning rates by epoch", plot_history, rows)
