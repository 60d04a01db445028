"""A pretrained backbone recommended for images and this machine, by measuring: its size, frozen or fine-tuned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.backbones.catalog import find_backbone
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import BackboneConfig
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.diagnostics.augmentation import check_target
from tlkeras.diagnostics.recommend.candidates import TARGETS, BackboneLimits, Candidate, choose_candidates
from tlkeras.diagnostics.recommend.measurements import Measurement, MeasurementContext, make_context, measure_all
from tlkeras.diagnostics.recommend.rules import (
    DatasetProfile,
    Recommendation,
    assess_similarity,
    choose_best,
    find_pareto_front,
    recommend_by_imagenet,
    recommend_finetuning,
)
from tlkeras.errors import RecipeError, ResourceError
from tlkeras.plotting.charts import plot_pareto_front
from tlkeras.results import Result
from tlkeras.training.builders.variants import find_recipe_backbone, write_recommended


@dataclass(frozen=True)
class RecommendOptions:
    """Options of `recommend`.

    Attributes:
        limits: Requirements on the backbones.
        image: The PNG file of Pareto's front.
        own: Measure the recipe's own backbone, too.
        images: Maximum number of images to examine.
        minutes: Time budget for fine-tuning.
        to: The recipe file to write; None writes none.
    """

    limits: BackboneLimits
    image: Path
    own: bool = True
    images: int = 1000
    minutes: float = 60.0
    to: Path | None = None


@dataclass(frozen=True)
class ChosenTarget:
    """The target whose limits hold, and where these come from."""

    name: str
    reason: str


@dataclass(frozen=True)
class FoldScore:
    """Mean and standard deviation of a score over folds."""

    mean: float
    spread: float


@dataclass(frozen=True)
class CandidateResult:
    """A backbone at an image size, with all that was measured of it.

    Attributes:
        name: Backbone and size.
        backbone: Its name in the catalog.
        weights: As in a recipe.
        size: Side length of the images, pixels.
        licence: Of the weights.
        top1: Accuracy on ImageNet in percent, where it is published.
        parameters: Their number.
        score: The mean of the next two, which ranks candidates.
        neighbours: Balanced accuracy of five nearest neighbours.
        probe: Balanced accuracy of the linear head.
        logme, h_score, leep, nce: Transferability scores; the last two are None without a pretrained classifier.
        separations: Accuracy of nearest neighbours by block.
        milliseconds: Latency of one image.
        images_per_second: Throughput.
        megabytes: Size of the weights in float32.
        memory: Peak memory of inference in MB; None where the system does not report it.
        minutes: Estimated duration of fine-tuning.
        finetuning_memory: Peak memory of fine-tuning in MB.
        noise: Whether the best candidate is better by no more than noise.
        front: Whether no other candidate is both quicker and better.
    """

    name: str
    backbone: str
    weights: str
    size: int
    licence: str
    top1: float | None
    parameters: int
    score: FoldScore
    neighbours: FoldScore
    probe: FoldScore
    logme: float
    h_score: float
    leep: float | None
    nce: float | None
    separations: dict[str, float]
    milliseconds: float
    images_per_second: float
    megabytes: float
    memory: float | None
    minutes: float
    finetuning_memory: float | None
    noise: bool
    front: bool


@dataclass(frozen=True)
class RecommendResult(Result):
    """The candidates that were measured, and what follows from them.

    Attributes:
        name: Of the recipe.
        facts: On the images, name -> text.
        target: The target whose limits hold.
        dropped: Reason by backbone for those that were not measured.
        candidates: Best first.
        recommendations: The advice, with reasons.
        recipe: YAML to run.
        path: The file it was written to, if any.
        image: The PNG file of Pareto's front.
    """

    name: str
    facts: dict[str, str]
    target: ChosenTarget
    dropped: dict[str, str]
    candidates: tuple[CandidateResult, ...]
    recommendations: tuple[Recommendation, ...]
    recipe: str
    path: str | None
    image: str


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
        overrides: Values by dotted key.
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
    chosen = BackboneLimits(**{"target": target, **(limits or {})})
    drawn = Path(image) if image else Path(f"{resolved.name}-backbones.png")
    return _recommend(resolved, RecommendOptions(chosen, drawn, own, images, minutes, Path(to) if to else None))


def _recommend(recipe: Recipe, options: RecommendOptions) -> RecommendResult:
    _check_files(options)
    own = find_recipe_backbone(recipe) if options.own else None
    candidates, dropped = choose_candidates(options.limits, None if own is None else _make_candidate(own))
    context = make_context(recipe, options.images)
    found = measure_all(context, candidates)
    choice, front = choose_best(found.measured, options.limits.milliseconds), find_pareto_front(found.measured)
    chosen = choice.chosen
    position, similarity = assess_similarity(chosen.separations, len(context.rows))
    probe = float(chosen.scores.probe.mean())
    profile = DatasetProfile(context.smallest_class, probe, position, chosen.minutes, options.minutes)
    finetune, frozen = recommend_finetuning(profile)
    advice = (choice.recommendation, recommend_by_imagenet(found.measured, chosen), similarity, frozen)
    text = _write_recipe(context, chosen.candidate, finetune, advice)
    rows = [_summarize(*of_one) for of_one in zip(found.measured, choice.noise, front, strict=True)]
    plot_pareto_front([_make_point(row, row.name == chosen.name) for row in rows], options.image)
    if options.to:
        _save(text, options.to)
    return RecommendResult(
        name=recipe.name,
        facts=_list_facts(context),
        target=ChosenTarget(options.limits.target, TARGETS[options.limits.target].reason),
        dropped={**dropped, **found.failed},
        candidates=tuple(rows),
        recommendations=advice,
        recipe=text,
        path=str(options.to) if options.to else None,
        image=str(options.image),
    )


def _check_files(options: RecommendOptions) -> None:
    check_target(options.image)
    if options.to and options.to.exists():
        raise RecipeError(
            f"{options.to} already exists; tlkeras never overwrites a recipe.", None, "Choose another name."
        )


def _make_candidate(backbone: BackboneConfig) -> Candidate:
    entry = find_backbone(backbone.name)
    return Candidate(entry, backbone.weights, backbone.size or entry.default_size)


def _summarize(measurement: Measurement, noise: bool, front: bool) -> CandidateResult:
    candidate, scores, costs = measurement.candidate, measurement.scores, measurement.costs
    return CandidateResult(
        name=candidate.name,
        backbone=candidate.entry.name,
        weights=candidate.weights,
        size=candidate.size,
        licence=candidate.entry.licence,
        top1=candidate.entry.top1,
        parameters=candidate.entry.parameters,
        score=_average(scores.ranking),
        neighbours=_average(scores.neighbours),
        probe=_average(scores.probe),
        logme=scores.logme,
        h_score=scores.h_score,
        leep=scores.leep,
        nce=scores.nce,
        separations=measurement.separations,
        milliseconds=costs.milliseconds,
        images_per_second=costs.images_per_second,
        megabytes=candidate.megabytes,
        memory=costs.megabytes,
        minutes=measurement.minutes,
        finetuning_memory=costs.step_megabytes,
        noise=noise,
        front=front,
    )


def _average(values: np.ndarray) -> FoldScore:
    return FoldScore(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)


def _make_point(row: CandidateResult, chosen: bool) -> Mapping[str, Any]:
    score = {"mean": row.score.mean, "spread": row.score.spread}
    return {"name": row.name, "milliseconds": row.milliseconds, "front": row.front, **score, "chosen": chosen}


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
    """The recipe to run, validated, as YAML below comments with the reasons.

    Raises:
        RecipeError: The recipe's other values do not suit what is advised.
    """
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
