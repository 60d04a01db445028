"""Weighted metrics and their bootstrap intervals, which `intervals` makes.

Every metric is written for a stack of weightings (b, n) at once: a bootstrap resample is nothing but another
weighting of the same examples, so the point estimate and its interval come from one piece of code. So the functions
`compute`, `compute_multilabel` and `compute_regression` take targets, probabilities (n, k), weights (b, n), and whether
metrics that sort scores are wanted; they return metrics of shape (b,) by name, and of single classes by (index, name).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tlkeras.data.tasks import THRESHOLD
from tlkeras.errors import DataError
from tlkeras.evaluation.intervals import (
    Estimate,
    Metrics,
    Support,
    Units,
    count_units,
    draw_weights,
    find_units,
    make_interval,
    support_all,
    support_classes,
)
from tlkeras.runs.predictions import Predictions

MetricKey = str | tuple[int, str]
"""The name of a metric over all classes, or the index of a class or label and the name."""

RANKED = ("roc_auc", "average_precision", "mean_average_precision", "micro_roc_auc", "micro_average_precision")
"""Metrics that sort scores, which takes time with many examples and classes."""

_MOST_RANKED = 200_000_000  # scores sorted into place over all resamples: about ten seconds
_LEAST_RESAMPLES = 100  # fewer do not tell the spread
_LOWEST_PROBABILITY = 1e-15
_LOWEST_VARIANCE = 1e-30
_NOTHING = 1e-12  # share of all weight that sums of floats cannot tell from none


class BootstrapSamples(NamedTuple):
    """Metrics on all examples, on each of b resamples of them, float (b,), and what their intervals rest on."""

    values: dict[MetricKey, float]
    resampled: dict[MetricKey, np.ndarray]
    support: dict[MetricKey, Support]
    units: Units

    def list_estimates(self) -> dict[MetricKey, Estimate]:
        """Each metric with its interval."""
        images = len(self.units.codes)
        return {
            key: replace(make_interval(_name(key), value, self.resampled[key], self.support[key], self.units), n=images)
            for key, value in self.values.items()
        }


def bootstrap_metrics(
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[MetricKey, Estimate]:
    """Metrics with 95 % intervals of a bootstrap over examples, or over groups of them.

    DataError if there are no examples, or a probability is not finite.

    Args:
        targets: Class index of each example, (n,), or 1 for each label that it has and 0 else, (n, k); or numbers,
            floating, (n,).
        probabilities: (n, k), rows summing to 1 unless there are several labels; or numbers, (n, 1).
        weights: Of each example, (n,).
        resamples: Their number; 0 for no intervals. Metrics of `RANKED` get as many as `count_ranked` says, and no
            interval where that is 0.
        seed: The same seed and n give the same resamples, so two models are comparable.
        groups: Of each example, str (n,), "" for none; resampled as a whole.
    """
    return bootstrap_samples(targets, probabilities, weights, resamples, seed, groups).list_estimates()


def bootstrap_samples(
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> BootstrapSamples:
    """Metrics on all examples and on bootstrap resamples; arguments and errors as in `bootstrap_metrics`."""
    if len(targets) == 0:
        raise DataError("No held-out images to evaluate on.", 0)
    if not np.isfinite(probabilities).all():
        rows = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise DataError("Some probabilities are not finite.", f"{rows} rows with NaN or infinity")
    weights = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=np.float64)
    of_classes = compute if targets.ndim == 1 else compute_multilabel
    compute_all = compute_regression if targets.dtype.kind == "f" else of_classes
    values = {name: float(value[0]) for name, value in compute_all(targets, probabilities, weights[None]).items()}
    units = find_units(weights, groups)
    support = find_support(targets, probabilities.shape[1], weights, units, values)
    resamples = 0 if support_all(units).reason else resamples
    ranked, parts, done = count_ranked(probabilities.size, resamples), [], 0
    if resamples and not ranked:
        sorting = Support(0.0, "so many images and classes take too long to sort in each resample")
        support |= {key: sorting for key in support if _is_ranked(key) and not support[key].reason}
    for drawn in draw_weights(units, resamples, seed, targets.size):
        parts.append(compute_all(targets, probabilities, drawn * weights, ranked=done < ranked))
        done += len(drawn)
    joined = {name: np.concatenate([np.empty(0), *(part[name] for part in parts if name in part)]) for name in values}
    resampled = {key: drawn[:ranked] if _is_ranked(key) else drawn for key, drawn in joined.items()}
    return BootstrapSamples(values, resampled, support, units)


def resample_predictions(
    predictions: Predictions, probabilities: np.ndarray, resamples: int, seed: int
) -> BootstrapSamples:
    """Metrics of probabilities, float [n, k], of the images of some predictions, and on resamples of their groups."""
    groups = predictions.slices.get("group")
    return bootstrap_samples(predictions.targets, probabilities, predictions.weights, resamples, seed, groups)


def measure_accuracy(predictions: Predictions, probabilities: np.ndarray) -> float:
    """Fraction, by weight, of the images of some predictions that probabilities, float [n, k], have wholly right."""
    task = predictions.task
    correct = (task.decide(probabilities) == task.members(predictions.targets)).all(axis=1)
    return float(predictions.weights @ correct / predictions.weights.sum())


def find_support(
    targets: np.ndarray, classes: int, weights: np.ndarray, units: Units, keys: Iterable[MetricKey]
) -> dict[MetricKey, Support]:
    """What the interval of each metric of `keys` rests on; targets and weights are those of `bootstrap_metrics`.

    A metric of all images rests on the number of units, one that joins classes on the number that holds each of them,
    and a ROC AUC also on those that lack it.
    """
    if targets.dtype.kind == "f":
        return {key: support_all(units, _name(key)) for key in keys}
    members = targets > 0 if targets.ndim == 2 else targets[:, None] == np.arange(classes)
    own, rest = (count_units(units, of_each * weights[:, None]) for of_each in (members, ~members))
    joined = support_classes(units, own)
    both = joined if targets.ndim == 1 else support_classes(units, np.concatenate([own, rest]))
    of_second = support_classes(units, own[1:]) if targets.ndim == 1 and classes == 2 else joined
    by_name = dict.fromkeys(("balanced_accuracy", "macro_f1", "mean_average_precision"), joined)
    by_name |= {"roc_auc": both, "average_precision": of_second}
    found: dict[MetricKey, Support] = {}
    for key in keys:
        if isinstance(key, str):
            found[key] = by_name.get(key) or support_all(units, key)
        else:
            index, name = key
            pair = own[[index]] if name != "roc_auc" else np.array([own[index], rest[index]])
            found[key] = support_classes(units, pair)
    return found


def count_ranked(cells: int, resamples: int) -> int:
    """Number of resamples for metrics that sort scores, given the number of scores (n k); 0 if it would be too few."""
    most = min(resamples, _MOST_RANKED // max(cells, 1))
    return most if most >= min(resamples, _LEAST_RESAMPLES) else 0


def compute(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, ranked: bool = True
) -> dict[MetricKey, np.ndarray]:
    """Metrics of one class per example, whose index is the target, (n,).

    Classes without weight among the targets are left out of the averages over classes, and have metrics of NaN. ROC AUC
    and average precision are of one class against the rest, averaged over classes; for two classes, of the second.
    Precision is 0 where a class was never predicted. The Brier score is the sum over classes, 0 to 2 (Brier, 1950).
    """
    classes, total = probabilities.shape[1], weights.sum(axis=1)
    predictions = probabilities.argmax(axis=1)
    support, predicted = _sum_by_class(weights, targets, classes), _sum_by_class(weights, predictions, classes)
    right = _sum_by_class(weights * (predictions == targets), targets, classes)
    present = np.where(support > 0, support, np.nan)
    recall, f1 = right / present, 2 * right / (present + predicted)
    precision = np.nan_to_num(_divide(right, predicted)) + 0 * present
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1) - 2 * chosen + 1
    whole: dict[MetricKey, np.ndarray] = {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": _average(recall),
        "macro_f1": _average(f1),
        "weighted_f1": np.nansum(f1 * support, axis=1) / total,
        "log_loss": weights @ -np.log(np.clip(chosen, _LOWEST_PROBABILITY, 1.0)) / total,
        "brier_score": weights @ squares / total,
    }
    single = {"precision": precision, "recall": recall, "f1": f1}
    if ranked:
        areas, averages = _rank((targets == index for index in range(classes)), probabilities, weights)
        second = slice(1, 2) if classes == 2 else slice(None)
        whole |= {"roc_auc": _average(areas[:, second]), "average_precision": _average(averages[:, second])}
        single |= {"roc_auc": areas, "average_precision": averages}
    return whole | _name_by_class(single)


def compute_multilabel(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, ranked: bool = True
) -> dict[MetricKey, np.ndarray]:
    """Metrics of several labels per example; targets are 1 for each that it has and 0 else, (n, k).

    A label is predicted from `THRESHOLD` on. F1 of a label that no image has is 0 where it was predicted and NaN where
    it was not; its average precision, and the ROC AUC of a label that all images have or lack, are NaN. Averages over
    labels ("macro") leave out NaN. "micro" takes every label of every image as an example of its own. Source of the
    averages: Zhang and Zhou, A Review on Multi-Label Learning Algorithms, IEEE TKDE 2014, section 2.2.
    """
    truth, predictions = targets.astype(np.float64), (probabilities >= THRESHOLD).astype(np.float64)
    total, labels = weights.sum(axis=1), targets.shape[1]
    hits, found = weights @ (truth * predictions), weights @ (truth + predictions)
    f1, support = _divide(2 * hits, found), weights @ truth
    right = truth * probabilities + (1 - truth) * (1 - probabilities)
    whole: dict[MetricKey, np.ndarray] = {
        "exact_match": weights @ (truth == predictions).all(axis=1) / total,
        "hamming_loss": weights @ (truth != predictions).mean(axis=1) / total,
        "macro_f1": _average(f1),
        "micro_f1": _divide(2 * hits.sum(axis=1), found.sum(axis=1)),
        "weighted_f1": _divide(np.nansum(f1 * support, axis=1), support.sum(axis=1)),
        "log_loss": weights @ -np.log(np.clip(right, _LOWEST_PROBABILITY, 1.0)).mean(axis=1) / total,
        "brier_score": weights @ np.square(truth - probabilities).mean(axis=1) / total,
    }
    single = {"precision": _divide(hits, weights @ predictions), "recall": _divide(hits, support), "f1": f1}
    if ranked:
        areas, averages = _rank(truth.T, probabilities, weights)
        micro = compute_ranking(truth.ravel(), probabilities.ravel(), weights, np.arange(truth.size) // labels)
        whole |= {"roc_auc": _average(areas), "mean_average_precision": _average(averages)}
        whole |= {"micro_roc_auc": micro[0], "micro_average_precision": micro[1]}
        single |= {"roc_auc": areas, "average_precision": averages}
    return whole | _name_by_class(single)


def compute_regression(
    targets: np.ndarray, values: np.ndarray, weights: np.ndarray, ranked: bool = True
) -> dict[MetricKey, np.ndarray]:
    """Metrics of numbers, (n, 1), against targets, (n,); none of them sorts scores.

    R2 is 1 less the squared error over that of always predicting the weighted mean; NaN where all targets are equal.
    """
    errors, total = values[:, 0].astype(np.float64) - targets, weights.sum(axis=1)
    squared = weights @ errors**2 / total
    centred = targets - targets.mean()  # or digits would cancel
    spread = weights @ centred**2 / total - (weights @ centred / total) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(spread > _LOWEST_VARIANCE, 1 - squared / spread, np.nan)
    return {"r2": explained, "rmse": np.sqrt(squared), "mae": weights @ np.abs(errors) / total}


def compute_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision per weighting, shape (b,) each.

    The area is P(score of a positive > score of a negative) + half the ties, NaN without both. The average precision is
    that at each threshold, averaged over the positives that it adds, NaN without positives; equal scores are one
    threshold, and nothing is interpolated between two.

    Args:
        positive: 1 for positives and 0 for negatives, (n,).
        scores: (n,).
        weights: (b, m).
        rows: Index of the weight of each score, int (n,); None: m is n, and each has its own.
    """
    order = np.argsort(scores, kind="stable")
    rows = order if rows is None else rows[order]
    rising, places = scores[order], np.flatnonzero(positive[order])
    own = weights.take(rows[places], axis=1)
    # With the sums of all weights, and of those of positives, before each score, only positives have to be visited.
    before, before_positives = _accumulate(weights.take(rows, axis=1)), _accumulate(own)
    total, positives = before[:, -1:], before_positives[:, -1:]
    first, last = (np.searchsorted(rising, rising[places], side) for side in ("left", "right"))
    first_own, last_own = (np.searchsorted(rising[places], rising[places], side) for side in ("left", "right"))
    below, below_positives = before.take(first, axis=1), before_positives.take(first_own, axis=1)
    tied = before.take(last, axis=1) - below - (before_positives.take(last_own, axis=1) - below_positives)
    won = (own * (below - below_positives + tied / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise = np.where(own > 0, own * (positives - below_positives) / (total - below), 0.0).sum(axis=1)
    some = np.where(positives > 0, positives, np.nan)[:, 0]
    others = np.where(total - positives > _NOTHING * total, total - positives, np.nan)[:, 0]
    return won / (some * others), precise / some


def _accumulate(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... columns, (b, columns + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def overall_metrics(estimates: Mapping[MetricKey, Estimate]) -> Metrics:
    """The metrics over all classes, by name."""
    return Metrics((key, found) for key, found in estimates.items() if isinstance(key, str))


def _name(key: MetricKey) -> str:
    return key if isinstance(key, str) else key[1]


def _is_ranked(key: MetricKey) -> bool:
    return _name(key) in RANKED


def _sum_by_class(weights: np.ndarray, codes: np.ndarray, classes: int) -> np.ndarray:
    rows = np.arange(len(codes))
    return np.asarray((csr_array((np.ones(len(codes)), (codes, rows)), shape=(classes, len(codes))) @ weights.T).T)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    return above / np.where(below > 0, below, np.nan)


def _average(values: np.ndarray) -> np.ndarray:
    """Mean over classes of the finite values, (b,); NaN where there are none."""
    known = np.isfinite(values)
    return _divide(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))


def _rank(members: Iterable[np.ndarray], scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of each class or label, (b, k) each."""
    pairs = [compute_ranking(positive, scores[:, index], weights) for index, positive in enumerate(members)]
    areas, averages = zip(*pairs, strict=True)
    return np.stack(areas, axis=1), np.stack(averages, axis=1)


def _name_by_class(metrics: dict[str, np.ndarray]) -> dict[MetricKey, np.ndarray]:
    classes = next(iter(metrics.values())).shape[1]
    return {(index, name): values[:, index] for index in range(classes) for name, values in metrics.items()}
