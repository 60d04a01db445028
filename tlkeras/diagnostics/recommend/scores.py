"""How well features separate the classes: cross-validated classifiers, and transferability scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tlkeras.heads.heads import make_head
from tlkeras.heads.transferability import measure_h_score, measure_leep, measure_logme, measure_nce
from tlkeras.results import Result

NEIGHBOURS = 5

FoldIndices = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class FoldScore(Result):
    """A score per fold, float (k,)."""

    folds: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return float(self.folds.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over folds."""
        return float(self.folds.std(ddof=1)) if len(self.folds) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Mean and spread."""
        return {"mean": self.mean, "spread": self.spread}


@dataclass(frozen=True, eq=False)
class Scores(Result):
    """Scores of one backbone's features.

    Attributes:
        neighbours: Balanced accuracy of five nearest neighbours by cosine.
        probe: Balanced accuracy of the linear head.
        logme, h_score: Of the standardised features.
        leep, nce: From the predictions of the pretrained classifier; None where there is none.
    """

    neighbours: FoldScore
    probe: FoldScore
    logme: float
    h_score: float
    leep: float | None
    nce: float | None

    @property
    def ranking(self) -> FoldScore:
        """The score that ranks backbones: the mean of both classifiers."""
        return FoldScore((self.neighbours.folds + self.probe.folds) / 2)


def score_features(
    X: np.ndarray,
    codes: np.ndarray,
    folds: FoldIndices,
    source: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Scores:
    """The scores of features on folds that all backbones share.

    Args:
        X: Features, float32 (n, d).
        codes: Classes, int (n,), from 0.
        folds: Rows to fit on and rows held out.
        source: Probabilities of the pretrained classifier's classes, (n, z).
        groups: Group of each row, (n,); the linear head keeps groups apart where it chooses its strength.
    """
    standard = StandardScaler().fit_transform(np.asarray(X, np.float64))
    return Scores(
        neighbours=FoldScore(np.array([_score_knn(X, codes, fit, held) for fit, held in folds])),
        probe=FoldScore(np.array([_score_linear_probe(X, codes, fit, held, groups) for fit, held in folds])),
        logme=measure_logme(standard, codes),
        h_score=measure_h_score(standard, codes),
        leep=None if source is None else measure_leep(source, codes),
        nce=None if source is None else measure_nce(source, codes),
    )


def _score_knn(X: np.ndarray, codes: np.ndarray, fit: np.ndarray, held: np.ndarray) -> float:
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    nearest = KNeighborsClassifier(min(NEIGHBOURS, len(fit))).fit(unit[fit], codes[fit])
    return float(balanced_accuracy_score(codes[held], nearest.predict(unit[held])))


def _score_linear_probe(
    X: np.ndarray, codes: np.ndarray, fit: np.ndarray, held: np.ndarray, groups: np.ndarray | None
) -> float:
    inner = None if groups is None else groups[fit]
    head = make_head("linear", class_weight="balanced").fit(X[fit], codes[fit], groups=inner)
    return float(balanced_accuracy_score(codes[held], head.predict_proba(X[held]).argmax(axis=1)))


class Difference(NamedTuple):
    """A difference of means in standard errors, and its two-sided p-value."""

    errors: float
    probability: float


def compare_folds(first: np.ndarray, second: np.ndarray) -> Difference:
    """The difference of two backbones by the corrected paired t test over folds.

    Nadeau and Bengio, Machine Learning 52, 2003: the training sets of folds overlap, so the variance of their mean is
    1/k + 1/(k - 1) times theirs.

    Args:
        first, second: A score per fold, (k,), of the same folds.
    """
    differences = first - second
    count, mean = len(differences), float(differences.mean())
    if count < 2 or mean == 0:
        return Difference(0.0, 1.0)
    error = float(np.sqrt((1 / count + 1 / (count - 1)) * differences.var(ddof=1)))
    if error == 0:
        return Difference(np.copysign(np.inf, mean), 0.0)
    return Difference(mean / error, float(2 * stats.t.sf(abs(mean) / error, count - 1)))
