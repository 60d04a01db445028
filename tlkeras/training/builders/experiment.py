"""A recipe with all that it is carried out on, the stages of its fine-tuning among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema import FineTuningConfig
from tlkeras.data.tables import TARGET, Dataset
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.features.extraction import FeatureExtractor
from tlkeras.finetuning.auto_stages import Decision, choose_stages
from tlkeras.finetuning.caching_plan import CachingPlan, plan_stages
from tlkeras.finetuning.metrics import METRICS
from tlkeras.finetuning.schedule import Schedule
from tlkeras.training.builders.data import make_recipe_policy


@dataclass(frozen=True)
class FineTuningPlan:
    """How the backbone is fine-tuned."""

    schedule: Schedule
    caching: CachingPlan  # where each stage takes up the frozen work, and the views that are kept of an image
    decisions: tuple[Decision, ...] = ()  # why the stages are as they are, where they were chosen from the data


@dataclass(frozen=True)
class Experiment:
    """A recipe, its images, its frozen network and its fine-tuning: what every step of a run works on."""

    recipe: Recipe
    dataset: Dataset  # the images, with the split of each
    extractor: FeatureExtractor  # the frozen network, weights loaded
    plan: FineTuningPlan | None = None  # None where the backbone stays frozen, and before the images are validated

    def take(self, rows: np.ndarray) -> Experiment:
        """The experiment on some of its images: positions int64 [n], in that order, or a mask bool [n]."""
        return replace(self, dataset=self.dataset.take(rows))


def require_finetuning(recipe: Recipe) -> FineTuningConfig:
    """The section `finetuning`; a RecipeError where there is none."""
    if recipe.finetuning is None:
        raise RecipeError("The recipe must have a section `finetuning`.", recipe.name, "Add `finetuning: {}`.")
    return recipe.finetuning


def check_takes_callbacks(recipe: Recipe) -> None:
    """Raise a RecipeError if a recipe has no epochs to call Keras' callbacks in."""
    if recipe.finetuning is None:
        rule = "Callbacks are called during fine-tuning, and this recipe only fits a head on frozen features."
        raise RecipeError(rule, recipe.name, "Leave them out, or take a recipe that fine-tunes, such as fine_tune.")


def require_plan(experiment: Experiment) -> FineTuningPlan:
    """The plan of an experiment that fine-tunes; RecipeError if the recipe has no section `finetuning`."""
    if experiment.plan is None:
        require_finetuning(experiment.recipe)
        raise ValueError("The experiment was not planned.")
    return experiment.plan


def plan_finetuning(recipe: Recipe, extractor: FeatureExtractor, dataset: Dataset) -> FineTuningPlan | None:
    """The plan for the images of a dataset that is split; None where the recipe does not fine-tune.

    RecipeError if a stage does not suit the backbone or the data.
    """
    if recipe.finetuning is None:
        return None
    images, classes = len(dataset.rows("train")), sum(len(task.class_names) for task in dataset.tasks)
    schedule, decisions = _make_schedule(recipe, extractor, images, classes)
    off = not recipe.features.cache or recipe.finetuning.cache == "off"
    caching = plan_stages(
        schedule,
        extractor.blocks,
        math.prod(extractor.pooled.output_shape[1:]),
        images=images + len(dataset.rows(TARGET)),
        views=recipe.augmentation.views,
        most_views=make_recipe_policy(recipe).size,
        # not what is free at the moment: a resumed run must come to the same plan
        budget_bytes=None if off else int(recipe.cache.budget_gb * 1e9),
    )
    return FineTuningPlan(schedule, caching, decisions)


def check_schedule(recipe: Recipe, extractor: FeatureExtractor) -> None:
    """Make sure that the stages that a recipe names suit its backbone; RecipeError if one does not."""
    if recipe.finetuning is not None and recipe.finetuning.stages is not None:
        _make_schedule(recipe, extractor, 0, 0)


def _make_schedule(
    recipe: Recipe, extractor: FeatureExtractor, images: int, classes: int
) -> tuple[Schedule, tuple[Decision, ...]]:
    """The stages, and the reasons for those that were chosen from the data."""
    options, blocks = require_finetuning(recipe), len(extractor.blocks)
    validated = recipe.data.validation > 0
    stages, keep, choices = options.stages, options.keep, tuple[Decision, ...]()
    if stages is None:
        counts = {"images": images, "classes": classes, "blocks": blocks, "batch_size": options.batch_size}
        suggestion = choose_stages(**counts, validated=validated, probed=True)
        stages, choices = suggestion.stages, suggestion.decisions
        keep = suggestion.keep if recipe.domain_adaptation is None else keep
    problems: list[Any] = []
    for stage in stages:
        if stage.until and not validated:
            problems.append(
                f"stage {stage.name!r} ends at a plateau, which only a validation set shows: set data.validation."
            )
        with collecting(problems):
            stage.count_blocks(blocks)
    with collecting(problems):
        make_recipe_policy(recipe)
    problems += _list_conflicts(recipe)
    if problems:
        raise RecipeError.from_problems("The fine-tuning cannot be carried out:", [str(one) for one in problems])
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


@contextmanager
def collecting(problems: list[Any]) -> Iterator[None]:
    """Within, a TlkerasError ends the block and becomes one of the problems."""
    try:
        yield
    except TlkerasError as error:
        problems.append(error)
