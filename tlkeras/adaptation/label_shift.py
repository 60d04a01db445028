"""Label shift: class priors of an unlabelled target domain, and probabilities under them."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

_TINY = 1e-12


def estimate_bbse(predictions: np.ndarray, y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Target priors (k,) by black box shift estimation (BBSE).

    With C[i, j] the share of source rows predicted i and of class j, and q[i] the share of target rows predicted i, the
    weights w of classes solve C w = q, none negative; the priors are w times the source's. `predictions` are
    probabilities of source rows that were not trained on, (n, k), `y` their classes, `target` those of target rows.

    Source: Lipton, Wang and Smola, Detecting and Correcting for Label Shift with Black Box Predictors, ICML 2018.
    """
    indicators = np.eye(predictions.shape[1])
    predicted, truth = indicators[predictions.argmax(axis=1)], indicators[y]
    weights, _ = nnls(predicted.T @ truth / len(y), indicators[target.argmax(axis=1)].mean(axis=0))
    priors = weights * truth.mean(axis=0)
    return priors / max(priors.sum(), _TINY)


def estimate_em(target: np.ndarray, prior: np.ndarray, rounds: int = 1000) -> np.ndarray:
    """Target priors (k,) by expectation maximisation (EM), in `rounds` at most.

    Probabilities of target rows, (m, k), are those under the class priors of the training rows, (k,), and should be
    calibrated.

    Source: Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities,
    Neural Computation 2002, equation 4.
    """
    estimate = prior / prior.sum()
    for _ in range(rounds):
        updated = reweight_priors(target, prior, estimate).mean(axis=0)
        if np.abs(updated - estimate).max() < 1e-9:
            return updated
        estimate = updated
    return estimate


def reweight_priors(probabilities: np.ndarray, prior: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) under the class priors `other` in place of `prior`."""
    scaled = probabilities * (other / other.sum()) / np.maximum(prior / prior.sum(), _TINY)
    return scaled / np.maximum(scaled.sum(axis=1, keepdims=True), _TINY)
