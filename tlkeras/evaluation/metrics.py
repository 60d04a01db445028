"""Weighted classification metrics and their bootstrap intervals, which `intervals` makes.

Every metric is written for a stack of weightings (b, n) at once: a bootstrap resample is nothing but another
weighting of the same examples, so the point estimate and its interval come from one piece of code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tlkeras.errors import DataError
from tlkeras.evaluation.intervals import (
    Estimate,
    Support,
    Units,
    count_units,
    draw_weights,
    find_units,
    make_interval,
    support_all,
    support_classes,
)
from tlkeras.evaluation.multilabel_metrics import compute_multilabel
from tlkeras.evaluation.ranking_metrics import compute_ranking
from tlkeras.evaluation.regression_metrics import compute_regression

MetricKey = str | tuple[int, str]
"""The name of a metric over all classes, or the index of a class or label and the name."""

RANKED = ("roc_auc", "average_precision", "mean_average_precision", "micro_roc_auc", "micro_average_precision")
"""Metrics that sort scores, which takes time with many examples and classes."""

_MOST_RANKED = 200_000_000  # scores sorted into place over all resamples: about ten seconds
_LEAST_RESAMPLES = 100  # fewer do not tell the spread


class BootstrapSamples(NamedTuple):
    """Metrics on all examples, on each of b resamples of them, float (b,), and what their intervals rest on."""

    values: dict[MetricKey, float]
    resampled: dict[MetricKey, np.ndarray]
    support: dict[MetricKey, Support]
    units: Units


def bootstrap_metrics(
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[MetricKey, Estimate]:
    """Metrics with 95 % intervals of a bootstrap over examples, or over groups of them.

    Args:
        targets: Class index of each example, shape (n,), or 1 for each label that it has and 0 else, shape (n, k); or
            numbers, floating, shape (n,).
        probabilities: Shape (n, k), rows summing to 1 unless there are several labels; or numbers, shape (n, 1).
        weights: Weight of each example, shape (n,), or None.
        resamples: Bootstrap resamples; 0 for no intervals. Metrics of `RANKED` get as many of them as `count_ranked`
            says; where that is none, they have no interval.
        seed: Seed of the resampling; the same seed and n give the same resamples, so two models are comparable.
        groups: Group of each example, str (n,), "" for none; resampled as a whole.

    Raises:
        DataError: There are no examples, or a probability is not finite.
    """
    return list_estimates(bootstrap_samples(targets, probabilities, weights, resamples, seed, groups))


def list_estimates(samples: BootstrapSamples) -> dict[MetricKey, Estimate]:
    """Each metric with its interval."""
    return {
        key: make_interval(_name(key), value, samples.resampled[key], samples.support[key], samples.units)
        for key, value in samples.values.items()
    }


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
    compute_all = (
        compute_regression if targets.dtype.kind == "f" else compute if targets.ndim == 1 else compute_multilabel
    )
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


def find_support(
    targets: np.ndarray, classes: int, weights: np.ndarray, units: Units, keys: Iterable[MetricKey]
) -> dict[MetricKey, Support]:
    """What the interval of each metric rests on.

    A metric of all images rests on the number of units, one that joins classes on the number that holds each of them,
    and a ROC AUC also on those that lack it.

    Args:
        targets: As in `bootstrap_metrics`.
        classes: Number of classes or labels.
        weights: Weight of each example, shape (n,).
        units: Of the examples.
        keys: The metrics.
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
    """Each metric for each weighting, shape (b,): by name, and of single classes by (index, name).

    Classes without weight among the targets are left out of the averages over classes, and have metrics of NaN. ROC AUC
    and average precision are of one class against the rest, averaged over classes; for two classes, of the second.
    Precision is 0 where a class was never predicted. The Brier score is the sum over classes, 0 to 2 (Brier, 1950).

    Args:
        targets: Class index of each example, shape (n,).
        probabilities: Shape (n, k).
        weights: Shape (b, n).
        ranked: Whether the metrics of `RANKED` are computed.
    """
    classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    total = weights.sum(axis=1)
    support, predicted = _sum_by_class(weights, targets, classes), _sum_by_class(weights, predictions, classes)
    right = _sum_by_class(weights * (predictions == targets), targets, classes)
    present = np.where(support > 0, support, np.nan)
    recall, f1 = right / present, 2 * right / (present + predicted)
    precision = np.where(predicted > 0, right / np.where(predicted > 0, predicted, 1.0), 0.0) + 0 * present
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1) - 2 * chosen + 1
    whole: dict[MetricKey, np.ndarray] = {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": _average(recall),
        "macro_f1": _average(f1),
        "weighted_f1": np.nansum(f1 * support, axis=1) / total,
        "log_loss": weights @ -np.log(np.clip(chosen, 1e-15, 1.0)) / total,
        "brier_score": weights @ squares / total,
    }
    single = {"precision": precision, "recall": recall, "f1": f1}
    if ranked:
        areas, averages = _rank(targets, probabilities, weights)
        second = slice(1, 2) if classes == 2 else slice(None)
        whole |= {"roc_auc": _average(areas[:, second]), "average_precision": _average(averages[:, second])}
        single |= {"roc_auc": areas, "average_precision": averages}
    return whole | {(index, name): values[:, index] for index in range(classes) for name, values in single.items()}


def overall_metrics(estimates: dict[MetricKey, Estimate]) -> dict[str, Estimate]:
    """The metrics over all classes, by name."""
    return {key: found for key, found in estimates.items() if isinstance(key, str)}


def _name(key: MetricKey) -> str:
    return key if isinstance(key, str) else key[1]


def _is_ranked(key: MetricKey) -> bool:
    return _name(key) in RANKED


def _sum_by_class(weights: np.ndarray, codes: np.ndarray, classes: int) -> np.ndarray:
    """Weight on each class, (b, k)."""
    rows = np.arange(len(codes))
    return np.asarray((csr_array((np.ones(len(codes)), (codes, rows)), shape=(classes, len(codes))) @ weights.T).T)


def _average(values: np.ndarray) -> np.ndarray:
    """Mean over classes of the finite values, (b,); NaN where there are none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)


def _rank(targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of each class against the rest, (b, k) each."""
    pairs = [compute_ranking(targets == c, probabilities[:, c], weights) for c in range(probabilities.shape[1])]
    areas, averages = zip(*pairs, strict=True)
    return np.stack(areas, axis=1), np.stack(averages, axis=1)
