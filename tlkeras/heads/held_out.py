"""Choice and calibration of a head by the rows that folds hold out: scores of all folds pooled and compared."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from tlkeras import progress
from tlkeras.heads.class_means import count_all_rows, measure_likeness
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.link_functions import LinkFunction

TILT = 0.5  # prior deviation of the logarithm of a temperature, or of a class's own scale

Hyperparameters = tuple[float, ...]
"""What a head chooses by held-out rows: a strength, or a kernel's gamma and a strength."""

ScoreFold = Callable[[Fold, list[Hyperparameters]], list[np.ndarray]]
"""Scores (m, k) of the rows that a fold holds out, by a fit without them, for each candidate."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate with the least held-out log loss."""

    candidate: Hyperparameters
    scale: np.ndarray  # of its calibration on all held-out rows, (k,)
    shift: np.ndarray  # likewise; 0 for a head whose scores are logits
    losses: Mapping[Hyperparameters, float]  # held-out log loss by candidate, after calibration


def choose(
    link: LinkFunction,
    candidates: list[Hyperparameters],
    parts: Sequence[Fold],
    score: ScoreFold,
    weigh: Callable[[LabelledFeatures], np.ndarray],
    *,
    calibrated: bool,
    by_class: bool = False,
) -> Choice | None:
    """The best candidate by the pooled scores of held-out rows; None where none is held out.

    All candidates are measured: held-out loss can rise on the way from strong regularisation before it falls. Scores
    become probabilities by a scale, `by_class` one for each, and shifts if the head is `calibrated`; else they are
    logits, and get a temperature after the choice. `weigh` gives the weights of rows in the loss.
    """
    held = [part.held_rows() for part in parts]
    if not sum(float(rows.weights.sum()) for rows in held):
        return None
    codes, weights = np.concatenate([rows.codes for rows in held]), np.concatenate([rows.weights for rows in held])
    groups = None if held[0].groups is None else np.concatenate([rows.groups for rows in held])
    counted = np.concatenate([weigh(rows) for rows in held])
    by_part = _score_folds(score, candidates, parts)
    by_candidate = [
        LabelledFeatures(np.concatenate(of_parts), codes, weights, groups) for of_parts in zip(*by_part, strict=True)
    ]
    losses: dict[Hyperparameters, float] = {}
    calibrations = []
    for candidate, rows in zip(candidates, by_candidate, strict=True):
        logits = rows.X
        if calibrated:
            scale, shift = calibrate(link, rows, by_class=by_class)
            logits = logits * scale + shift
            calibrations.append((scale, shift))
        losses[candidate] = measure_loss(link, logits, codes, counted)
    best = min(range(len(candidates)), key=lambda number: losses[candidates[number]])
    found = calibrations[best] if calibrated else fit_temperature(link, by_candidate[best])
    return Choice(candidates[best], *found, losses)


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


def calibrate(link: LinkFunction, rows: LabelledFeatures, *, by_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scale (k,) and shift (k,) such that `link.probabilities(scores * scale + shift)` are calibrated.

    One scale for all classes and a shift for each (Guo et al., ICML 2017, between temperature and vector scaling);
    with two classes, and for each of several labels, that is Platt's sigmoid. One more row, of another class than its
    own, is spread over the targets: it takes off what slopes of maximum likelihood are too large by (as the one of each
    of two classes does by Firth, Biometrika 80, 1993; one of each of many classes would make them by far too small).
    Shifts are drawn towards the log shares of the classes, with the strength of a standard normal prior, so that a few
    rows of a class do not move it. Rows of a group count as fewer, by how alike their scores are.

    With `by_class`, for scores of which each comes from a problem of its own, the scale of a class differs from the
    common one by a factor, whose logarithm has a normal prior with a deviation of a half.

    The rows, of which the features are scores (n, k), are some that the head was not fitted on.
    """
    if not link.several:
        return _fit_scale(rows, rows.X.shape[1], by_class and rows.X.shape[1] > 2)
    pairs = [
        _fit_scale(rows._replace(X=np.stack([-column, column], axis=1) / 2, codes=code), 2, False)
        for column, code in zip(rows.X.T, rows.codes.T, strict=True)
    ]
    return np.array([scale[0] for scale, _ in pairs]), np.array([shift[1] - shift[0] for _, shift in pairs])


def fit_temperature(link: LinkFunction, rows: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Scale (k,), and shift (k,) of 0, that calibrate logits (Guo et al., ICML 2017), one scale for each of several
    labels.

    Its logarithm has a normal prior with a deviation of a half, and it is at least 1: fits of folds, which lack rows,
    would have the final one less sure than it may be.
    """
    labels = rows.X.shape[1]
    parts = [rows]
    if link.several:
        parts = [rows._replace(X=rows.X[:, [label]], codes=rows.codes[:, [label]]) for label in range(labels)]
    return np.resize([_fit_temperature(link, part) for part in parts], labels), np.zeros(labels)


def _fit_temperature(link: LinkFunction, rows: LabelledFeatures) -> float:
    known = rows._replace(codes=rows.codes.astype(int).ravel())
    pull = 1 / (count_all_rows(known, measure_likeness(known)) * TILT**2)

    def objective(power: float) -> float:
        return measure_loss(link, rows.X * np.exp(power), rows.codes, rows.weights) + pull * power**2 / 2

    return float(np.exp(minimize_scalar(objective, bounds=(0, 4), method="bounded").x))


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


def _fit_scale(rows: LabelledFeatures, classes: int, by_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """The scales and the shifts, (k,), of least cross entropy with smoothed targets."""
    centred = rows.X - rows.X.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(np.average(centred.var(axis=1), weights=rows.weights))) or 1.0
    unit = (rows.X if by_class else centred) / spread
    shares = rows.weights / rows.weights.sum()
    alone = 1 / count_all_rows(rows, measure_likeness(rows))
    targets = _smooth(rows.codes, shares, classes, alone)
    usual = np.log(shares @ targets)
    pulls = alone * np.repeat([1, 1 / TILT**2], [classes, classes if by_class else 0])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift, tilt = parameters[0], parameters[1 : classes + 1], parameters[classes + 1 :]
        factors = np.exp(tilt) if by_class else np.ones(classes)
        logits = scale * factors * unit + shift
        off = np.concatenate([shift - usual, tilt])
        loss = -np.sum(shares[:, None] * targets * log_softmax(logits, axis=1)) + pulls @ off**2 / 2
        errors = shares[:, None] * (softmax(logits, axis=1) - targets)
        slopes = factors * np.sum(errors * unit, axis=0)
        gradient = np.concatenate([errors.sum(axis=0), scale * slopes if by_class else []])
        return loss, np.concatenate([[slopes.sum()], gradient + pulls * off])

    start = np.concatenate([[1.0], usual, np.zeros(classes if by_class else 0)])
    bounds = [(1e-3, None), *[(None, None)] * (len(start) - 1)]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    shift, tilt = found[1 : classes + 1], found[classes + 1 :]
    return found[0] / spread * (np.exp(tilt) if by_class else np.ones(classes)), shift - shift.mean()


def _smooth(codes: np.ndarray, shares: np.ndarray, classes: int, alone: float) -> np.ndarray:
    """Targets (n, k): those of the rows, and of k / (k - 1) more beside 1 / `alone` of them, which are of each class by
    its share, so that one is of another class than its own where classes are alike. A class without rows, which a fold
    has lacked, has an equal part of them.
    """
    targets = np.eye(classes)[codes]
    found = shares @ targets
    found = np.where(found > 0, found, alone / classes)
    added = alone * classes / (classes - 1)
    added /= 1 + added
    return (1 - added) * targets + added * found / found.sum()
