"""Would more images help? A linear head on cached features, fitted on more and more of the training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tlkeras.evaluation.comparison import compare_probabilities
from tlkeras.heads.cross_validation import group_kfold
from tlkeras.heads.heads import Head
from tlkeras.heads.link_functions import infer_link
from tlkeras.progress import progress_bar
from tlkeras.runs.predictions import Predictions

SHARES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def learning_curve(
    head_maker: Callable[[], Head],
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    X: np.ndarray,
    held_out: Predictions,
    *,
    repeats: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return accuracy on held-out images by the number of training images.

    Args:
        head_maker: Makes an unfitted head.
        train: Features (n, d), targets and weights of the training images.
        X: Features of the held-out images, (m, d).
        held_out: What is true of them; its answers are not used.
        repeats: Draws of each size below the whole; larger ones hold the smaller of the same draw.
        resamples: Of the paired bootstrap of the last step, from half of the images to all.
        seed: Of the draws.

    Returns:
        `images`, `accuracy` (mean over draws), `low` and `high` (least and most of the draws), one per size;
        `metric`; `last_step`: value, low and high of what the second half of the images gained.
    """
    features, y, weights = train
    points: list[tuple[int, list[float]]] = []
    halves: list[np.ndarray] = []
    whole = held_out.probabilities
    with progress_bar("Learning curve", len(SHARES) * repeats, "fits") as advance:
        for share in SHARES:
            figures, size = [], 0
            for repeat in range(repeats if share < 1 else 1):
                rows = _draw(y, share, seed + repeat)
                size = len(rows)
                predicted = _ask(head_maker(), (features[rows], y[rows], weights[rows]), X, held_out)
                if predicted is None:
                    continue
                figures.append(_measure_accuracy(held_out, predicted))
                whole = predicted
                if share == 0.5:
                    halves.append(predicted)
                advance(1)
            if figures:
                points.append((size, figures))
    step, name = None, "accuracy" if held_out.targets.ndim == 1 else "exact_match"
    if halves and points and points[-1][0] == len(y):
        final = Predictions(**{**vars(held_out), "probabilities": whole})
        step = compare_probabilities(final, halves[0], resamples=resamples, seed=seed)[name]
    return {
        "metric": name,
        "images": [size for size, _ in points],
        "accuracy": [float(np.mean(figures)) for _, figures in points],
        "low": [min(figures) for _, figures in points],
        "high": [max(figures) for _, figures in points],
        "last_step": step,
    }


def _ask(head: Head, train: tuple[np.ndarray, ...], X: np.ndarray, held_out: Predictions) -> np.ndarray | None:
    """Fit a head and return its probabilities of the held-out images, None where a class or an answer is missing."""
    try:
        head.fit(*train)
    except ValueError:
        return None
    predicted = np.zeros(held_out.probabilities.shape)
    predicted[:, head.classes_] = head.predict_proba(X)
    return predicted


def _draw(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return some rows, of each class its share, int64 (m,); larger shares hold smaller ones."""
    if share >= 1:
        return np.arange(len(y))
    parts = 20
    strata = infer_link(y).group_rows(y)
    dealt = group_kfold(strata, np.arange(len(y)), min(parts, len(y)), seed)
    return np.flatnonzero(dealt < round(share * parts))


def _measure_accuracy(held_out: Predictions, predicted: np.ndarray) -> float:
    task = held_out.task
    right = (task.decide(predicted) == task.members(held_out.targets)).all(axis=1)
    return float(held_out.weights @ right / held_out.weights.sum())
