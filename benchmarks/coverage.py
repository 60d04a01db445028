"""How often a 95 % interval holds the truth: simulated images whose truth is known, alone and in groups.

    python benchmarks/coverage.py [--repeats 1000] [--resamples 1000] [--sizes 50 200 1000]

Each data set has two classes, 30 % of the second, scores of a model with an area under the ROC curve of about 0.86 and
probabilities that are too sure. In groups (of 5 images at 50 and of 10 else) a fifth of the variance of labels and
scores is the group's. Truth is the metric of two million images. The columns are the rate of tlkeras' intervals, their
mean width, the fraction of data sets that have one, and the rate of percentiles of counts, drawn as groups are and,
last, of single images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from tlkeras.data.tasks import Task
from tlkeras.evaluation.calibration import BINS, estimate_calibration_error
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.metrics import bootstrap_metrics, compute
from tlkeras.runs.predictions import Predictions

SIZES = (50, 200, 1000)
METRICS = ("accuracy", "macro_f1", "roc_auc", "average_precision")
ERROR = "calibration error"
_SECOND = 0.3
_SHARED = 0.2
_DISTANCE = 1.5
_TOO_SURE = 1.6
_MANY = 2_000_000


class Coverage(NamedTuple):
    """Rate of intervals that hold the truth, their mean width, the fraction of data sets that have one, and the rates
    of percentiles of units and of single images."""

    rate: float
    width: float
    given: float
    percentiles: float
    blind: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    columns = ("images", "metric", "interval holds", "width", "given", "percentiles hold", "percentiles of images hold")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for grouped in (False, True):
        for count in options.sizes:
            of_size = measure_coverage(count, grouped, options.repeats, options.resamples)
            images = f"{count:,} in {count // size_of_groups(count)} groups" if grouped else f"{count:,}"
            for name, held in of_size.items():
                cells = [f"{part:.1%}" for part in (held.rate, held.given, held.percentiles, held.blind)]
                cells.insert(1, f"{held.width:.3f}")
                print(f"| {images} | {name.replace('_', ' ')} | {' | '.join(cells)} |", flush=True)


def measure_coverage(
    count: int, grouped: bool, repeats: int = 1000, resamples: int = 1000, many: int = _MANY
) -> dict[str, Coverage]:
    """Coverage of the intervals of each metric over data sets of `count` images; truth is that of `many`."""
    truth = find_truth(many)
    rows: dict[str, list[tuple[bool, float, bool, bool, bool]]] = {name: [] for name in truth}
    for seed in range(repeats):
        predictions = draw_images(count, size_of_groups(count) if grouped else 1, seed)
        estimates = estimate(predictions, resamples, seed)
        codes = np.unique(predictions.slices["group"], return_inverse=True)[1] if grouped else np.arange(count)
        percentiles = list_percentiles(predictions, codes, resamples, seed)
        blind = list_percentiles(predictions, np.arange(count), resamples, seed) if grouped else percentiles
        for name, found in estimates.items():
            true, given = truth[name], not np.isnan(found.low)
            pairs = [(found.low, found.high), percentiles[name], blind[name]]
            holds, by_percentiles, by_images = (bool(low <= true <= high) for low, high in pairs)
            rows[name].append((holds, found.high - found.low, given, by_percentiles, by_images))
    return {name: _summarize(np.array(of_metric, dtype=float)) for name, of_metric in rows.items()}


def _summarize(rows: np.ndarray) -> Coverage:
    given = rows[:, 2] > 0
    rate, width = rows[given, :2].mean(axis=0) if given.any() else (np.nan, np.nan)
    return Coverage(float(rate), float(width), float(given.mean()), float(rows[:, 3].mean()), float(rows[:, 4].mean()))


def size_of_groups(count: int) -> int:
    return 5 if count < 100 else 10


def draw_images(count: int, size: int, seed: int) -> Predictions:
    """Simulated predictions of images in groups of `size`."""
    random = np.random.default_rng(seed)
    codes = np.arange(count) // size

    def draw() -> np.ndarray:
        own, of_group = random.normal(size=count), random.normal(size=codes[-1] + 1)
        return np.sqrt(_SHARED) * of_group[codes] + np.sqrt(1 - _SHARED) * own if size > 1 else own

    targets = (draw() > norm.ppf(1 - _SECOND)).astype(np.int64)
    scores = _DISTANCE * targets + draw()
    second = expit(_TOO_SURE * (_DISTANCE * scores - _DISTANCE**2 / 2 + np.log(_SECOND / (1 - _SECOND))))
    groups = np.char.add("g", codes.astype(str)) if size > 1 else np.full(count, "")
    return Predictions(
        task=Task("label", ("no", "yes")),
        keys=np.arange(count).astype(str),
        targets=targets,
        probabilities=np.stack([1 - second, second], axis=1),
        weights=np.ones(count),
        prior=np.array([1 - _SECOND, _SECOND]),
        slices={"group": groups},
    )


def estimate(predictions: Predictions, resamples: int, seed: int) -> Mapping[str, Estimate]:
    """The package's estimates."""
    groups = predictions.slices["group"]
    found = bootstrap_metrics(predictions.targets, predictions.probabilities, None, resamples, seed, groups)
    error = estimate_calibration_error(predictions, resamples, seed)
    return {**{name: found[name] for name in METRICS}, ERROR: error}


@cache
def find_truth(many: int) -> dict[str, float]:
    """Metrics of very many images; the calibration error in bins of equal weight."""
    images = draw_images(many, 1, 1_000_000)
    found = compute(images.targets, images.probabilities, np.ones((1, many)))
    return {
        **{name: float(found[name][0]) for name in METRICS},
        ERROR: float(_sum_gaps(images, np.ones((1, many)))[0]),
    }


def list_percentiles(
    predictions: Predictions, codes: np.ndarray, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentiles at 2.5 and 97.5 % of the metrics on counts of units, drawn with replacement."""
    units = int(codes.max()) + 1
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples)[:, codes]
    found = compute(predictions.targets, predictions.probabilities, counts.astype(float))
    resampled = {**{name: found[name] for name in METRICS}, ERROR: _sum_gaps(predictions, counts.astype(float))}
    limits = {name: np.nanpercentile(values, [2.5, 97.5]) for name, values in resampled.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def _sum_gaps(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """Calibration error for each weighting (b, n), in bins of equal numbers of images, (b,)."""
    confidence = predictions.probabilities.max(axis=1)
    gaps = confidence - (predictions.probabilities.argmax(axis=1) == predictions.targets)
    parts = np.array_split(np.argsort(confidence, kind="stable"), BINS)
    sums = np.stack([weights[:, part] @ gaps[part] for part in parts], axis=1)
    return np.abs(sums).sum(axis=1) / weights.sum(axis=1)


if __name__ == "__main__":
    main()
