"""Charts of searches: parallel coordinates of the trials, and the importance of the keys."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.plotting.charts import COLOURS, FAINT, open_figure


def draw_parallel(
    axes: Mapping[str, Sequence[Any]],
    score: tuple[str, Sequence[float]],
    path: Path,
    logarithmic: Collection[str] = (),
    *,
    low: bool = False,
) -> None:
    """Draw a line per trial across an axis per key, coloured by its score; the best is drawn last.

    Args:
        axes: Per key the value of each trial; texts are spread evenly in alphabetical order.
        score: Its name and values, drawn as the last axis.
        logarithmic: Keys whose axis shows the logarithm.
        low: Whether a low score is good.
    """
    name, scores = score
    if not len(scores):
        raise ValueError("There are no trials to plot.")
    columns = {**axes, name: list(scores)}
    placed = [_place_on_axis(values, key in logarithmic) for key, values in columns.items()]
    goodness = np.argsort(np.argsort(-np.array(scores) if low else np.array(scores))) / max(1, len(scores) - 1)
    with open_figure(path, (2.2 + 1.7 * len(columns), 5.0)) as figure:
        axis = figure.subplots()
        heights = np.array([heights for heights, _ in placed]).T
        for trial in np.argsort(goodness):
            best = goodness[trial] == goodness.max()
            colour = COLOURS[1] if best else _shade(float(goodness[trial]))
            width, order = (2.4, 3) if best else (1.0, 2)
            axis.plot(range(len(columns)), heights[trial], color=colour, linewidth=width, zorder=order)
        for number, (_, ticks) in enumerate(placed):
            axis.axvline(number, color=FAINT, linewidth=0.8)
            for height, text in ticks:
                axis.annotate(text, (number, height), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axis.set_xticks(range(len(columns)), [key.replace(".", ".\n") for key in columns])
        axis.set_xlim(-0.2, len(columns) - 0.4)
        axis.set_yticks([])
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.set_title(f"{len(scores)} trials, by {name}: dark is better, orange the best", loc="left", fontsize=9)


def draw_importance(shares: Mapping[str, float], label: str, path: Path) -> None:
    """Draw a bar per key with its share, 0 to 1, the longest on top."""
    ranked = sorted(shares.items(), key=lambda item: item[1])
    with open_figure(path, (7.0, 1.2 + 0.4 * len(ranked))) as figure:
        axis = figure.subplots()
        bars = axis.barh([key for key, _ in ranked], [share for _, share in ranked], color=COLOURS[0], height=0.6)
        axis.bar_label(bars, [f"{share:.0%}" for _, share in ranked], padding=3)
        axis.set_xlim(0, max(0.1, 1.15 * max(share for _, share in ranked)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel(label)


def _place_on_axis(values: Sequence[Any], logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of the values, 0 to 1, and the ticks of the axis, each a height and a text."""
    if not all(isinstance(value, (int, float)) for value in values):
        names = sorted({str(value) for value in values})
        heights = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
        return [heights[str(value)] for value in values], [(height, name) for name, height in heights.items()]
    numbers = np.log(values) if logarithmic else np.array(values, float)
    least, most = numbers.min(), numbers.max()
    span = most - least or 1.0
    marks = np.linspace(least, most, 5) if most > least else [least]
    ticks = [(float((mark - least) / span), f"{math.exp(mark) if logarithmic else mark:.3g}") for mark in marks]
    return [float((number - least) / span) for number in numbers], ticks


def _shade(goodness: float) -> tuple[float, float, float]:
    """A blue in red, green and blue, the darker the better."""
    return (0.80 * (1 - goodness), 0.88 - 0.43 * goodness, 0.95 - 0.25 * goodness)
