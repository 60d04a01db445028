"""Choosing between adapted models without target labels: scores of what a model says, higher is better."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_TINY = 1e-12
_COMPONENTS = 30  # on more, domains of few rows are told apart by chance
_MOST = 50.0  # times that a row may count: few rows must not decide all


def importance_weights(Xs: np.ndarray, Xt: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return how much more common held-out source rows are in the target, (h,): the ratio of densities, 1 on average.

    The ratio is that of a linear classifier's answers on which domain a row is of, times n / m; it looks at the leading
    principal components.

    Args:
        Xs: Source features that the classifier is fitted on, (n, d).
        Xt: Target features, (m, d).
        held: Source features that are not among these, (h, d).

    Source: Bickel, Brückner and Scheffer, Discriminative Learning for Differing Training and Test Distributions, 2007.
    """
    X, y = np.concatenate([Xs, Xt]), np.repeat([0, 1], [len(Xs), len(Xt)])
    few = min(_COMPONENTS, *X.shape)
    axes = make_pipeline(StandardScaler(), PCA(few, random_state=0), StandardScaler()).fit(X)
    judge = LogisticRegression(max_iter=1000).fit(axes.transform(X), y)
    odds = np.exp(judge.decision_function(axes.transform(held)))
    weights = np.minimum(odds * len(Xs) / len(Xt), _MOST)
    return weights / max(weights.mean(), _TINY)


def importance_weighted_validation(weights: np.ndarray, correct: np.ndarray) -> float:
    """Return the accuracy on held-out source rows, each counting as the target would have it (IWV).

    Args:
        weights: As from `weigh_importance`, (h,).
        correct: Which rows were answered rightly, bool (h,).

    Source: Sugiyama et al., Covariate Shift Adaptation by Importance Weighted Cross Validation, JMLR 2007.
    """
    return float(np.mean(weights * correct))


def deep_embedded_validation(weights: np.ndarray, losses: np.ndarray) -> float:
    """Return minus the risk of deep embedded validation (DEV): the weighted loss with a control variate.

    risk = mean(w l) + eta mean(w) - eta with eta = -cov(w l, w) / var(w).

    Args:
        weights: As from `weigh_importance`, (h,).
        losses: Of held-out source rows, (h,).

    Source: You, Wang, Long and Jordan, Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation, ICML
    2019, algorithm 1.
    """
    weighted = weights * losses
    variance = np.var(weights, ddof=1)
    eta = -np.cov(weighted, weights)[0, 1] / variance if variance > _TINY else 0.0
    return float(-(weighted.mean() + eta * weights.mean() - eta))


def entropy_score(target: np.ndarray) -> float:
    """Return minus the mean entropy of the answers on target rows (m, k); a model that always says the same wins."""
    return float(np.mean(np.sum(target * np.log(target + _TINY), axis=1)))


def mutual_information_score(target: np.ndarray) -> float:
    """Return the entropy of the mean answer less the mean entropy: sure answers of all classes.

    Source: Krause, Perona and Gomes, Discriminative Clustering by Regularized Information Maximization, NIPS 2010.
    """
    mean = target.mean(axis=0)
    return float(-np.sum(mean * np.log(mean + _TINY))) + entropy_score(target)
