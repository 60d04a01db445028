"""The HTML page of a report."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tlkeras.evaluation.comparison import ComparisonResult
from tlkeras.evaluation.evaluate import SubsetMetrics, TaskEvaluation
from tlkeras.evaluation.metric_names import METRIC_NAMES, explain_missing
from tlkeras.evaluation.report import charts, summaries
from tlkeras.evaluation.report.compute import ClassificationReport, Report, TaskReport
from tlkeras.evaluation.report.images import embed_chart, embed_image, overlay
from tlkeras.evaluation.report.reproducibility import Reproducibility
from tlkeras.plotting import html_page
from tlkeras.plotting.charts import plot_history

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_LABELS = 60
_HEADLINE_METRICS = ("accuracy", "exact_match", "balanced_accuracy", "macro_f1", "roc_auc")
_SLICE_METRICS = ("accuracy", "exact_match", "macro_f1", "roc_auc")


@dataclass(frozen=True)
class _TaskSection:
    """The part of a page on one task; `overlays` are attribution maps over their images, by name of the image."""

    anchor: str
    prefix: str
    evaluation: TaskEvaluation
    report: TaskReport
    charts: Mapping[str, Markup]
    overlays: Mapping[str, str]

    @property
    def noun(self) -> str:
        return "label" if self.evaluation.kind == "multilabel" else "class"

    @property
    def headline(self) -> list[str]:
        """Names of the metrics shown as tiles."""
        return [name for name in _HEADLINE_METRICS if name in self.evaluation.metrics]

    @property
    def slice_metrics(self) -> list[str]:
        if self.evaluation.kind == "regression":
            return ["r2", "mae"]
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
    """The part of a page on one run; `images` are thumbnails by name, `history` is the chart of the training."""

    anchor: str
    report: Report
    tasks: Sequence[_TaskSection]
    history: Markup | None
    images: Mapping[str, str]


def write_report(path: str | os.PathLike[str], reports: Sequence[Report], compared: ComparisonResult | None) -> Path:
    """Write the page of one or several reports; an older page is replaced, any other file stays.

    Args:
        path: The HTML file.
        reports: The content by run.
        compared: The runs against each other, if there are several.

    Raises:
        ResourceError: The file is not a page of tlkeras, or cannot be written.
    """
    return html_page.write_html(path, render_report(reports, compared))


def render_report(reports: Sequence[Report], compared: ComparisonResult | None = None) -> str:
    """The page as text."""
    sections = [_make_section(report, f"r{number}") for number, report in enumerate(reports)]
    return (
        _load_templates()
        .get_template("report.html")
        .render(
            mark=Markup(html_page.MARK),
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            title=f"Report on {', '.join(report.run for report in reports)}",
            version=version("tlkeras"),
            compared=compared,
            sections=sections,
            contents=_list_contents(sections, compared),
        )
    )


def _load_templates() -> Environment:
    """The templates; all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "number": summaries.format_number,
        "interval": summaries.format_interval,
        "signed_interval": summaries.format_signed_interval,
        "explain_missing": explain_missing,
        "percent": summaries.format_percent,
        "signed": summaries.format_signed,
        "count": summaries.format_count,
        "amount": summaries.format_amount,
        "metric": lambda name: METRIC_NAMES.get(name, name),
        "verdict": summaries.format_verdict,
        "verdict_class": lambda better: "faint" if better is None else "good" if better else "bad",
        "prose": _mark_code,
    }
    environment.globals |= {"summaries": summaries}
    return environment


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
        report = task.report
        parts = [("metrics", "Metrics", True), ("gain", "Was it worth it?", report.gain_over_probe is not None)]
        if isinstance(report, ClassificationReport):
            parts += [
                ("learning", "Would more images help?", report.learning_curve is not None),
                ("calibration", "Calibration", True),
            ]
        parts.append(("mistakes", "Mistakes", True))
        if isinstance(report, ClassificationReport):
            parts.append(("robustness", "Robustness", report.robustness is not None))
        contents += [(f"{task.anchor}-{part}", f"{task.prefix}{title}") for part, title, shown in parts if shown]
    if section.report.other_data:
        contents.append((f"{section.anchor}-other", "Other images"))
    return [*contents, (f"{section.anchor}-reproducibility", "Reproducibility")]


def _make_section(report: Report, anchor: str) -> _RunSection:
    several = len(report.tasks) > 1
    tasks = []
    for number, (name, of_task) in enumerate(report.tasks.items()):
        of_anchor = f"{anchor}-t{number}"
        overlays = {
            key: embed_image(overlay(report.images[key], heat))
            for (task, key), heat in report.maps.items()
            if task == name
        }
        drawn = _draw_charts(of_task, of_anchor)
        prefix = f"{name}: " if several else ""
        tasks.append(_TaskSection(of_anchor, prefix, report.evaluation.tasks[name], of_task, drawn, overlays))
    images = {key: embed_image(pixels) for key, pixels in report.images.items()}
    return _RunSection(anchor, report, tasks, _draw_history(report.reproducibility, anchor), images)


def _draw_charts(report: TaskReport, anchor: str) -> dict[str, Markup]:
    """The charts of a task by name."""
    wanted: dict[str, tuple[str, Callable[[Path], None]]] = {}
    if isinstance(report, ClassificationReport):
        wanted["reliability"] = "Accuracy against confidence", partial(charts.plot_reliability, report.calibration)
        wanted["risk_coverage"] = (
            "Accuracy against the fraction of images predicted automatically",
            partial(charts.plot_risk_coverage, report.risk_coverage),
        )
        if report.robustness:
            draw = partial(charts.plot_robustness, report.robustness)
            wanted["robustness"] = "Accuracy against the strength of corruptions", draw
        if report.learning_curve:
            draw = partial(charts.plot_learning_curve, report.learning_curve)
            wanted["learning"] = "Accuracy against the number of training images", draw
    else:
        wanted["points"] = "Predicted against true numbers", partial(charts.plot_regression, report.points)
    return {name: embed_chart(f"{anchor}-{name}", title, draw) for name, (title, draw) in wanted.items()}


def _draw_history(made: Reproducibility, anchor: str) -> Markup | None:
    history = made.history
    if not history:
        return None
    if "stage" not in history[0]:
        return embed_chart(f"{anchor}-history", "Losses of the fit", partial(charts.plot_head_history, history))
    best = (made.finetuning or {}).get("best_epoch")
    rows = [{**row, "best": row["epoch"] == best} for row in history]
    title = "Losses, metrics and learning rates by epoch"
    return embed_chart(f"{anchor}-history", title, partial(plot_history, rows))
