"""The charts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkeras.plotting.charts import COLOURS, FAINT, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (5.2, 3.6)


def draw_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw how often answers are right against how sure the model was, as it is and after each scaling."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1.2, label="what it should be")
        _draw_bins(axis, calibration["reliability"], COLOURS[0], "as it is")
        for colour, (method, of_method) in zip(COLOURS[1:], calibration["scalings"].items(), strict=False):
            _draw_bins(axis, of_method["reliability"], colour, f"{method} scaling")
        confidences = calibration["reliability"]["confidence"]
        least = min([*confidences, *calibration["reliability"]["accuracy"], 1.0])
        axis.set_xlim(max(0, least - 0.05), 1.01)
        axis.set_ylim(max(0, least - 0.05), 1.03)
        _finish(axis, "confidence", "how often it is right")


def draw_numbers(points: Mapping[str, Any], path: Path) -> None:
    """Draw what was said of each image against its number."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        ends = [min(*points["truth"], *points["predicted"]), max(*points["truth"], *points["predicted"])]
        axis.plot(ends, ends, color=FAINT, linestyle=":", linewidth=1.2, label="what it should be")
        axis.plot(points["truth"], points["predicted"], ".", color=COLOURS[0], alpha=0.5, markersize=5)
        _finish(axis, "number", "prediction")


def plot_risk_coverage(trade: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy of what is answered against the share of images that is answered."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        axis.plot(trade["coverage"], trade["accuracy"], color=COLOURS[0], linewidth=1.8)
        if trade.get("chosen_accuracy") is not None:
            point = trade["chosen_coverage"], trade["chosen_accuracy"]
            axis.plot(*[[value] for value in point], "o", color=COLOURS[1])
            label = f"asks below {trade['chosen']:.2f}"
            axis.annotate(label, point, xytext=(-6, -14), textcoords="offset points", ha="right", color=COLOURS[1])
        axis.set_xlim(0, 1.02)
        _finish(axis, "share of images answered without asking", "accuracy of these")


def draw_robustness(robustness: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against the strength of each corruption, from the clean images on."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        styles = zip(COLOURS, "osv^D", strict=False)
        for (colour, marker), (name, figures) in zip(styles, robustness["corruptions"].items(), strict=False):
            values = [robustness["clean"], *figures]
            axis.plot(range(len(values)), values, color=colour, marker=marker, markersize=4, label=name)
        axis.set_xticks(range(6), ["clean", "1", "2", "3", "4", "5"])
        axis.set_ylim(bottom=min(0.5, axis.get_ylim()[0]), top=1.02)
        _finish(axis, "strength", "accuracy")


def draw_learning(learning: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against the number of training images, with the spread over draws."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        sizes = learning["images"]
        axis.fill_between(sizes, learning["low"], learning["high"], color=COLOURS[0], alpha=0.2, linewidth=0)
        axis.plot(sizes, learning["accuracy"], color=COLOURS[0], marker="o", markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        _finish(axis, "training images", learning["metric"].replace("_", " "))


def draw_fit(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what the fit of a head recorded, its first column against the others."""
    across, *others = history[0]
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        for colour, name in zip(COLOURS, others, strict=False):
            pairs = [(row[across], row[name]) for row in history if not isinstance(row[name], str)]
            axis.plot(*np.transpose(pairs), color=colour, marker="o", markersize=3, label=name.replace("_", " "))
        if across == "C":
            axis.set_xscale("log")
        _finish(axis, "C, inverse strength of regularisation" if across == "C" else across, "loss")


def _draw_bins(axis: Axes, reliability: Mapping[str, Sequence[float]], colour: str, label: str) -> None:
    axis.plot(
        reliability["confidence"],
        reliability["accuracy"],
        color=colour,
        marker="o",
        markersize=3.5,
        linewidth=1.2,
        label=label,
    )


def _finish(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", fontsize=8)
