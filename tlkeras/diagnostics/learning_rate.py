"""The learning-rate range test of a recipe's stage: a few steps at rising rates, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.errors import RecipeError, ResourceError, suggest
from tlkeras.features.extraction import CachedActivations
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS, FeatureExtractor
from tlkeras.finetuning.inputs import BatchSource
from tlkeras.finetuning.lr_range_test import HIGHEST, LOWEST, STEPS
from tlkeras.finetuning.network import IMAGES
from tlkeras.finetuning.schedule import Schedule
from tlkeras.plotting.charts import plot_lr_finder
from tlkeras.results import Result
from tlkeras.training import builders
from tlkeras.training.builders.fit_heads import SplitFeatures, fit_heads


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
    skipped.

    Args:
        stage: Its name; the first by default.
        steps: Number of rates to try, from 1e-6 to 1.
        to: The PNG file of the curve; NAME-rates.png in the current folder by default.

    Raises:
        TlkerasError: The recipe does not fine-tune, has no such stage, or the image cannot be written.
    """
    recipe = load_recipe(recipe, overrides)
    image = Path(to or f"{recipe.name}-rates.png")
    prepared = builders.prepare(recipe)
    if not image.parent.is_dir():
        raise ResourceError(f"The folder {image.parent} does not exist.", None, "Make it first.")
    experiment = builders.validate(prepared)
    plan = builders.require_plan(experiment)
    index = _find_stage(plan.schedule, stage)
    with ExitStack() as stack:
        cut = plan.caching.cuts[index]
        taps = _list_taps(experiment.extractor, cut)
        training = experiment.take(experiment.dataset.rows("train"))
        features = stack.enter_context(builders.extract_features(training, taps))
        values, training = dict(zip(taps, features.outputs, strict=True)), training.take(features.kept)
        part = SplitFeatures(np.arange(len(training.dataset)), np.asarray(values[POOLED]))
        heads = fit_heads(partial(builders.make_recipe_head, recipe), training.dataset, {"train": part})
        network = builders.make_network(experiment, heads)
        split = builders.make_split(training, {cut: _make_source(training, cut, values)}, training=True)
        trainer = builders.make_trainer(training, network, (split, None))
        found = trainer.find_rate(index, LOWEST, HIGHEST, steps)
    if found.rates:
        plot_lr_finder(found.rates, found.losses, found.suggestion, image, found.smoothed)
    chosen, drawn = plan.schedule.stages[index], str(image) if found.rates else None
    return LearningRateResult(recipe.name, chosen.name, chosen.learning_rate, image=drawn, **vars(found))


def _find_stage(schedule: Schedule, name: str | None) -> int:
    names = [stage.name for stage in schedule.stages]
    if name is not None and name not in names:
        raise RecipeError("The recipe has no stage of this name.", repr(name), suggest(name, names))
    return 0 if name is None else names.index(name)


def _list_taps(extractor: FeatureExtractor, cut: str) -> tuple[str, ...]:
    """The taps of each image: what the head is fitted on, and what the stage begins with."""
    begins = () if cut in (POOLED, IMAGES) else (cut,)
    recorded = (SOURCE_LOGITS,) if extractor.source_head is not None and cut != IMAGES else ()
    return (POOLED, *begins, *recorded)


def _make_source(training: builders.Experiment, cut: str, values: Mapping[str, CachedActivations]) -> BatchSource:
    if cut == IMAGES:
        return builders.make_image_source(training, augmented=True)
    recorded = [values[SOURCE_LOGITS]] if SOURCE_LOGITS in values else None
    return builders.make_activation_source(training, [values[cut]], recorded)
