"""Transferability scores: how well features, or a source head's predictions, would serve new classes, without a fit.

They rank backbones at little cost and have no error bars.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

_STEPS = 11
_CLOSE = 1e-3
_TINY = 1e-5


def measure_logme(X: np.ndarray, codes: np.ndarray, *, intercept: bool = True) -> float:
    """LogME: the log maximum evidence per image, averaged over classes, each against the rest.

    You et al., ICML 2021 (LogME), with the update of alpha and beta of You et al., 2021 (Ranking and Tuning), and with
    the evidence's term (D - k)/2 log alpha for the D - k directions in which features do not vary, which the published
    code omits. With an `intercept`, features and indicators are centred: else features would have to say how frequent a
    class is. Standardise the features (n, d) of all models alike; codes are classes, int (n,), from 0.
    """
    X = np.asarray(X, np.float64)
    targets = _one_hot(codes)
    if intercept:
        X, targets = X - X.mean(axis=0), targets - targets.mean(axis=0)
    rows, width = X.shape
    left, singular, _ = np.linalg.svd(X, full_matrices=False)
    kept = singular > singular[0] * max(X.shape) * np.finfo(np.float64).eps
    left, sigma = left[:, kept], singular[kept] ** 2
    evidences = [_maximise_evidence(left.T @ y, float(y @ y), sigma, rows, width) for y in targets.T]
    return float(np.mean(evidences))


def _maximise_evidence(x: np.ndarray, square: float, sigma: np.ndarray, rows: int, width: int) -> float:
    """Evidence per row of one target, given its coordinates `x` along the left singular vectors."""
    alpha = beta = 1.0
    outside = max(square - float(x @ x), 0.0)
    for _ in range(_STEPS):
        ratio = alpha / beta
        gamma = float(np.sum(sigma / (sigma + ratio)))
        size, error = _measure_solution(x, sigma, ratio, outside)
        alpha, beta = gamma / (size + _TINY), (rows - gamma) / (error + _TINY)
        if abs(alpha / beta - ratio) <= _CLOSE * ratio:
            break
    size, error = _measure_solution(x, sigma, alpha / beta, outside)
    determinant = float(np.sum(np.log(alpha + beta * sigma))) + (width - len(sigma)) * np.log(alpha)
    evidence = width / 2 * np.log(alpha) + rows / 2 * np.log(beta) - determinant / 2
    evidence -= beta / 2 * error + alpha / 2 * size + rows / 2 * np.log(2 * np.pi)
    return float(evidence / rows)


def _measure_solution(x: np.ndarray, sigma: np.ndarray, ratio: float, outside: float) -> tuple[float, float]:
    """Squared lengths of the solution's weights and of its residual."""
    size = float(np.sum(sigma * x**2 / (sigma + ratio) ** 2))
    return size, float(np.sum(x**2 / (1 + sigma / ratio) ** 2)) + outside


def measure_h_score(X: np.ndarray, codes: np.ndarray) -> float:
    """Regularised H-score: the distance between class means in units of the features' scatter.

    Ibrahim et al., ECML 2022: trace of the inverse Ledoit-Wolf covariance times the covariance of class means, times
    one less the shrinkage. From 0; more is better. Features are (n, d), codes int (n,), from 0.
    """
    X = np.asarray(X, np.float64)
    X = X - X.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(X, assume_centered=True)
    members = _one_hot(codes)
    means = (members.T @ X) / members.sum(axis=0)[:, None]
    between = (means * members.sum(axis=0)[:, None]).T @ means / len(X)
    return float((1 - shrinkage) * np.trace(np.linalg.solve(covariance + _TINY * np.eye(len(between)), between)))


def measure_leep(source: np.ndarray, codes: np.ndarray) -> float:
    """LEEP: the log expected empirical prediction of classes from a source head; below 0, more is better.

    Nguyen et al., ICML 2020: P(y|z) is counted with the source's probabilities as weights; the score is the mean
    logarithm of the probability that it then gives to each image's class. The source's probabilities are (n, z), codes
    int (n,), from 0.
    """
    source = np.asarray(source, np.float64)
    joint = _one_hot(codes).T @ source
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    expected = np.sum(conditional[codes] * source, axis=1)
    return float(np.mean(np.log(np.maximum(expected, np.finfo(np.float64).tiny))))


def measure_nce(source: np.ndarray, codes: np.ndarray) -> float:
    """NCE: minus the entropy of the classes given the source's most probable class, in nats; at most 0.

    Tran et al., ICCV 2019. Arguments are those of `measure_leep`.
    """
    _, predictions = np.unique(np.argmax(source, axis=1), return_inverse=True)
    joint = _one_hot(codes).T @ _one_hot(predictions) / len(codes)
    marginal = joint.sum(axis=0)
    counted = joint > 0
    return float(np.sum(joint[counted] * np.log((joint / marginal)[counted])))


def _one_hot(codes: np.ndarray) -> np.ndarray:
    return np.eye(int(codes.max()) + 1)[codes]
