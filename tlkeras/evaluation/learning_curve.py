"""Accuracy of a linear head on cached features by the number of training images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tlkeras.evaluation.comparison import PairedDifference, compare_probabilities
from tlkeras.evaluation.metrics import measure_accuracy
from tlkeras.evaluation.run_data import FeatureSplit
from tlkeras.heads.folds import group_kfold
from tlkeras.heads.heads import Head
from tlkeras.heads.link_functions import infer_link
from tlkeras.progress import progress_bar
from tlkeras.results import Result
from tlkeras.runs.predictions import Predictions

SHARES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LearningCurveResult(Result):
    """Accuracy on held-out images by the number of training images."""

    metric: str  # "accuracy", or "exact_match" of a multi-label task
    images: list[int]  # number of training images of each point
    accuracy: list[float]  # mean over draws of each point
    low: list[float]  # lowest of the draws
    high: list[float]  # highest of the draws
    # gain by the second half of the training images; None where it could not be measured
    last_step: PairedDifference | None


def learning_curve(
    make_head: Callable[[], Head],
    train: FeatureSplit,
    X: np.ndarray,
    held_out: Predictions,
    *,
    repeats: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> LearningCurveResult:
    """Learning curve of heads that are fitted on nested draws of the training images, whole groups if they have some.

    Args:
        make_head: Makes an unfitted head.
        train: Labelled training images.
        X: Features of the held-out images, float [m, d].
        held_out: Their targets and weights; the predictions themselves are not used.
        repeats: Draws of each size below the whole; larger ones contain the smaller of the same draw.
        resamples: Of the bootstrap of the last step, from half of the images to all.
        seed: Of the draws and resamples.
    """
    y = train.targets[held_out.task.name]
    groups = np.where(train.groups == "", np.char.add("image ", np.arange(len(y)).astype(str)), train.groups)
    grouped = bool((train.groups != "").any())
    draws = [(share, repeat) for share in SHARES for repeat in range(repeats if share < 1 else 1)]
    sizes: dict[float, int] = {}
    accuracies: dict[float, list[float]] = {}
    first: dict[float, np.ndarray] = {}
    with progress_bar("Learning curve", len(draws), "fits") as advance:
        for share, repeat in draws:
            rows = _draw(y, groups, share, seed + repeat)
            sizes[share] = len(rows)
            together = groups[rows] if grouped else None
            predicted = _fit_and_predict(make_head(), train.take(rows), together, X, held_out)
            if predicted is not None:
                accuracies.setdefault(share, []).append(measure_accuracy(held_out, predicted))
                if share in (0.5, 1.0):
                    first.setdefault(share, predicted)
            advance(1)
    metric, last_step = "exact_match" if held_out.task.is_multilabel else "accuracy", None
    if len(first) == 2:
        final = replace(held_out, probabilities=first[1.0])
        last_step = compare_probabilities(final, first[0.5], resamples=resamples, seed=seed)[metric]
    return LearningCurveResult(
        metric,
        [sizes[share] for share in accuracies],
        [float(np.mean(drawn)) for drawn in accuracies.values()],
        [min(drawn) for drawn in accuracies.values()],
        [max(drawn) for drawn in accuracies.values()],
        last_step,
    )


def _fit_and_predict(
    head: Head, train: FeatureSplit, groups: np.ndarray | None, X: np.ndarray, held_out: Predictions
) -> np.ndarray | None:
    """Probabilities of the held-out images, float64 [m, k]; None where the training images lack a class."""
    try:
        head.fit(train.X, train.targets[held_out.task.name], train.weights, groups=groups)
    except ValueError:
        return None
    predicted = np.zeros(held_out.probabilities.shape)
    predicted[:, head.classes_] = head.predict_proba(X)
    return predicted


def _draw(y: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of a stratified draw of whole groups, int64 [m]; larger shares contain smaller ones."""
    parts = min(20, len(np.unique(groups)))
    if share >= 1 or parts < 2:
        return np.arange(len(y))
    dealt = group_kfold(infer_link(y).group_rows(y), groups, parts, seed)
    return np.flatnonzero(dealt < max(1, round(share * parts)))
