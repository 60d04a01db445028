"""Model selection without target labels: scores of adapted models, higher is better, and the distance of domains."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_TINY = 1e-12
_COMPONENTS = 30  # on more, domains of few rows are separated by chance
_MOST = 50.0  # largest weight: a few rows must not decide


def measure_a_distance(Xs: np.ndarray, Xt: np.ndarray, seed: int = 0) -> float:
    """A-distance 2 (1 - 2 err) by a linear classifier of the domain: 0 for equal domains, 2 for separable ones.

    It is fitted on four fifths of both domains and evaluated on the rest, both domains with equal weight.

    Source: Ben-David et al., Analysis of Representations for Domain Adaptation, NIPS 2006.
    """
    X, y = np.concatenate([Xs, Xt]), np.repeat([0, 1], [len(Xs), len(Xt)])
    fit, held, y_fit, y_held = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(fit)
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(scaler.transform(fit), y_fit)
    wrong = classifier.predict(scaler.transform(held)) != y_held
    error = np.mean([wrong[y_held == domain].mean() for domain in (0, 1)])
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def importance_weights(Xs: np.ndarray, Xt: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Density ratio target / source at held-out source rows, (h,).

    The ratio is the odds of a linear classifier of the domain, fitted on source features (n, d) and target features
    (m, d), times n / m, on the leading principal components. Its mean over rows of the source is 1 in expectation, not
    in a sample.

    Source: Bickel, Brückner and Scheffer, Discriminative Learning for Differing Training and Test Distributions, 2007.
    """
    X, y = np.concatenate([Xs, Xt]), np.repeat([0, 1], [len(Xs), len(Xt)])
    count = min(_COMPONENTS, *X.shape)
    projection = make_pipeline(StandardScaler(), PCA(count, random_state=0), StandardScaler()).fit(X)
    classifier = LogisticRegression(max_iter=1000).fit(projection.transform(X), y)
    logarithm = classifier.decision_function(projection.transform(held)) + np.log(len(Xs) / len(Xt))
    return np.exp(np.minimum(logarithm, np.log(_MOST)))


def importance_weighted_validation(
    weights: np.ndarray, correct: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Accuracy on held-out source rows, weighted by the density ratio divided by its mean (IWV).

    All are of these rows: `importance_weights`, whether they are predicted correctly, bool (h,), and sample weights.

    Source: Sugiyama et al., Covariate Shift Adaptation by Importance Weighted Cross Validation, JMLR 2007.
    """
    own = np.ones(len(weights)) if sample_weight is None else sample_weight
    return float(np.sum(own * weights * correct) / max(np.sum(own * weights), _TINY))


def deep_embedded_validation(weights: np.ndarray, losses: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Minus the risk of deep embedded validation (DEV): the weighted loss with a control variate.

    risk = mean(w l) + eta mean(w) - eta with eta = -cov(w l, w) / var(w): l is the loss of held-out source rows, and w
    their density ratio as estimated, since with ratios divided by their mean the control variate would be 0.

    Source: You, Wang, Long and Jordan, Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation, ICML
    2019, algorithm 1.
    """
    weighted = weights * losses
    covariances = np.cov(weighted, weights, aweights=sample_weight)
    eta = -covariances[0, 1] / covariances[1, 1] if covariances[1, 1] > _TINY else 0.0
    means = [np.average(values, weights=sample_weight) for values in (weighted, weights)]
    return float(-(means[0] + eta * means[1] - eta))


def entropy_score(target: np.ndarray) -> float:
    """Minus the mean entropy of probabilities of target rows (m, k); a model that predicts one class for all wins."""
    return float(np.mean(np.sum(target * np.log(target + _TINY), axis=1)))


def mutual_information_score(target: np.ndarray) -> float:
    """Entropy of the mean prediction less the mean entropy: high for confident predictions of all classes.

    Source: Krause, Perona and Gomes, Discriminative Clustering by Regularized Information Maximization, NIPS 2010.
    """
    mean = target.mean(axis=0)
    return float(-np.sum(mean * np.log(mean + _TINY))) + entropy_score(target)
