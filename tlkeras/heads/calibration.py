"""Calibration of scores: the scale and the shifts that make them logits of probabilities."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from tlkeras.heads.link_functions import LinkFunction


def calibrate(
    link: LinkFunction, scores: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (k,) and shift (k,) such that `link.probabilities(scores * scale + shift)` are calibrated.

    One scale for all classes and a shift for each (Guo et al., ICML 2017, between temperature and vector scaling);
    with two classes, and for each of several labels, that is Platt's sigmoid. One more row, of each class by its share,
    is spread over the targets, so that scores that separate the classes do not end in certainty: Platt's own targets,
    one more row of each class, are by far too unsure for many classes of few rows. Shifts are drawn towards the log
    shares of the classes, with the strength of a standard normal prior, so that a few rows of a class do not move it.

    Args:
        link: The head's link function.
        scores: Of rows that the head was not fitted on, (n, k).
        codes: Targets of the rows, as the link encodes them.
        weights: Of the rows, (n,).
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
    """Targets (n, k): those of the rows, and of one more row that is of each class by its share, spread over all.

    A class without rows, which a fold has lacked, has an equal part of that row.
    """
    targets, added = np.eye(classes)[codes], 1 / (len(codes) + 1)
    found = shares @ targets
    found = np.where(found > 0, found, added / classes)
    return (1 - added) * targets + added * found / found.sum()
