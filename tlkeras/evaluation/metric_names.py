"""Names of metrics, and missing intervals, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlkeras.evaluation.intervals import Estimate

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "exact_match": "exact match",
    "hamming_loss": "Hamming loss",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "micro_f1": "micro F1",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "roc_auc": "ROC AUC",
    "micro_roc_auc": "micro ROC AUC",
    "average_precision": "average precision",
    "mean_average_precision": "mean average precision",
    "micro_average_precision": "micro average precision",
    "log_loss": "log loss",
    "brier_score": "Brier score",
    "r2": "R2",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "adaptive_ece": "adaptive calibration error",
}


def explain_missing(metrics: Mapping[str, Estimate]) -> list[str]:
    """A sentence for each reason why metrics have no interval."""
    return explain_reasons({name: estimate.reason for name, estimate in metrics.items()})


def explain_reasons(reasons: Mapping[str, str]) -> list[str]:
    """A sentence for each reason, "" for none, with the metrics that share it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason:
            by_reason.setdefault(reason, []).append(METRIC_NAMES.get(name, name.replace("_", " ")))
    return [f"No interval of {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
