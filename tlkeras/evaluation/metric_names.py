"""Names of metrics as people read them."""

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
