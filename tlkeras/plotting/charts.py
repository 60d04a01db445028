"""Charts as PNG or SVG files: a run's history, the learning-rate finder, contact sheets, features, a Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito (2008), which differ for colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DOTS = (*COLOURS, "#999933", "#882255", "#44AA99", "#332288")
INK, FAINT = "#333333", "#777777"
_BANDS = ("#F1F4F8", "#FFFFFF")
_DPI = 110
_CHART = (5.2, 3.6)  # inches
_MARKED_EPOCHS = 30  # up to so many, each epoch gets a dot
_LETTER = 0.075  # width of a letter, inches
_SHEET_PIXELS, _CELL_PIXELS = 4_000, 128
_LABEL_LETTERS = 24


def plot_history(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses, validation metrics and the learning rate over the epochs, with the stages as labelled bands.

    Rows have `epoch` (from 1), `stage` and `loss`; optional `val_loss`, `learning_rate`, `best` (true at the epoch to
    mark; of several, the last), and metrics: columns that begin with `val_`, drawn with the column of the same name
    without it. Values that are not finite leave a gap.
    """
    from matplotlib.ticker import MaxNLocator

    if not rows:
        raise ValueError("The history has no epochs.")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    metrics = [key for key in columns if key.startswith("val_") and key != "val_loss"]
    panels = [(3.0, "loss"), *([(3.0, "metrics")] if metrics else [])]
    panels += [(1.2, "learning rate")] if "learning_rate" in columns else []
    heights = [height for height, _ in panels]
    with open_figure(path, (9.0, 1.2 + 0.75 * sum(heights))) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        axes = {name: axis for (_, name), axis in zip(panels, grid, strict=True)}
        _draw_pair(axes["loss"], rows, "loss", COLOURS[0], COLOURS[1])
        for number, metric in enumerate(metrics):
            colour = COLOURS[(number + 2) % len(COLOURS)]
            _draw_pair(axes["metrics"], rows, metric.removeprefix("val_"), colour, colour)
        if rate := axes.get("learning rate"):
            _draw_series(rate, rows, "learning_rate", color=FAINT)
            rate.set_ylim(bottom=0)
            rate.yaxis.set_major_locator(MaxNLocator(3))
            rate.yaxis.set_major_formatter("{x:g}")
        for name, axis in axes.items():
            _finish_panel(axis, rows, name)
        _label_stages(grid[0], rows)
        grid[-1].set_xlabel("epoch")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.align_ylabels(grid)


def plot_head_history(history: Sequence[Mapping[str, float | int | str]], path: Path) -> None:
    """The other columns of a head's history against its first one."""
    across, *others = history[0]
    with open_chart(path, "C, inverse strength of regularization" if across == "C" else across, "loss") as axis:
        for colour, name in zip(COLOURS, others, strict=False):
            pairs = [(row[across], row[name]) for row in history if not isinstance(row[name], str)]
            axis.plot(*np.transpose(pairs), color=colour, marker="o", markersize=3, label=name.replace("_", " "))
        if across == "C":
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")


def plot_lr_finder(
    rates: Sequence[float],
    losses: Sequence[float],
    suggestion: float | None,
    path: Path,
    smoothed: Sequence[float] | None = None,
) -> None:
    """The loss against increasing learning rates, with the suggested rate, if any, marked.

    The axis ends above the first loss, where divergence would flatten the rest. The smoothed losses, one per rate, are
    drawn as the main line.
    """
    if not len(rates) or len(rates) != len(losses):
        raise ValueError(f"One loss per rate is needed. Received: {len(rates)} rates and {len(losses)} losses.")
    values = np.array([_as_number(loss) for loss in (losses if smoothed is None else smoothed)])
    with open_figure(path, (7.0, 4.0)) as figure:
        axis = figure.subplots()
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        if smoothed is not None:
            axis.plot(rates, losses, color=COLOURS[0], linewidth=0.8, alpha=0.35)
        axis.plot(rates, values, color=COLOURS[0], linewidth=1.8)
        finite = values[np.isfinite(values)]
        if finite.size and (fall := finite[0] - finite.min()) > 0:
            axis.set_ylim(finite.min() - 0.1 * fall, min(finite.max(), finite[0] + 0.5 * fall) + 0.1 * fall)
        if suggestion is not None:
            height = np.interp(math.log(suggestion), np.log(rates), values)
            axis.axvline(suggestion, color=COLOURS[1], linestyle="--", linewidth=1)
            axis.plot([suggestion], [height], "o", color=COLOURS[1])
            _annotate_above(axis, f"suggested: {suggestion:.2g}", suggestion, color=COLOURS[1], weight="bold")
        axis.grid(color="#E5E5E5", linewidth=0.6)
        axis.set_xlabel("learning rate")
        axis.set_ylabel("loss")


def plot_contact_sheet(
    images: Sequence[Sequence[np.ndarray]], row_labels: Sequence[str], column_labels: Sequence[str], path: Path
) -> None:
    """Images, uint8 RGB [h, w, 3], in a grid with labels of rows and columns; rows may end early, sizes may differ."""
    columns = max((len(row) for row in images), default=0)
    if not columns or len(row_labels) != len(images) or len(column_labels) != columns:
        received = f"{len(images)} rows with {len(row_labels)} labels and {columns} columns with {len(column_labels)}"
        raise ValueError(f"A contact sheet needs images, a label per row and a label per column. Received: {received}.")
    sheet, (height, width) = _join_images(images, columns)
    cell = min(_CELL_PIXELS, _SHEET_PIXELS // max(len(images), columns)) / max(height, width)
    size = np.array(sheet.shape[1::-1]) * cell / _DPI
    names, tops = [_shorten(text) for text in row_labels], [_shorten(text) for text in column_labels]
    upright = max(map(len, tops)) * _LETTER > width * cell / _DPI
    left = max(map(len, names)) * _LETTER + 0.15
    above = (max(map(len, tops)) * _LETTER if upright else 0.15) + 0.15
    total = size[0] + left + 0.1, size[1] + above + 0.1
    with open_figure(path, total, layout=None) as figure:
        axis = figure.add_axes((left / total[0], 0.1 / total[1], size[0] / total[0], size[1] / total[1]))
        axis.imshow(sheet, aspect="auto")
        axis.spines[:].set_visible(False)
        axis.xaxis.tick_top()
        axis.set_xticks(np.arange(columns) * (width + 2) + width / 2 - 0.5, tops, rotation=90 if upright else 0)
        axis.set_yticks(np.arange(len(names)) * (height + 2) + height / 2 - 0.5, names)
        axis.tick_params(length=0, labelcolor=INK)


def plot_features(
    points: Mapping[str, np.ndarray],
    colourings: Mapping[str, np.ndarray],
    separations: Mapping[str, float],
    chance: float,
    path: Path,
) -> None:
    """Images as points, a column per projection and a row per colouring; below, a bar per depth.

    Points are float (n, 2); a colouring a value of each image, str (n,), "" where it is unknown; separations fractions
    from 0 to 1, and `chance` the one that is reached without any features.
    """
    bars = 0.8 + 0.24 * len(separations)
    with open_figure(path, (4.2 * len(points) + 1.5, 3.6 * len(colourings) + bars)) as figure:
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6 * len(colourings), bars])[:, 0]
        panels = parts[0].subplots(len(colourings), len(points), squeeze=False)
        for row, (colouring, values) in zip(panels, colourings.items(), strict=True):
            for axis, (name, coordinates) in zip(row, points.items(), strict=True):
                _draw_points(axis, coordinates, values)
                axis.set_title(f"{name}, by {colouring}", fontsize=9)
            row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
        _draw_bars(parts[1].subplots(), separations, chance)


def plot_pareto_front(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The score of each backbone against its time per image, and their Pareto front.

    Points have `name`, `milliseconds`, `mean` and `spread` of the score, `front` and `chosen`.
    """
    with open_figure(path, (6.4, 4.0)) as figure:
        axis = figure.subplots()
        front = sorted((point for point in points if point["front"]), key=lambda point: point["milliseconds"])
        line = [[point[key] for point in front] for key in ("milliseconds", "mean")]
        axis.plot(*line, color=COLOURS[0], linewidth=1, drawstyle="steps-post")
        times = [point["milliseconds"] for point in points]
        middle = math.sqrt(min(times) * max(times))
        for point in points:
            colour = COLOURS[1] if point["chosen"] else COLOURS[0] if point["front"] else "#999999"
            position = point["milliseconds"], point["mean"]
            axis.errorbar(*position, yerr=point["spread"], fmt="o", color=colour, capsize=2, elinewidth=1)
            offset, side = (-6, "right") if position[0] > middle else (6, "left")
            style: dict[str, Any] = {"xytext": (offset, 4), "ha": side, "color": colour, "fontsize": 8}
            axis.annotate(point["name"], position, textcoords="offset points", **style)
        axis.margins(x=0.15, y=0.15)
        axis.set_xscale("log")
        axis.set_xticks(times, [f"{time:.3g}" for time in times], rotation=45)
        axis.minorticks_off()
        axis.set_xlabel("milliseconds for one image, on this machine")
        axis.set_ylabel("balanced accuracy over folds")


def _annotate_above(axis: Axes, text: str, x: float, **style: Any) -> None:
    options = {"xytext": (0, 4), "ha": "center", **style}
    axis.annotate(text, (x, 1.0), xycoords=("data", "axes fraction"), textcoords="offset points", **options)


def _draw_points(axis: Axes, points: np.ndarray, values: np.ndarray) -> None:
    """Draw the points of each value in a colour of its own; the rarest of many values, and unknown ones, in grey."""
    names, counts = np.unique(values, return_counts=True)
    common = [str(name) for name in names[np.argsort(-counts, kind="stable")] if name][: len(_DOTS)]
    rest = ~np.isin(values, common)
    size = float(np.clip(4000 / len(values), 4, 25))
    if rest.any():
        label = "others" if (values[rest] != "").any() else "unknown"
        axis.scatter(points[rest, 0], points[rest, 1], s=size, color="#BBBBBB", linewidth=0, label=label)
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(~rest))  # so that no class covers all others
    colours = dict(zip(sorted(common), _DOTS, strict=False))
    of_points = [colours[str(values[row])] for row in shuffled]
    axis.scatter(points[shuffled, 0], points[shuffled, 1], s=size, c=of_points, linewidth=0, alpha=0.7)
    for name, colour in colours.items():
        axis.scatter([], [], s=size, color=colour, label=_shorten(name))
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_bars(axis: Axes, values: Mapping[str, float], chance: float) -> None:
    names = [_shorten(name) for name in values]
    heights = np.arange(len(names))[::-1]
    best = max(values, key=lambda name: values[name])
    axis.barh(heights, list(values.values()), color=[COLOURS[1] if name == best else COLOURS[0] for name in values])
    for height, value in zip(heights, values.values(), strict=True):
        axis.annotate(f"{value:.3f}", (value, height), xytext=(3, 0), textcoords="offset points", va="center")
    axis.axvline(chance, color=INK, linestyle=":", linewidth=1.2)
    _annotate_above(axis, "the most common class alone", chance, fontsize=8, xytext=(0, 3))
    axis.set_yticks(heights, names)
    axis.set_xlim(0, 1.05)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlabel("share of images whose nearest neighbours have their label")


@contextmanager
def open_figure(
    path: Path, size: tuple[float, float], layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """A figure in our own style, written at the end: a PNG, or an SVG if the path ends so.

    An SVG keeps text as text and has no background. Its ids derive from its name, so that one page can hold several.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    own = str(files("tlkeras.plotting") / "charts.mplstyle")
    with style.context(["default", own, {"svg.fonttype": "none", "svg.hashsalt": path.stem}]):
        figure = Figure(figsize=size, layout=layout)
        yield figure
        if path.suffix == ".svg":
            figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(path, format="png")


@contextmanager
def open_chart(path: Path, across: str, up: str) -> Iterator[Axes]:
    """The axes of a chart with labels, a grid and, where curves have names, a legend."""
    with open_figure(path, _CHART) as figure:
        axis = figure.subplots()
        yield axis
        axis.set(xlabel=across, ylabel=up)
        axis.grid(color="#DDDDDD", linewidth=0.6)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", fontsize=8)


def _draw_pair(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, training: str, validation: str) -> None:
    name = key.replace("_", " ")
    _draw_series(axis, rows, key, color=training, linestyle="--", linewidth=1.2, label=f"{name}, training")
    _draw_series(axis, rows, f"val_{key}", color=validation, linewidth=1.8, label=f"{name}, validation")


def _draw_series(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    values = [_as_number(row.get(key)) for row in rows]
    if any(map(math.isfinite, values)):
        marker = "o" if len(rows) <= _MARKED_EPOCHS else ""
        axis.plot([row["epoch"] for row in rows], values, marker=marker, markersize=3.5, **style)


def _finish_panel(axis: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    for number, (_, first, last) in enumerate(_find_bands(rows)):
        axis.axvspan(first - 0.5, last + 0.5, color=_BANDS[number % 2], zorder=0, linewidth=0)
        if number:
            axis.axvline(first - 0.5, color="#BBBBBB", linewidth=0.8, zorder=1)
    for epoch in [row["epoch"] for row in rows if row.get("best")][-1:]:
        label = f"best: epoch {epoch}" if name == "loss" else None
        axis.axvline(epoch, color=INK, linestyle=":", linewidth=1.2, label=label)
    axis.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.set_ylabel(name)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _label_stages(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Label the bands above the panel; slanted where a name is wider than its band."""
    bands = _find_bands(rows)
    epoch = 6.5 / len(rows)  # inches, about
    slanted = any(len(name) * _LETTER > (last - first + 1) * epoch for name, first, last in bands)
    style: dict[str, Any] = {"rotation": 35, "ha": "left"} if slanted else {}
    for name, first, last in bands:
        _annotate_above(axis, name, (first + last) / 2, weight="bold", **style)


def _find_bands(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    stages = [(name, [row["epoch"] for row in run]) for name, run in groupby(rows, key=lambda row: str(row["stage"]))]
    return [(name, epochs[0], epochs[-1]) for name, epochs in stages]


def _as_number(value: Any) -> float:
    """A finite number, or NaN, which leaves a gap."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _join_images(images: Sequence[Sequence[np.ndarray]], columns: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Images on a white sheet with gaps of 2 pixels, and height and width of a cell."""
    height, width = (max(image.shape[axis] for row in images for image in row) for axis in (0, 1))
    sheet = np.full((len(images) * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            top, left = y * (height + 2), x * (width + 2)
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet, (height, width)


def _shorten(text: str) -> str:
    return text if len(text) <= _LABEL_LETTERS else f"{text[: _LABEL_LETTERS - 1]}…"
