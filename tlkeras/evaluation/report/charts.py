"""The charts of a report, each written to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkeras.evaluation.calibration import CalibrationResult
from tlkeras.evaluation.learning_curve import LearningCurveResult
from tlkeras.evaluation.report.compute import RegressionPoints
from tlkeras.evaluation.robustness import RobustnessResult
from tlkeras.evaluation.selective import SelectiveResult
from tlkeras.plotting.charts import COLOURS, FAINT, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (5.2, 3.6)


def plot_reliability(calibration: CalibrationResult, path: Path) -> None:
    """Accuracy against confidence, without and with each scaling."""
    with _chart(path, "confidence", "accuracy") as axis:
        axis.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1.2, label="perfectly calibrated")
        curves = {"as it is": calibration.reliability}
        curves |= {f"{method} scaling": scaled.reliability for method, scaled in calibration.scalings.items()}
        for colour, (label, bins) in zip(COLOURS, curves.items(), strict=False):
            axis.plot(bins.confidence, bins.accuracy, "o-", color=colour, markersize=3.5, linewidth=1.2, label=label)
        least = min([*calibration.reliability.confidence, *calibration.reliability.accuracy, 1.0])
        axis.set_xlim(max(0, least - 0.05), 1.01)
        axis.set_ylim(max(0, least - 0.05), 1.03)


def plot_regression(points: RegressionPoints, path: Path) -> None:
    """Predicted against true numbers."""
    with _chart(path, "true number", "predicted number") as axis:
        ends = [min(*points.truth, *points.predicted), max(*points.truth, *points.predicted)]
        axis.plot(ends, ends, color=FAINT, linestyle=":", linewidth=1.2, label="perfect prediction")
        axis.plot(points.truth, points.predicted, ".", color=COLOURS[0], alpha=0.5, markersize=5)


def plot_risk_coverage(curve: SelectiveResult, path: Path) -> None:
    """Accuracy of the accepted predictions against their fraction."""
    with _chart(path, "fraction of images predicted automatically", "accuracy on these") as axis:
        axis.plot(curve.coverage, curve.accuracy, color=COLOURS[0], linewidth=1.8)
        if curve.chosen_coverage is not None and curve.chosen_accuracy is not None:
            point = curve.chosen_coverage, curve.chosen_accuracy
            axis.plot([point[0]], [point[1]], "o", color=COLOURS[1])
            label = f"threshold {curve.chosen:.2f}"
            axis.annotate(label, point, xytext=(-6, -14), textcoords="offset points", ha="right", color=COLOURS[1])
        axis.set_xlim(0, 1.02)


def plot_robustness(robustness: RobustnessResult, path: Path) -> None:
    """Accuracy against the strength of each corruption."""
    with _chart(path, "strength", "accuracy") as axis:
        styles = zip(COLOURS, "osv^D", strict=False)
        for (colour, marker), (name, accuracies) in zip(styles, robustness.corruptions.items(), strict=False):
            values = [robustness.clean, *accuracies]
            axis.plot(range(len(values)), values, color=colour, marker=marker, markersize=4, label=name)
        axis.set_xticks(range(6), ["clean", "1", "2", "3", "4", "5"])
        axis.set_ylim(bottom=min(0.5, axis.get_ylim()[0]), top=1.02)


def plot_learning_curve(curve: LearningCurveResult, path: Path) -> None:
    """Accuracy against the number of training images, with the range of the draws."""
    with _chart(path, "training images", curve.metric.replace("_", " ")) as axis:
        axis.fill_between(curve.images, curve.low, curve.high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axis.plot(curve.images, curve.accuracy, color=COLOURS[0], marker="o", markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(curve.images, [f"{size:,}" for size in curve.images])
        axis.minorticks_off()


def plot_head_history(history: Sequence[Mapping[str, float | int | str]], path: Path) -> None:
    """The other columns of a head's history against its first one."""
    across, *others = history[0]
    with _chart(path, "C, inverse strength of regularization" if across == "C" else across, "loss") as axis:
        for colour, name in zip(COLOURS, others, strict=False):
            pairs = [(row[across], row[name]) for row in history if not isinstance(row[name], str)]
            axis.plot(*np.transpose(pairs), color=colour, marker="o", markersize=3, label=name.replace("_", " "))
        if across == "C":
            axis.set_xscale("log")


@contextmanager
def _chart(path: Path, across: str, up: str) -> Iterator[Axes]:
    """The axes of a chart with labels, a grid and, where curves have names, a legend."""
    with open_figure(path, _SIZE) as figure:
        axis = figure.subplots()
        yield axis
        axis.set(xlabel=across, ylabel=up)
        axis.grid(color="#DDDDDD", linewidth=0.6)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", fontsize=8)
