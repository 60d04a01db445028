"""The schedule of a recipe's fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.finetuning.caching_plan import StagePlan
from tlkeras.finetuning.schedule import Stage
from tlkeras.results import Result
from tlkeras.training import builders


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

    Raises:
        TlkerasError: The recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    recipe = load_recipe(recipe, overrides)
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
    return ScheduledStage(
        name=stage.name,
        epochs=stage.length,
        learning_rate=stage.learning_rate,
        cut=planned.cut,
        megabytes=planned.bytes * rows / 1e6,
        saved=planned.saved,
        reason=planned.reason,
        parameters=sum(block.parameters for block in blocks),
        blocks=tuple(blocks[::-1]),
    )
