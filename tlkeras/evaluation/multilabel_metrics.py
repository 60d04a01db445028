"""Multi-label metrics, of each label and overall, for stacks of weightings (b, n) at once.

Source of the averages: Zhang and Zhou, A Review on Multi-Label Learning Algorithms, IEEE TKDE 2014, section 2.2.
"""

from __future__ import annotations

import numpy as np

from tlkeras.data.tasks import THRESHOLD
from tlkeras.evaluation.ranking_metrics import compute_ranking

_TINY = 1e-15


def compute_multilabel(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, ranked: bool = True
) -> dict[str | tuple[int, str], np.ndarray]:
    """Each metric for each weighting, shape (b,): by name, and of single labels by (index of the label, name).

    A label is predicted from `THRESHOLD` on. F1 of a label that no image has is 0 where it was predicted and NaN where
    it was not; its average precision, and the ROC AUC of a label that all images have or lack, are NaN. Averages over
    labels ("macro") leave out NaN. "micro" takes every label of every image as an example of its own.

    Args:
        targets: 1 for each label that an example has and 0 else, shape (n, k).
        probabilities: Shape (n, k).
        weights: Shape (b, n).
        ranked: Whether metrics that sort scores are computed.
    """
    truth, predictions = targets.astype(np.float64), (probabilities >= THRESHOLD).astype(np.float64)
    total, labels = weights.sum(axis=1), targets.shape[1]
    hits, found = weights @ (truth * predictions), weights @ (truth + predictions)
    f1, support = _divide(2 * hits, found), weights @ truth
    right = truth * probabilities + (1 - truth) * (1 - probabilities)
    whole: dict[str | tuple[int, str], np.ndarray] = {
        "exact_match": weights @ (truth == predictions).all(axis=1) / total,
        "hamming_loss": weights @ (truth != predictions).mean(axis=1) / total,
        "macro_f1": _average(f1),
        "micro_f1": _divide(2 * hits.sum(axis=1), found.sum(axis=1)),
        "weighted_f1": _divide(np.nansum(f1 * support, axis=1), support.sum(axis=1)),
        "log_loss": weights @ -np.log(np.clip(right, _TINY, 1.0)).mean(axis=1) / total,
        "brier_score": weights @ np.square(truth - probabilities).mean(axis=1) / total,
    }
    single = {"precision": _divide(hits, weights @ predictions), "recall": _divide(hits, support), "f1": f1}
    if ranked:
        pairs = [compute_ranking(truth[:, label], probabilities[:, label], weights) for label in range(labels)]
        areas, averages = (np.stack(of_labels, axis=1) for of_labels in zip(*pairs, strict=True))
        micro = compute_ranking(truth.ravel(), probabilities.ravel(), weights, np.arange(truth.size) // labels)
        whole |= {"roc_auc": _average(areas), "mean_average_precision": _average(averages)}
        whole |= {"micro_roc_auc": micro[0], "micro_average_precision": micro[1]}
        single |= {"roc_auc": areas, "average_precision": averages}
    return whole | {(label, name): values[:, label] for label in range(labels) for name, values in single.items()}


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    return above / np.where(below > 0, below, np.nan)


def _average(values: np.ndarray) -> np.ndarray:
    """Mean over labels of the finite values, (b,); NaN where there are none."""
    known = np.isfinite(values)
    return _divide(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))
