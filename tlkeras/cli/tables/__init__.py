"""Results as tables that a person would want to look at; each function prints what the verb of its name returns."""

from tlkeras.cli.tables.backbones import draw_backbone, draw_backbones
from tlkeras.cli.tables.cache import draw_cache, draw_packed, draw_pruned
from tlkeras.cli.tables.check import draw_check
from tlkeras.cli.tables.evaluation import draw_comparison, draw_report
from tlkeras.cli.tables.exporting import draw_export
from tlkeras.cli.tables.jobs import draw_job
from tlkeras.cli.tables.recipes import draw_augmentation, draw_features, draw_list, draw_rates, draw_schedule
from tlkeras.cli.tables.recommend import draw_recommendation
from tlkeras.cli.tables.runs import draw_evaluation, draw_predictions, draw_training, draw_written
from tlkeras.cli.tables.tuning import draw_tuning

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
