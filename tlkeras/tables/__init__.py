"""Results as tables that a person would want to look at; each function prints what the verb of its name returns."""

from tlkeras.tables.exporting import draw_export
from tlkeras.tables.jobs import draw_job
from tlkeras.tables.judging import draw_comparison, draw_report
from tlkeras.tables.networks import draw_backbone, draw_backbones
from tlkeras.tables.pictures import draw_check
from tlkeras.tables.recipes import draw_augmentation, draw_features, draw_list, draw_rates, draw_schedule
from tlkeras.tables.recommendation import draw_recommendation
from tlkeras.tables.running import draw_evaluation, draw_predictions, draw_training, draw_written
from tlkeras.tables.store import draw_cache, draw_packed, draw_pruned
from tlkeras.tables.tuning import draw_tuning

__all__ = [
    "draw_augmentation",
    "draw_backbone",
    "draw_backbones",
    "draw_cache",
    "draw_check",
    "draw_comparison",
    "draw_evaluation",
    "draw_export",
    "draw_features",
    "draw_job",
    "draw_list",
    "draw_packed",
    "draw_predictions",
    "draw_pruned",
    "draw_rates",
    "draw_recommendation",
    "draw_report",
    "draw_schedule",
    "draw_training",
    "draw_tuning",
    "draw_written",
]
