"""A pretrained backbone recommended for images and this machine, by measuring: its size, frozen or fine-tuned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlkeras.backbones.catalog import find_backbone
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import BackboneConfig
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.diagnostics.augmentation import check_target
from tlkeras.diagnostics.recommend.candidates import TARGETS, BackboneLimits, Candidate, choose_candidates
from tlkeras.diagnostics.recommend.measurements import CandidateResult, MeasurementContext, make_context, measure_all
from tlkeras.diagnostics.recommend.rules import (
    Recommendation,
    assess_similarity,
    choose_best,
    compare_to_best,
    recommend_by_imagenet,
    recommend_finetuning,
)
from tlkeras.errors import RecipeError, ResourceError
from tlkeras.plotting.charts import plot_pareto_front
from tlkeras.results import Result
from tlkeras.training.builders.variants import find_recipe_backbone, write_recommended


@dataclass(frozen=True)
class ChosenTarget:
    """The target whose limits hold, and where these come from."""

    name: str
    reason: str


@dataclass(frozen=True)
class RecommendResult(Result):
    """The candidates that were measured, and what follows from them."""

    name: str
    facts: dict[str, str]  # on the images, name -> text
    target: ChosenTarget  # the target whose limits hold
    dropped: dict[str, str]  # reason by backbone for those that were not measured
    candidates: tuple[CandidateResult, ...]  # best first
    recommendations: tuple[Recommendation, ...]  # the advice, with reasons
    recipe: str  # YAML to run
    path: str | None  # the file it was written to, if any
    image: str  # the PNG file of Pareto's front


def recommend(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    limits: Mapping[str, Any] | None = None,
    images: int = 1000,
    minutes: float = 60.0,
    image: str | Path | None = None,
    to: str | Path | None = None,
) -> RecommendResult:
    """The pretrained network that suits images and this machine, at which size, frozen or fine-tuned, by measuring.

    Args:
        recipe: A recipe, whose own backbone is measured too, or images alone, as `check` takes them.
        limits: Fields of `BackboneLimits`; the default `target` is "server" with a GPU and "cpu" without one.
        images: Maximum number of images to examine; none is of the test split.
        minutes: Time budget for fine-tuning.
        image: The PNG file of Pareto's front; NAME-backbones.png in the current folder by default.
        to: A recipe file to write, too.

    Raises:
        BackboneError: No backbone meets the limits, or none could be measured.
        DataError: The images cannot be read, or there are no two classes of two.
        RecipeError: The recipe file exists.
        ResourceError: A file cannot be written.
    """
    resolved, own = load_recipe_or_source(recipe, overrides)
    target = "server" if tf.config.list_physical_devices("GPU") else "cpu"
    wanted = BackboneLimits(**{"target": target, **(limits or {})})
    plot, path = Path(image or f"{resolved.name}-backbones.png"), Path(to) if to else None
    check_target(plot)
    if path and path.exists():
        raise RecipeError(f"{path} already exists; tlkeras never overwrites a recipe.", None, "Choose another name.")
    candidates, dropped = choose_candidates(wanted, _find_own_candidate(resolved) if own else None)
    context = make_context(resolved, images)
    measured, failed = measure_all(context, candidates)
    rows = compare_to_best(measured, wanted.milliseconds)
    advice, chosen, finetune = _advise(context, rows, wanted, minutes)
    text = _write_recipe(context, chosen.candidate, finetune, advice)
    points = [
        {"name": row.name, "milliseconds": row.costs.milliseconds, "front": row.front, "chosen": row is chosen}
        | row.scores.ranking.to_dict()
        for row in rows
    ]
    plot_pareto_front(points, plot)
    if path:
        _save(text, path)
    return RecommendResult(
        name=resolved.name,
        facts=_list_facts(context),
        target=ChosenTarget(wanted.target, TARGETS[wanted.target].reason),
        dropped={**dropped, **failed},
        candidates=rows,
        recommendations=advice,
        recipe=text,
        path=str(path) if path else None,
        image=str(plot),
    )


def _find_own_candidate(recipe: Recipe) -> Candidate | None:
    own = find_recipe_backbone(recipe)
    if own is None:
        return None
    entry = find_backbone(own.name)
    return Candidate(entry, own.weights, own.size or entry.default_size)


def _advise(
    context: MeasurementContext, rows: Sequence[CandidateResult], limits: BackboneLimits, minutes: float
) -> tuple[tuple[Recommendation, ...], CandidateResult, bool]:
    """The recommendations, the chosen backbone, and whether to fine-tune it."""
    chosen, which = choose_best(rows, limits.milliseconds)
    position, similarity = assess_similarity(chosen.separations, len(context.rows))
    finetune, frozen = recommend_finetuning(chosen, context.smallest_class, position, minutes)
    return (which, recommend_by_imagenet(rows, chosen), similarity, frozen), chosen, finetune


def _list_facts(context: MeasurementContext) -> dict[str, str]:
    return {
        "images": f"{len(context.dataset):,}, {context.training_images:,} of them to train on",
        "examined": f"{len(context.rows):,}, none of the test split",
        "classes": f"{context.classes}, the rarest with {context.smallest_class:,} images to train on",
        "shorter side": f"{context.shorter_side} pixels, the median",
    }


def _write_recipe(
    context: MeasurementContext, chosen: Candidate, finetune: bool, advice: Sequence[Recommendation]
) -> str:
    """The recipe to run, validated, as YAML below comments with the reasons."""
    sentences = [f"{one.question} {one.answer}: {one.reason}." for one in advice]
    header = [textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="#   ") for text in sentences]
    backbone = BackboneConfig(name=chosen.entry.name, weights=chosen.weights, size=chosen.size)
    validated = bool((context.dataset.given_splits == "validation").any())
    return "\n".join([*header, write_recommended(context.recipe, backbone, finetune=finetune, validated=validated)])


def _save(text: str, path: Path) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ResourceError(f"The recipe cannot be written to {path}.", error.strerror) from None
