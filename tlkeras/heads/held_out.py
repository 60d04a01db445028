"""Choice of a head by the rows that folds hold out: scores of all folds pooled, compared, and calibrated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.heads.calibration import calibrate, measure_loss
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.link_functions import LinkFunction

Hyperparameters = tuple[float, ...]
"""What a head chooses by held-out rows: a strength, or a kernel's gamma and a strength."""

ScoreFold = Callable[[Fold, list[Hyperparameters]], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate with the least held-out log loss.

    Attributes:
        candidate: That candidate.
        scale, shift: Of its calibration on all held-out rows, (k,); 1 and 0 for a head that is not calibrated.
        losses: Held-out log loss by candidate, after calibration.
    """

    candidate: Hyperparameters
    scale: np.ndarray
    shift: np.ndarray
    losses: Mapping[Hyperparameters, float]


def choose(
    link: LinkFunction,
    candidates: list[Hyperparameters],
    parts: Sequence[Fold],
    score: ScoreFold,
    weigh: Callable[[LabelledFeatures], np.ndarray],
    *,
    calibrated: bool,
) -> Choice | None:
    """The best candidate by the pooled scores of held-out rows; None where none is held out.

    All candidates are measured: held-out loss can rise on the way from strong regularisation before it falls.

    Args:
        link: The head's link function.
        candidates: What is chosen from.
        parts: The folds.
        score: Scores (m, k) of the rows that a fold holds out, by a fit without them, for each candidate.
        weigh: Weights of rows in the loss.
        calibrated: Whether scores become probabilities by a scale and shifts; else they are logits.
    """
    held = [part.held_rows() for part in parts]
    if not sum(float(rows.weights.sum()) for rows in held):
        return None
    codes, weights = np.concatenate([rows.codes for rows in held]), np.concatenate([rows.weights for rows in held])
    counted = np.concatenate([weigh(rows) for rows in held])
    by_part = _score_folds(score, candidates, parts)
    losses: dict[Hyperparameters, float] = {}
    calibrations = {}
    for candidate, of_parts in zip(candidates, zip(*by_part, strict=True), strict=True):
        scores = np.concatenate(of_parts)
        scale, shift = np.ones(scores.shape[1]), np.zeros(scores.shape[1])
        if calibrated:
            scale, shift = calibrate(link, scores, codes, weights)
        losses[candidate] = measure_loss(link, scores * scale + shift, codes, counted)
        calibrations[candidate] = (scale, shift)
    best = min(candidates, key=losses.__getitem__)
    return Choice(best, *calibrations[best], losses)


def _score_folds(score: ScoreFold, candidates: list[Hyperparameters], parts: Sequence[Fold]) -> list[list[np.ndarray]]:
    """Scores of the rows that each fold holds out, (m, k), by candidate."""
    # one thread per fold: BLAS threads that wait for each other cost more than such small products
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool,
        progress.progress_bar("Fitting the head", len(parts), "folds") as advance,
    ):
        by_part = []
        for scores in pool.map(lambda part: score(part, candidates), parts):
            by_part.append(scores)
            advance(1)
    return by_part
