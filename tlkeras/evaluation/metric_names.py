"""What metrics, and what they are compared with, are called where people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
}


def baseline_names(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by name, the figures that stand beside a task's own: of the majority, a linear probe, late fusion."""
    rivals = {
        "always the mean" if result["kind"] == "regression" else "majority baseline": result["baseline"],
        "linear probe": result["probe"],
    }
    rivals |= {f"late fusion: {rule}": figures for rule, figures in result.get("late_fusion", {}).items()}
    return {name: figures for name, figures in rivals.items() if figures}
