"""From a recipe to the stages of its fine-tuning, and what is kept for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema import FineTuningConfig
from tlkeras.data.sources.folders import Dataset
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.finetuning.auto_stages import Decision, choose_stages
from tlkeras.finetuning.caching_plan import CachingPlan, plan_stages
from tlkeras.finetuning.metrics import METRICS
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.training.builders.adaptation import training_mask
from tlkeras.training.builders.data import make_recipe_policy


def make_schedule(
    recipe: Recipe, extractor: FeatureExtractor, images: int, classes: int
) -> tuple[Schedule, tuple[Decision, ...]]:
    """Return the stages of a recipe that fine-tunes, and the reasons for those that were chosen for it.

    Raises:
        RecipeError: A stage does not suit the backbone or the data.
    """
    options = require_finetuning(recipe)
    validated = recipe.data.validation > 0
    if options.stages is None:
        suggestion = choose_stages(
            images=images,
            classes=classes,
            blocks=len(extractor.blocks),
            batch_size=options.batch_size,
            validated=validated,
            probed=True,
        )
        keep = suggestion.keep if recipe.domain_adaptation is None else options.keep
        stages, choices = suggestion.stages, suggestion.choices
    else:
        stages, keep, choices = tuple(Stage(**stage.model_dump()) for stage in options.stages), options.keep, ()
    problems = []
    for stage in stages:
        if stage.until and not validated:
            problems.append(
                f"stage {stage.name!r} ends at a plateau, which only a validation set shows: set data.validation."
            )
        problems += _list_problems(partial(stage.count_blocks, len(extractor.blocks)))
    problems += [*_list_problems(lambda: make_recipe_policy(recipe)), *_list_conflicts(recipe)]
    if problems:
        raise RecipeError.from_problems("The fine-tuning cannot be carried out:", problems)
    return Schedule(stages, minimise=METRICS[f"val_{options.monitor}"], keep=keep), choices


def _list_conflicts(recipe: Recipe) -> list[str]:
    """Say why a recipe cannot distil from the source, if it is to."""
    if require_finetuning(recipe).regularizer.kind != "lwf":
        return []
    reasons = {
        "what the source says of mixed images was never recorded: set augmentation.mixup to 0 and cutmix to 0": bool(
            recipe.augmentation.mixup or recipe.augmentation.cutmix
        ),
        "the source's classifier follows the last map: leave features.cut out": recipe.features.cut != "last",
        "random weights know nothing to keep: choose others in backbone.weights": recipe.backbone.weights == "none",
    }
    return [f"regularizer lwf: {reason}." for reason, holds in reasons.items() if holds]


def _list_problems(attempt: Callable[[], Any]) -> list[str]:
    try:
        attempt()
    except TlkerasError as error:
        return [str(error)]
    return []


def plan_recipe(
    recipe: Recipe, extractor: FeatureExtractor, dataset: Dataset, splits: np.ndarray
) -> tuple[Schedule, CachingPlan, tuple[Decision, ...]]:
    """Return how a recipe fine-tunes these examples: its stages, what is kept for each, and why.

    Raises:
        RecipeError: A stage does not suit the backbone or the data.
    """
    images, classes = int((splits == "train").sum()), sum(len(task.class_names) for task in dataset.tasks)
    schedule, choices = make_schedule(recipe, extractor, images, classes)
    return schedule, plan_finetuning(recipe, extractor, schedule, int(training_mask(splits).sum())), choices


def plan_finetuning(recipe: Recipe, extractor: FeatureExtractor, schedule: Schedule, images: int) -> CachingPlan:
    """Return which activations are kept for which stage, and in how many views."""
    policy = make_recipe_policy(recipe)
    off = not recipe.features.cache or require_finetuning(recipe).cache == "off"
    return plan_stages(
        schedule,
        extractor.blocks,
        math.prod(extractor.pooled.output_shape[1:]),
        images=images,
        views=recipe.augmentation.views,
        most_views=policy.size,
        # not what is free at the moment: a resumed run must come to the same plan
        budget_bytes=None if off else int(recipe.cache.budget_gb * 1e9),
    )


def require_finetuning(recipe: Recipe) -> FineTuningConfig:
    """Return the section `finetuning`, or raise a RecipeError where there is none."""
    if recipe.finetuning is None:
        raise RecipeError("The recipe must have a section `finetuning`.", recipe.name, "Add `finetuning: {}`.")
    return recipe.finetuning
