"""Which pretrained network, frozen or fine-tuned, at which size: measured on these images and this machine."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import yaml
from PIL import Image

from tlkeras.backbones.builder import build_pretrained_classifier
from tlkeras.backbones.catalog import find_backbone
from tlkeras.backbones.weights import why_unavailable
from tlkeras.config.recipe import Recipe, validate_values
from tlkeras.config.schema import FineTuningConfig
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.data.inspection import ValidatedDataset, validate_images
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.diagnostics.augmentation import check_target
from tlkeras.diagnostics.features import LabelledFolds, divide_classes, draw_rows, knn_accuracy_per_block
from tlkeras.diagnostics.recommend.benchmarks import BenchmarkRequest, BenchmarkResult, measure_costs
from tlkeras.diagnostics.recommend.candidates import TARGETS, BackboneLimits, Candidate, choose_candidates
from tlkeras.diagnostics.recommend.rules import (
    DatasetProfile,
    Recommendation,
    choose_best,
    judge_finetuning,
    judge_similarity,
    mark_pareto_front,
)
from tlkeras.diagnostics.recommend.scores import Scores, score_features
from tlkeras.errors import BackboneError, RecipeError, ResourceError, TlkerasError
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS
from tlkeras.finetuning.auto_stages import choose_stages
from tlkeras.plotting.charts import plot_pareto_front
from tlkeras.progress import hide, progress_bar
from tlkeras.training import builders

_LOOKED_AT = 200
_LARGER = 4 / 3
_FEATURES_KEPT = ("precision", "engine", "cache")


@dataclass(frozen=True)
class RecommendOptions:
    """What `recommend` is asked for.

    Attributes:
        limits: What a backbone must meet.
        image: The PNG file of the front.
        own: Measure the recipe's own backbone, too.
        images: To look at, at most.
        minutes: That fine-tuning may take.
        to: The recipe file to write; None writes none.
    """

    limits: BackboneLimits
    image: Path
    own: bool = True
    images: int = 1000
    minutes: float = 60.0
    to: Path | None = None


@dataclass
class _MeasurementContext:
    """What all candidates are measured on."""

    recipe: Recipe
    inspection: ValidatedDataset
    rows: np.ndarray
    shorter_side: int
    training: np.ndarray
    batch: int
    classes: int
    failed: dict[str, str] = field(default_factory=dict)


def recommend(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    limits: Mapping[str, Any] | None = None,
    images: int = 1000,
    minutes: float = 60.0,
    image: str | Path | None = None,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Which pretrained network suits images and this machine, at which size, frozen or fine-tuned, by measuring.

    Args:
        recipe: A recipe, whose own backbone is measured too, or images alone, as `check` takes them.
        overrides: Values by dotted key.
        limits: Of `BackboneLimits`, by name; without a `target` it is "server" with a GPU and "cpu" without one.
        images: To examine, at most; none is of the test split.
        minutes: That fine-tuning may take.
        image: The PNG file of Pareto's front; NAME-backbones.png in the current folder if not given.
        to: The recipe file to write, too.

    Returns:
        `name`; `facts`, of the images, name -> text; `target` and why it limits what; `dropped`, backbone -> reason;
        `candidates`, best first, each with `name`, `backbone`, `weights`, `size`, `licence`, `top1`, `parameters`,
        `score`, `neighbours` and `probe` (mean and spread over folds), `logme`, `h_score`, `leep`, `nce`,
        `milliseconds`, `images_per_second`, `megabytes` (of weights), `memory` (MB at the peak), `minutes` (of
        fine-tuning), `finetuning_memory`, `noise` (no worse than the best but for noise), `front`; `answers`, each with
        `question`, `answer` and `reason`; `recipe`, YAML to run; `path` it was written to, or None; `image`.

    Raises:
        BackboneError: No backbone meets the limits, or none could be measured.
        DataError: The images cannot be read, or there are no two classes of two.
        RecipeError: The recipe to write exists.
        ResourceError: A file cannot be written.
    """
    resolved, own = load_recipe_or_source(recipe, overrides)
    target = "server" if tf.config.list_physical_devices("GPU") else "cpu"
    chosen = BackboneLimits(**{"target": target, **(limits or {})})
    drawn = Path(image) if image else Path(f"{resolved.name}-backbones.png")
    return _recommend(resolved, RecommendOptions(chosen, drawn, own, images, minutes, Path(to) if to else None))


def _recommend(recipe: Recipe, options: RecommendOptions) -> dict[str, Any]:
    _check(options)
    own = _own_candidate(recipe) if options.own else None
    candidates, dropped = choose_candidates(options.limits, own)
    context = _look_at(recipe, options)
    rows = _measure_all(context, candidates)
    best = max(rows, key=lambda row: row["score"]["mean"])
    rows += _measure_all(context, _list_other_sizes(best["candidate"], context.shorter_side), optional=True)
    rows.sort(key=lambda row: -row["score"]["mean"])
    mark_pareto_front(rows)
    chosen, which = choose_best(rows, options.limits.milliseconds)
    answers = [which, _answer_prior(rows, chosen)]
    position, similarity = judge_similarity(chosen["separations"], len(context.rows))
    situation = DatasetProfile(
        _count_smallest(context), chosen["probe"]["mean"], position, chosen["minutes"], options.minutes
    )
    finetune, frozen = judge_finetuning(situation)
    answers += [similarity, frozen]
    text = _write_recipe(context, chosen["candidate"], finetune, answers)
    plot_pareto_front([_describe_point(row, chosen) for row in rows], options.image)
    if options.to:
        _save(text, options.to)
    return {
        "name": recipe.name,
        "facts": _tell_facts(context),
        "target": {"name": options.limits.target, "reason": TARGETS[options.limits.target].reason},
        "dropped": {**dropped, **context.failed},
        "candidates": [_publish(row) for row in rows],
        "answers": [answer._asdict() for answer in answers],
        "recipe": text,
        "path": str(options.to) if options.to else None,
        "image": str(options.image),
    }


def _check(options: RecommendOptions) -> None:
    check_target(options.image)
    if options.to and options.to.exists():
        raise RecipeError("A recipe is never overwritten.", options.to, "Choose another name or move the file.")


def _own_candidate(recipe: Recipe) -> Candidate | None:
    if recipe.backbone.name == NO_BACKBONE:
        return None
    return Candidate(find_backbone(recipe.backbone.name), recipe.backbone.weights, builders.image_size(recipe))


def _look_at(recipe: Recipe, options: RecommendOptions) -> _MeasurementContext:
    inspection = validate_images(builders.read_dataset(recipe))
    splits = builders.split_dataset(recipe, inspection.dataset)
    rows = draw_rows(recipe, splits, options.images)
    divide_classes(recipe, inspection, rows)  # says what is missing before anything long begins
    dataset, task = inspection.dataset, inspection.dataset.tasks[0]
    training = np.flatnonzero(splits == "train")
    classes = len(np.unique(task.strata(dataset.targets[task.name][training])))
    batch = (recipe.finetuning or FineTuningConfig()).batch_size
    return _MeasurementContext(
        recipe, inspection, rows, _median_shorter_side(dataset.paths[rows]), training, batch, classes
    )


def _median_shorter_side(paths: Sequence[str]) -> int:
    """Return the median of the shorter sides of some images, pixels."""
    sizes = []
    for path in paths[:_LOOKED_AT]:
        with Image.open(path) as image:
            sizes.append(min(image.size))
    return int(np.median(sizes))


def _list_other_sizes(best: Candidate, shorter_side: int) -> list[Candidate]:
    """Return the best backbone at a smaller and a larger size, as far as the images have the pixels."""
    sizes = {_round(best.size / _LARGER), min(_round(best.size * _LARGER), max(shorter_side, best.size))}
    least = best.entry.minimum_size
    return [dataclasses.replace(best, size=size) for size in sorted(sizes) if size >= least and size != best.size]


def _round(size: float) -> int:
    """Return a size that the strides of networks divide, as far as images are large enough for that."""
    step = 32 if size >= 96 else 8
    return max(1, round(size / step)) * step


def _measure_all(
    context: _MeasurementContext, candidates: Sequence[Candidate], optional: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each candidate that can be measured; the others are noted with the reason.

    Raises:
        BackboneError: None could be measured.
    """
    rows, failed = [], {}
    with progress_bar("Comparing backbones", len(candidates), "backbones") as advance:
        for candidate in candidates:
            try:
                with hide():
                    rows.append(_measure(context, candidate))
            except TlkerasError as error:
                failed[candidate.name] = str(error)
            gc.collect()  # one backbone at a time in memory
            advance(1)
    context.failed |= failed
    if not rows and not optional:
        problems = [f"{name}: {reason}" for name, reason in failed.items()]
        raise BackboneError.from_problems("No backbone could be measured:", problems)
    return rows


def _measure(context: _MeasurementContext, candidate: Candidate) -> dict[str, Any]:
    recipe = validate_values(_freeze(_draft(context.recipe, candidate)), context.recipe.name)
    classed, depths = _extract(context, recipe, candidate)
    source = np.exp(depths.pop(SOURCE_LOGITS)[classed.known]) if SOURCE_LOGITS in depths else None
    features = depths.pop(POOLED)[classed.known]
    scores = score_features(features, classed.codes, classed.folds, source)
    unfreeze, steps = _plan_finetuning(context, len(depths))
    question = BenchmarkRequest(candidate.entry.name, candidate.size, max(context.classes, 2), unfreeze, context.batch)
    costs = measure_costs(question)
    if isinstance(costs, str):
        raise BackboneError("A backbone's costs must be measurable.", f"{candidate.name}: {costs}")
    return {
        "candidate": candidate,
        "separations": knn_accuracy_per_block(classed, depths),
        **_list_figures(candidate, scores, costs),
        "minutes": (steps * costs.step_seconds + len(context.inspection.dataset) / costs.images_per_second) / 60,
    }


def _plan_finetuning(context: _MeasurementContext, blocks: int) -> tuple[int, int]:
    """Return how many blocks `stages: auto` would train at most, and in how many steps."""
    suggestion = choose_stages(
        images=len(context.training),
        classes=context.classes,
        blocks=blocks,
        batch_size=context.batch,
        validated=True,
        probed=True,
    )
    unfreeze = suggestion.stages[-1].unfreeze
    epochs = sum(int(stage.epochs or 0) for stage in suggestion.stages)
    return blocks if unfreeze == "all" else int(unfreeze), epochs * math.ceil(len(context.training) / context.batch)


def _extract(
    context: _MeasurementContext, recipe: Recipe, candidate: Candidate
) -> tuple[LabelledFolds, dict[str, np.ndarray]]:
    extractor = builders.build_feature_extractor(recipe)
    if candidate.weights != "none" and why_unavailable(candidate.entry, candidate.weights, top=True) is None:
        try:
            head = build_pretrained_classifier(candidate.entry.name, extractor.backbone, candidate.weights)
            extractor = dataclasses.replace(extractor, source_head=head)
        except BackboneError:
            pass  # a file without the classifier, or a family whose classifier follows no map
    depths, rows = builders.extract_depths(recipe, extractor, context.inspection, context.rows)
    return divide_classes(recipe, context.inspection, rows), depths


def _list_figures(candidate: Candidate, scores: Scores, costs: BenchmarkResult) -> dict[str, Any]:
    entry = candidate.entry
    return {
        "name": candidate.name,
        "backbone": entry.name,
        "weights": candidate.weights,
        "size": candidate.size,
        "licence": entry.licence,
        "top1": entry.top1,
        "parameters": entry.parameters,
        "folds": scores.ranking,
        "score": _spread(scores.ranking),
        "neighbours": _spread(scores.neighbours),
        "probe": _spread(scores.probe),
        "logme": scores.logme,
        "h_score": scores.h_score,
        "leep": scores.leep,
        "nce": scores.nce,
        "milliseconds": costs.milliseconds,
        "images_per_second": costs.images_per_second,
        "megabytes": candidate.megabytes,
        "memory": costs.megabytes,
        "finetuning_memory": costs.step_megabytes,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "spread": float(values.std(ddof=1)) if len(values) > 1 else 0.0}


def _publish(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("candidate", "folds")}


def _answer_prior(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> Recommendation:
    """Name the best by accuracy on ImageNet, too: neither ranking alone wins everywhere (Renggli et al., CVPR 2022)."""
    known = [row for row in rows if row["top1"]]
    question = "And by accuracy on ImageNet?"
    if not known:
        return Recommendation(question, "unknown", "no candidate has a published figure")
    prior = max(known, key=lambda row: row["top1"])
    if prior["backbone"] == chosen["backbone"]:
        return Recommendation(question, "the same", f"{prior['backbone']}: {prior['top1']} %")
    advice = f"{prior['top1']} %; where the last point matters, fine-tune both and compare"
    return Recommendation(question, prior["backbone"], advice)


def _count_smallest(context: _MeasurementContext) -> int:
    dataset, task = context.inspection.dataset, context.inspection.dataset.tasks[0]
    targets = dataset.targets[task.name][context.training]
    _, counts = np.unique(task.strata(targets)[task.is_labelled(targets)], return_counts=True)
    return int(counts.min()) if len(counts) else 0


def _tell_facts(context: _MeasurementContext) -> dict[str, str]:
    dataset = context.inspection.dataset
    return {
        "images": f"{len(dataset):,}, {len(context.training):,} of them to train on",
        "looked at": f"{len(context.rows):,}, none of the test split",
        "classes": f"{context.classes}, the rarest with {_count_smallest(context):,} images to train on",
        "shorter side": f"{context.shorter_side} pixels, the median",
    }


def _draft(recipe: Recipe, candidate: Candidate) -> dict[str, Any]:
    """Return the values of the recipe with another backbone, read at its end."""
    values = json.loads(recipe.model_dump_json(exclude_defaults=True))
    values["backbone"] = {"name": candidate.entry.name, "weights": candidate.weights, "size": candidate.size}
    features = {key: value for key, value in values.get("features", {}).items() if key in _FEATURES_KEPT}
    return {**values, "features": features}


def _freeze(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without all that would change what a linear head on frozen features is measured on."""
    return {key: value for key, value in values.items() if key not in ("mapping", "finetuning", "domains", "tuning")}


def _write_recipe(
    context: _MeasurementContext, chosen: Candidate, finetune: bool, answers: Sequence[Recommendation]
) -> str:
    """Return the recipe to run, which has been validated, with the reasons above it.

    Raises:
        RecipeError: The recipe's other values do not go with what is advised.
    """
    values = _draft(context.recipe, chosen)
    values.pop("tuning", None)
    if not finetune:
        values.pop("finetuning", None)
    elif "finetuning" not in values:
        values["finetuning"] = {"stages": "auto"}
        if not (context.inspection.dataset.splits == "validation").any():
            values["data"].setdefault("validation", 0.15)
    values = {key: value for key, value in values.items() if value != {}}
    validate_values(values, context.recipe.name)
    told = [f"{answer.question} {answer.answer}: {answer.reason}." for answer in answers]
    receipt = [textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="#   ") for text in told]
    return "\n".join(receipt) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _save(text: str, path: Path) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ResourceError("The recipe must be writable.", f"{path} ({error.strerror})") from None


def _describe_point(row: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "milliseconds", "front")
    return {key: row[key] for key in keys} | row["score"] | {"chosen": row is chosen}
