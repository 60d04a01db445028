"""The page of a report: what was computed, drawn."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tlkeras.evaluation.metric_names import baseline_names
from tlkeras.evaluation.report import charts, summaries
from tlkeras.evaluation.report.compute import Report
from tlkeras.evaluation.report.images import embed_chart, embed_image, overlay
from tlkeras.plotting import html_page
from tlkeras.plotting.charts import plot_history

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_LABELS = 60
_NUMBERS_UP_TO = 30  # classes; of more, the cells of the confusion matrix are too small for numbers
_STRONG = 0.5  # share of a class from which on a cell's colour calls for other ink
_KEY = ("accuracy", "exact_match", "balanced_accuracy", "macro_f1", "roc_auc")
_SLICE_METRICS = ("accuracy", "exact_match", "macro_f1", "roc_auc")


def write_report(path: str | os.PathLike[str], reports: Sequence[Report], compared: Mapping[str, Any] | None) -> Path:
    """Write the page of one or several reports; a page that was made before is replaced, any other file stays.

    Args:
        path: The HTML file.
        reports: What was computed of each run.
        compared: What `comparison.compare` returns of them, if there are several.

    Raises:
        ResourceError: The file is another one, or cannot be written.
    """
    return html_page.write_html(path, render_report(reports, compared))


def render_report(reports: Sequence[Report], compared: Mapping[str, Any] | None = None) -> str:
    """Return the page as text."""
    shown = [_prepare(report, f"r{number}", len(reports) > 1) for number, report in enumerate(reports)]
    return (
        _open_templates()
        .get_template("report.html")
        .render(
            mark=Markup(html_page.MARK),
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            title=f"Report on {', '.join(report.run for report in reports)}",
            version=version("tlkeras"),
            compared=compared,
            reports=shown,
            contents=_list_contents(shown, compared),
            images={
                report.run: {key: embed_image(pixels) for key, pixels in report.images.items()} for report in reports
            },
        )
    )


def _open_templates() -> Environment:
    """Return the templates; whatever they are given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "number": summaries.write_number,
        "percent": summaries.write_percent,
        "signed": summaries.write_signed,
        "count": summaries.write_count,
        "amount": summaries.write_amount,
        "metric": lambda name: summaries.METRIC_NAMES.get(name, name),
        "verdict": summaries.format_verdict,
        "prose": _mark_code,
        "verdict_class": _choose_class,
    }
    return environment


def _mark_code(text: str) -> Markup:
    """Return a sentence, escaped, in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _choose_class(better: bool | None) -> str:
    return "faint" if better is None else "good" if better else "bad"


def _list_contents(shown: Sequence[Mapping[str, Any]], compared: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    contents = [("compared", "Runs against each other")] if compared else []
    for report in shown:
        if len(shown) > 1:
            contents.append((report["anchor"], report["run"]))
            continue
        for task in report["tasks"]:
            for part, name, there in (
                ("figures", "Figures", True),
                ("worth", "Was it worth it?", task["worth"]),
                ("learning", "Would more images help?", task["learning"]),
                ("calibration", "Probabilities", task["figures"]["kind"] != "regression"),
                ("mistakes", "Mistakes", True),
                ("robustness", "When images get worse", task["robustness"]),
            ):
                if there:
                    contents.append((f"{task['anchor']}-{part}", f"{task['prefix']}{name}"))
        if report["elsewhere"]:
            contents.append((f"{report['anchor']}-elsewhere", "On other images"))
        contents.append((f"{report['anchor']}-made", "How it was made"))
    return contents


def _prepare(report: Report, anchor: str, several_runs: bool) -> dict[str, Any]:
    """Return what the templates need of one report."""
    several = len(report.tasks) > 1
    tasks = []
    for number, (name, computed) in enumerate(report.tasks.items()):
        figures = report.figures["tasks"][name] if several else report.figures
        prepared = _prepare_task(report, figures, computed, f"{anchor}-t{number}")
        tasks.append({**prepared, "anchor": f"{anchor}-t{number}", "prefix": f"{name}: " if several else ""})
    return {
        "run": report.run,
        "anchor": anchor,
        "notes": report.notes,
        "tasks": tasks,
        "elsewhere": [_prepare_elsewhere(measured) for measured in report.elsewhere],
        "made": report.made,
        "history": _draw_history(report.made, anchor),
    }


def _prepare_elsewhere(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the templates need of figures on other images: a table per task."""
    tasks = measured.get("tasks") or {"": measured}
    return {**measured, "images": measured["examples"]["test"], "tables": list(tasks.items())}


def _prepare_task(
    report: Report, figures: Mapping[str, Any], computed: Mapping[str, Any], anchor: str
) -> dict[str, Any]:
    if figures["kind"] == "regression":
        return _prepare_number(figures, computed, anchor)
    labels = list(figures["labels"].items())
    if len(labels) > _MOST_LABELS:
        labels.sort(key=lambda pair: pair[1]["f1"]["value"] if pair[1]["f1"]["value"] is not None else 2.0)
    trade, sets, label_sets, worth = (computed.get(name) for name in ("trade", "sets", "label_sets", "worth"))
    learning, robustness, attribution = (computed.get(name) for name in ("learning", "robustness", "attribution"))
    return {
        "figures": figures,
        "beside": baseline_names(figures),
        "what": "label" if figures["kind"] == "multilabel" else "class",
        "summary": summaries.summarize_run(figures),
        "key": [
            (summaries.METRIC_NAMES[name], figures["metrics"][name]) for name in _KEY if name in figures["metrics"]
        ],
        "labels": labels[:_MOST_LABELS],
        "labels_left_out": max(len(labels) - _MOST_LABELS, 0),
        "slice_metrics": [name for name in _SLICE_METRICS if name in figures["metrics"]],
        "worth": worth,
        "worth_sentence": summaries.summarize_gain_over_probe(worth) if worth else "",
        "learning": learning,
        "learning_sentence": summaries.summarize_learning_curve(learning) if learning else "",
        "calibration_sentence": summaries.summarize_calibration(computed["calibration"], computed["unseen"]),
        "scalings": [("as they are", computed["calibration"]), *_name_scalings(computed["calibration"])],
        "trade": trade,
        "trade_sentence": summaries.summarize_selective_prediction(trade) if trade else "",
        "sets_sentence": summaries.summarize_prediction_sets(sets) if sets else "",
        "label_sets": label_sets,
        "label_sets_sentence": summaries.summarize_label_sets(label_sets) if label_sets else "",
        "label_mistakes": computed.get("label_mistakes", []),
        "confusions": _prepare_confusions(computed.get("confusions")),
        "confused": computed.get("confused", []),
        "losses": _prepare_losses(report, figures, computed),
        "attribution_sentence": summaries.summarize_attribution(attribution),
        "suspects": computed["suspects"],
        "training_suspects": computed["training_suspects"],
        "robustness": robustness,
        "robustness_sentence": summaries.summarize_robustness(robustness) if robustness else "",
        "charts": _draw_charts(computed, anchor),
    }


def _prepare_number(figures: Mapping[str, Any], computed: Mapping[str, Any], anchor: str) -> dict[str, Any]:
    """Return what the template of a number needs."""
    worth = computed["worth"]
    title = "What was said of each held-out image against its number"
    return {
        "figures": figures,
        "beside": baseline_names(figures),
        "summary": summaries.summarize_run(figures),
        "slice_metrics": ["r2", "mae"],
        "worth": worth,
        "worth_sentence": summaries.summarize_gain_over_probe(worth) if worth else "",
        "learning": None,
        "robustness": None,
        "errors": computed["errors"],
        "chart": embed_chart(f"{anchor}-numbers", title, partial(charts.draw_numbers, computed["points"])),
    }


def _name_scalings(calibration: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{method} scaling", found) for method, found in calibration["scalings"].items()]


def _draw_charts(computed: Mapping[str, Any], anchor: str) -> dict[str, Markup]:
    wanted = {
        "reliability": ("How often answers are right against confidence", charts.draw_reliability, "calibration"),
        "trade": ("Accuracy against the share of images answered", charts.plot_risk_coverage, "trade"),
        "robustness": ("Accuracy against the strength of corruptions", charts.draw_robustness, "robustness"),
        "learning": ("Accuracy against the number of training images", charts.draw_learning, "learning"),
    }
    return {
        name: embed_chart(f"{anchor}-{name}", title, partial(draw, computed[key]))
        for name, (title, draw, key) in wanted.items()
        if computed.get(key)
    }


def _draw_history(made: Mapping[str, Any], anchor: str) -> Markup | None:
    history = made["history"]
    if not history:
        return None
    if "stage" in history[0]:
        best = (made["finetuning"] or {}).get("best_epoch")
        rows = [{**row, "best": row["epoch"] == best} for row in history]
        return embed_chart(
            f"{anchor}-history", "Losses, metrics and rates by epoch", lambda path: plot_history(rows, path)
        )
    return embed_chart(f"{anchor}-history", "Losses of the fit", lambda path: charts.draw_fit(history, path))


def _prepare_confusions(confusions: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if confusions is None:
        return None
    names, counts = confusions["classes"], confusions["counts"]
    many = len(names) > _NUMBERS_UP_TO
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = sum(row) or 1.0
        rows.append(
            {"name": name, "cells": [_prepare_cell(names, i, j, row[j], total, many) for j in range(len(names))]}
        )
    return {
        "classes": names,
        "rows": rows,
        "left_out": confusions["left_out"],
        "many": many,
        "ordered": len(names) > 20,
        "cell": 44 if len(names) <= 12 else 30 if not many else 8,
    }


def _prepare_cell(
    names: Sequence[str], row: int, column: int, count: float, total: float, many: bool
) -> dict[str, Any] | None:
    if not count:
        return None
    share = count / total
    amount = summaries.write_amount(count)
    return {
        "kind": ("r" if row == column else "w") + (" s" if share > _STRONG else ""),
        "alpha": f"{0.12 + 0.88 * share:.2f}",
        "text": "" if many else amount,
        "title": f"{names[row]} answered {names[column]}: {amount}, {summaries.write_percent(share)}",
    }


def _prepare_losses(report: Report, figures: Mapping[str, Any], computed: Mapping[str, Any]) -> list[dict[str, Any]]:
    task = figures["task"]
    prepared = []
    for loss in computed["losses"]:
        heat = report.maps.get((task, loss["key"]))
        drawn = None if heat is None else embed_image(overlay(report.images[loss["key"]], heat))
        looked_at = figures["classes"][loss["class"]]
        prepared.append({"nearest": [], **loss, "overlay": drawn, "looked_at": looked_at})
    return prepared
