"""From a recipe to the stages of its fine-tuning, and what is kept for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema import FineTuningConfig
from tlkeras.data.tables import TARGET, Dataset
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.finetuning.auto_stages import Decision, choose_stages
from tlkeras.finetuning.caching_plan import CachingPlan, plan_stages
from tlkeras.finetuning.metrics import METRICS
from tlkeras.finetuning.schedule import Schedule
from tlkeras.training.builders.data import make_recipe_policy


def make_schedule(
    recipe: Recipe, extractor: FeatureExtractor, images: int, classes: int
) -> tuple[Schedule, tuple[Decision, ...]]:
    """The stages of a recipe that fine-tunes, and the reasons for those that were chosen from the data.

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
        stages, choices = suggestion.stages, suggestion.decisions
    else:
        stages, keep, choices = options.stages, options.keep, ()
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
    """Sentences on what keeps a recipe from distilling its pretrained classifier."""
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


@dataclass(frozen=True)
class FineTuningPlan:
    """How the backbone is fine-tuned.

    Attributes:
        schedule: The stages.
        caching: Where each stage takes up the frozen work, and the views that are kept of an image.
        decisions: Why the stages are as they are, where they were chosen from the data.
    """

    schedule: Schedule
    caching: CachingPlan
    decisions: tuple[Decision, ...] = ()


def plan_finetuning(recipe: Recipe, extractor: FeatureExtractor, dataset: Dataset) -> FineTuningPlan | None:
    """The plan for the images of a dataset that is split; None where the recipe does not fine-tune.

    Raises:
        RecipeError: A stage does not suit the backbone or the data.
    """
    if recipe.finetuning is None:
        return None
    images, classes = len(dataset.rows("train")), sum(len(task.class_names) for task in dataset.tasks)
    schedule, decisions = make_schedule(recipe, extractor, images, classes)
    caching = _plan_caching(recipe, extractor, schedule, images + len(dataset.rows(TARGET)))
    return FineTuningPlan(schedule, caching, decisions)


def check_schedule(recipe: Recipe, extractor: FeatureExtractor) -> None:
    """Make sure that the stages that a recipe names suit its backbone.

    Raises:
        RecipeError: One does not.
    """
    if recipe.finetuning is not None and recipe.finetuning.stages is not None:
        make_schedule(recipe, extractor, 0, 0)


def _plan_caching(recipe: Recipe, extractor: FeatureExtractor, schedule: Schedule, images: int) -> CachingPlan:
    """The activations that are kept for each stage, and the number of views."""
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
    """The section `finetuning`; a RecipeError where there is none."""
    if recipe.finetuning is None:
        raise RecipeError("The recipe must have a section `finetuning`.", recipe.name, "Add `finetuning: {}`.")
    return recipe.finetuning
