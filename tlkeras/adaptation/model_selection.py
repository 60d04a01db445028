"""Model selection without target labels: scores of adapted models, higher is better."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_TINY = 1e-12
_COMPONENTS = 30  # on more, domains of few rows are separated by chance
_MOST = 50.0  # largest weight: a few rows must not decide


def importance_weights(Xs: np.ndarray, Xt: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Density ratio target / source at held-out source rows, (h,), 1 on average.

    The ratio is the odds of a linear classifier of the domain, times n / m, on the leading principal components.

    Args:
        Xs: Source features that the classifier is fitted on, (n, d).
        Xt: Target features, (m, d).
        held: Other source features, (h, d).

    Source: Bickel, Brückner and Scheffer, Discriminative Learning for Differing Training and Test Distributions, 2007.
    """
    X, y = np.concatenate([Xs, Xt]), np.repeat([0, 1], [len(Xs), len(Xt)])
    count = min(_COMPONENTS, *X.shape)
    projection = make_pipeline(StandardScaler(), PCA(count, random_state=0), StandardScaler()).fit(X)
    classifier = LogisticRegression(max_iter=1000).fit(projection.transform(X), y)
    odds = np.exp(classifier.decision_function(projection.transform(held)))
    weights = np.minimum(odds * len(Xs) / len(Xt), _MOST)
    return weights / max(weights.mean(), _TINY)


def importance_weighted_validation(weights: np.ndarray, correct: np.ndarray) -> float:
    """Accuracy on held-out source rows, weighted by the density ratio (IWV).

    Args:
        weights: As from `importance_weights`, (h,).
        correct: Mask of correctly predicted rows, bool (h,).

    Source: Sugiyama et al., Covariate Shift Adaptation by Importance Weighted Cross Validation, JMLR 2007.
    """
    return float(np.mean(weights * correct))


def deep_embedded_validation(weights: np.ndarray, losses: np.ndarray) -> float:
    """Minus the risk of deep embedded validation (DEV): the weighted loss with a control variate.

    risk = mean(w l) + eta mean(w) - eta with eta = -cov(w l, w) / var(w).

    Args:
        weights: As from `importance_weights`, (h,).
        losses: Of held-out source rows, (h,).

    Source: You, Wang, Long and Jordan, Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation, ICML
    2019, algorithm 1.
    """
    weighted = weights * losses
    variance = np.var(weights, ddof=1)
    eta = -np.cov(weighted, weights)[0, 1] / variance if variance > _TINY else 0.0
    return float(-(weighted.mean() + eta * weights.mean() - eta))


def entropy_score(target: np.ndarray) -> float:
    """Minus the mean entropy of probabilities of target rows (m, k); a model that predicts one class for all wins."""
    return float(np.mean(np.sum(target * np.log(target + _TINY), axis=1)))


def mutual_information_score(target: np.ndarray) -> float:
    """Entropy of the mean prediction less the mean entropy: high for confident predictions of all classes.

    Source: Krause, Perona and Gomes, Discriminative Clustering by Regularized Information Maximization, NIPS 2010.
    """
    mean = target.mean(axis=0)
    return float(-np.sum(mean * np.log(mean + _TINY))) + entropy_score(target)
