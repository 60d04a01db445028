"""The schedule of a recipe's fine-tuning, and a learning rate for one of its stages by a range test."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.diagnostics.augmentation import check_target, write_plot
from tlkeras.errors import RecipeError, ResourceError, suggest
from tlkeras.features.extraction import POOLED, SOURCE_LOGITS, CachedActivations, FeatureExtractor
from tlkeras.finetuning.caching_plan import StagePlan
from tlkeras.finetuning.inputs import BatchSource
from tlkeras.finetuning.lr_range_test import HIGHEST, LOWEST, STEPS
from tlkeras.finetuning.network import IMAGES
from tlkeras.finetuning.schedule import Stage
from tlkeras.plotting.charts import plot_lr_finder
from tlkeras.results import Result
from tlkeras.training import builders
from tlkeras.training.builders.heads import SplitFeatures, fit_heads


@dataclass(frozen=True)
class ScheduledBlock:
    """A block that trains in a stage, its learning rate and its number of parameters."""

    name: str
    learning_rate: float
    parameters: int


@dataclass(frozen=True)
class ScheduledStage:
    """One stage."""

    name: str
    epochs: int
    learning_rate: float
    cut: str  # where the trained part of the network begins
    megabytes: float  # activations that are cached for it, in all views
    saved: float  # share of the work that caching saves, 0 to 1
    reason: str
    parameters: int  # number that train in the backbone
    blocks: tuple[ScheduledBlock, ...]  # those that train, from the head down


@dataclass(frozen=True)
class ChosenValue:
    """A value that was chosen from the data, at STAGE.FIELD or a field of the schedule, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class ScheduleResult(Result):
    """The stages of a fine-tuning, and what is cached for them."""

    name: str
    stages: tuple[ScheduledStage, ...]
    views: int | None  # number of views of an image that are cached; None where nothing is
    precision: str  # of cached activations
    reasons: tuple[ChosenValue, ...]  # values that were chosen from the data, and why


def show_schedule(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> ScheduleResult:
    """The stages of a recipe's fine-tuning: which blocks train, at which rate, and from which cached activations.

    TlkerasError if the recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    recipe = load_recipe_or_source(recipe, overrides)[0]
    dataset, extractor = builders.read_dataset(recipe), builders.build_feature_extractor(recipe)
    experiment = builders.plan(recipe, dataset, extractor)
    plan = builders.require_plan(experiment)
    views, images = plan.caching.views, len(experiment.dataset.rows("train"))
    stages = [
        _describe_stage(stage, planned, extractor, images * (views or 0))
        for stage, planned in zip(plan.schedule.stages, plan.caching.stages, strict=True)
    ]
    reasons = tuple(ChosenValue(*decision) for decision in plan.decisions)
    return ScheduleResult(recipe.name, tuple(stages), views, builders.CACHE_DTYPE, reasons)


def _describe_stage(stage: Stage, planned: StagePlan, extractor: FeatureExtractor, rows: int) -> ScheduledStage:
    multipliers = stage.multipliers(len(extractor.blocks))
    blocks = [
        ScheduledBlock(block.name, stage.learning_rate * multiplier, block.parameters)
        for block, multiplier in zip(extractor.blocks, multipliers, strict=True)
        if multiplier
    ]
    cached, parameters = planned.bytes * rows / 1e6, sum(block.parameters for block in blocks)
    start = (planned.cut, cached, planned.saved, planned.reason)
    return ScheduledStage(stage.name, stage.length, stage.learning_rate, *start, parameters, tuple(blocks[::-1]))


@dataclass(frozen=True)
class LearningRateResult(Result):
    """A learning rate for a stage, suggested by a range test."""

    name: str
    stage: str
    learning_rate: float  # the recipe's own
    suggestion: float | None  # the rate to train at; None where the losses do not show one
    reason: str  # why this rate, or why none
    rates: tuple[float, ...]  # tried, rising
    losses: tuple[float, ...]  # at each rate; they end where the loss diverged
    smoothed: tuple[float, ...]  # the mean of the losses around each rate
    image: str | None  # the PNG file of the curve; None where not one loss was finite


def find_learning_rate(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    stage: str | None = None,
    steps: int = STEPS,
    to: str | Path | None = None,
) -> LearningRateResult:
    """A learning rate for one stage of a recipe, suggested by a range test from the fitted head and pretrained weights.

    Images are not augmented, so that what is computed here is cached for the training too; the stages before are
    skipped. TlkerasError if the recipe does not fine-tune, has no such stage, or the image cannot be written.

    Args:
        stage: Its name; the first by default.
        steps: Number of rates to try, from 1e-6 to 1.
        to: The PNG file of the curve; NAME-rates.png in the current folder by default.
    """
    recipe = load_recipe_or_source(recipe, overrides)[0]
    image = Path(to or f"{recipe.name}-rates.png")
    check_target(image)
    prepared = builders.prepare(recipe)
    if not image.parent.is_dir():
        raise ResourceError(f"The folder {image.parent} does not exist.", None, "Make it first.")
    experiment = builders.validate(prepared)
    plan = builders.require_plan(experiment)
    names = [planned.name for planned in plan.schedule.stages]
    if stage is not None and stage not in names:
        raise RecipeError("The recipe has no stage of this name.", repr(stage), suggest(stage, names))
    index = 0 if stage is None else names.index(stage)
    cut = plan.caching.cuts[index]
    begins = () if cut in (POOLED, IMAGES) else (cut,)
    recorded = (SOURCE_LOGITS,) if experiment.extractor.source_head is not None and cut != IMAGES else ()
    taps = (POOLED, *begins, *recorded)  # what the head is fitted on, and what the stage begins with
    training = experiment.take(experiment.dataset.rows("train"))
    with builders.extract_features(training, taps) as features:
        values, training = dict(zip(taps, features.outputs, strict=True)), training.take(features.kept)
        part = SplitFeatures(np.arange(len(training.dataset)), np.asarray(values[POOLED]))
        heads = fit_heads(partial(builders.make_recipe_head, recipe), training.dataset, {"train": part})
        network = builders.make_network(experiment, heads)
        split = builders.make_split(training, {cut: _make_source(training, cut, values)}, training=True)
        trainer = builders.make_trainer(training, network, (split, None))
        found = trainer.find_rate(index, LOWEST, HIGHEST, steps)
    if found.rates:
        curve = (found.rates, found.losses, found.suggestion)
        write_plot(lambda path: plot_lr_finder(*curve, path, found.smoothed), image)
    chosen, drawn = plan.schedule.stages[index], str(image) if found.rates else None
    return LearningRateResult(recipe.name, chosen.name, chosen.learning_rate, image=drawn, **vars(found))


def _make_source(training: builders.Experiment, cut: str, values: Mapping[str, CachedActivations]) -> BatchSource:
    if cut == IMAGES:
        return builders.make_image_source(training, augmented=True)
    recorded = [values[SOURCE_LOGITS]] if SOURCE_LOGITS in values else None
    return builders.make_activation_source(training, [values[cut]], recorded)
