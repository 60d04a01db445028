"""Choice and calibration of a head by the rows that folds hold out: scores of all folds pooled and compared."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.link_functions import LinkFunction

Hyperparameters = tuple[float, ...]
"""What a head chooses by held-out rows: a strength, or a kernel's gamma and a strength."""

ScoreFold = Callable[[Fold, list[Hyperparameters]], list[np.ndarray]]
"""Scores (m, k) of the rows that a fold holds out, by a fit without them, for each candidate."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate with the least held-out log loss."""

    candidate: Hyperparameters
    scale: np.ndarray  # of its calibration on all held-out rows, (k,); 1 for a head that is not calibrated
    shift: np.ndarray  # likewise; 0
    losses: Mapping[Hyperparameters, float]  # held-out log loss by candidate, after calibration


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

    All candidates are measured: held-out loss can rise on the way from strong regularisation before it falls. Scores
    become probabilities by a scale and shifts if the head is `calibrated`; else they are logits. `weigh` gives the
    weights of rows in the loss.
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


def calibrate(
    link: LinkFunction, scores: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (k,) and shift (k,) such that `link.probabilities(scores * scale + shift)` are calibrated.

    One scale for all classes and a shift for each (Guo et al., ICML 2017, between temperature and vector scaling);
    with two classes, and for each of several labels, that is Platt's sigmoid. One more row, of each class by its share,
    is spread over the targets, so that scores that separate the classes do not end in certainty: Platt's own targets,
    one more row of each class, are by far too unsure for many classes of few rows. Shifts are drawn towards the log
    shares of the classes, with the strength of a standard normal prior, so that a few rows of a class do not move it.

    Scores (n, k) are of rows that the head was not fitted on, with codes and weights (n,).
    """
    if not link.several:
        scale, shift = _fit_scale(scores, codes, weights, scores.shape[1])
        return np.full(scores.shape[1], scale), shift
    pairs = [
        _fit_scale(np.stack([-column, column], axis=1) / 2, code, weights, 2)
        for column, code in zip(scores.T, codes.T, strict=True)
    ]
    scales, shifts = zip(*pairs, strict=True)
    return np.array(scales), np.array([shift[1] - shift[0] for shift in shifts])


def measure_loss(link: LinkFunction, logits: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean log loss of logits (n, k), also over labels where a row has several.

    Weights are those of rows, (n,), or those of each label, (n, k).
    """
    if link.several:
        losses = np.logaddexp(0, np.where(codes == 1, -logits, logits))
        weights = weights if weights.ndim == 2 else np.repeat(weights[:, None], losses.shape[1], axis=1)
        return float(np.mean((losses * weights).sum(axis=0) / weights.sum(axis=0)))
    chosen = log_softmax(logits, axis=1)[np.arange(len(codes)), codes]
    return float(-np.average(chosen, weights=weights))


def _fit_scale(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray, classes: int) -> tuple[float, np.ndarray]:
    """The scale and the shifts, (k,), of least cross entropy with smoothed targets."""
    spread = float(np.sqrt(np.average((scores - scores.mean(axis=1, keepdims=True)).var(axis=1), weights=weights)))
    if not spread > 0:
        spread = 1.0
    unit = (scores - scores.mean(axis=1, keepdims=True)) / spread
    shares = weights / weights.sum()
    targets = _smooth(codes, shares, classes)
    usual = np.log(shares @ targets)
    pull = np.sum(shares**2)  # one over the effective number of rows

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * unit + parameters[1:]
        off = parameters[1:] - usual
        loss = -np.sum(shares[:, None] * targets * log_softmax(logits, axis=1)) + pull * np.sum(off**2) / 2
        gradient = shares[:, None] * (softmax(logits, axis=1) - targets)
        return loss, np.concatenate([[np.sum(gradient * unit)], gradient.sum(axis=0) + pull * off])

    bounds = [(1e-3, None), *[(None, None)] * classes]
    found = minimize(objective, np.r_[1.0, usual], jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(found[0] / spread), found[1:] - found[1:].mean()


def _smooth(codes: np.ndarray, shares: np.ndarray, classes: int) -> np.ndarray:
    """Targets (n, k): those of the rows, and of one more row that is of each class by its share, spread over all. A
    class without rows, which a fold has lacked, has an equal part of that row.
    """
    targets, added = np.eye(classes)[codes], 1 / (len(codes) + 1)
    found = shares @ targets
    found = np.where(found > 0, found, added / classes)
    return (1 - added) * targets + added * found / found.sum()
