"""The verbs: each a function, and each a command of the same name."""

from tlkeras.api.exporting import export
from tlkeras.api.features import extract_features
from tlkeras.api.feeding import feed
from tlkeras.api.judging import compare, report
from tlkeras.api.networks import backbones, show_backbone
from tlkeras.api.packing import pack
from tlkeras.api.recipes import (
    check,
    copy_recipe,
    list_recipes,
    show_augmentation,
    show_features,
    show_rates,
    show_schedule,
)
from tlkeras.api.running import RUNS, evaluate, predict, predict_in_shards, predict_to_file, resume, train
from tlkeras.api.serving import predict_remotely, serve
from tlkeras.api.store import list_cache, prune_cache
from tlkeras.api.tuning import recommend, report_tuning, tune

__all__ = [
    "RUNS",
    "backbones",
    "check",
    "compare",
    "copy_recipe",
    "evaluate",
    "export",
    "extract_features",
    "feed",
    "list_cache",
    "list_recipes",
    "pack",
    "predict",
    "predict_in_shards",
    "predict_remotely",
    "predict_to_file",
    "prune_cache",
    "recommend",
    "report",
    "report_tuning",
    "resume",
    "serve",
    "show_augmentation",
    "show_backbone",
    "show_features",
    "show_rates",
    "show_schedule",
    "train",
    "tune",
]
