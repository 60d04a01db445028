"""Charts and images of a report, as its page embeds them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from tlkeras.evaluation.calibration import CalibrationResult
from tlkeras.evaluation.learning_curve import LearningCurveResult
from tlkeras.evaluation.other_data import RobustnessResult
from tlkeras.evaluation.report.compute import RegressionPoints
from tlkeras.evaluation.selective import SelectiveResult
from tlkeras.plotting.charts import COLOURS, FAINT, open_chart
from tlkeras.plotting.notebook import embed_thumbnail

_THUMBNAIL = 176  # pixels, twice what is shown: sharp on fine screens
_QUALITY = 78
_BLEND = 0.55

# CSS variables for the colours of `tlkeras.plotting.charts`, so that charts follow the page's light or dark scheme.
_COLOURS = {
    "#333333": "var(--ink)",
    "#777777": "var(--faint)",
    "#bbbbbb": "var(--line)",
    "#dddddd": "var(--line)",
    "#e5e5e5": "var(--line)",
    "#f1f4f8": "var(--card)",
    "#ffffff": "var(--page)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--red)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)",
    "#e69f00": "var(--orange)",
    "#56b4e9": "var(--sky)",
}


def embed_image(pixels: np.ndarray) -> str:
    """A data URL of an image, uint8 RGB [h, w, 3], reduced to a thumbnail."""
    return embed_thumbnail(pixels, _THUMBNAIL, _QUALITY)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A grey image with a map of 0 to 1, [h, w], laid over it in colour, uint8 [h, w, 3]."""
    from matplotlib import colormaps

    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    share = np.clip(heat, 0, 1)[..., None]
    colours = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255
    return np.rint(grey * (1 - _BLEND * share) + colours * _BLEND * share).astype(np.uint8)


def embed_chart(name: str, title: str, plot: Callable[[Any, Path], None], content: Any) -> Markup:
    """A chart of some content as SVG in the page's colours, with a unique name, and a title for screen readers."""
    with tempfile.TemporaryDirectory(prefix="tlkeras-") as folder:
        path = Path(folder) / f"{name}.svg"
        plot(content, path)
        text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # these are the same in every chart, and nothing refers to them
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"#[0-9a-f]{6}", lambda found: _COLOURS.get(found[0], found[0]), text)
    for side in ("width", "height"):
        text = re.sub(rf'<svg ([^>]*?){side}="[^"]*pt" ', r"<svg \1", text, count=1)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" class="chart" ', 1))


def plot_reliability(calibration: CalibrationResult, path: Path) -> None:
    """Accuracy against confidence, without and with each scaling."""
    with open_chart(path, "confidence", "accuracy") as axis:
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
    with open_chart(path, "true number", "predicted number") as axis:
        ends = [min(*points.truth, *points.predicted), max(*points.truth, *points.predicted)]
        axis.plot(ends, ends, color=FAINT, linestyle=":", linewidth=1.2, label="perfect prediction")
        axis.plot(points.truth, points.predicted, ".", color=COLOURS[0], alpha=0.5, markersize=5)


def plot_risk_coverage(curve: SelectiveResult, path: Path) -> None:
    """Accuracy of the accepted predictions against their fraction."""
    with open_chart(path, "fraction of images predicted automatically", "accuracy on these") as axis:
        axis.plot(curve.coverage, curve.accuracy, color=COLOURS[0], linewidth=1.8)
        if curve.chosen_coverage is not None and curve.chosen_accuracy is not None:
            point = curve.chosen_coverage, curve.chosen_accuracy
            axis.plot([point[0]], [point[1]], "o", color=COLOURS[1])
            label = f"threshold {curve.chosen:.2f}"
            axis.annotate(label, point, xytext=(-6, -14), textcoords="offset points", ha="right", color=COLOURS[1])
        axis.set_xlim(0, 1.02)


def plot_robustness(robustness: RobustnessResult, path: Path) -> None:
    """Accuracy against the strength of each corruption."""
    with open_chart(path, "strength", "accuracy") as axis:
        styles = zip(COLOURS, "osv^D", strict=False)
        for (colour, marker), (name, accuracies) in zip(styles, robustness.corruptions.items(), strict=False):
            values = [robustness.clean, *accuracies]
            axis.plot(range(len(values)), values, color=colour, marker=marker, markersize=4, label=name)
        axis.set_xticks(range(6), ["clean", "1", "2", "3", "4", "5"])
        axis.set_ylim(bottom=min(0.5, axis.get_ylim()[0]), top=1.02)


def plot_learning_curve(curve: LearningCurveResult, path: Path) -> None:
    """Accuracy against the number of training images, with the range of the draws."""
    with open_chart(path, "training images", curve.metric.replace("_", " ")) as axis:
        axis.fill_between(curve.images, curve.low, curve.high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axis.plot(curve.images, curve.accuracy, color=COLOURS[0], marker="o", markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(curve.images, [f"{size:,}" for size in curve.images])
        axis.minorticks_off()
