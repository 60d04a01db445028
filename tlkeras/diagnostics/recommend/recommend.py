"""A pretrained backbone recommended for images and this machine, by measuring: its size, frozen or fine-tuned."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlkeras.backbones.catalog import find_backbone
from tlkeras.config.frames import Frame
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import BackboneConfig
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.diagnostics.augmentation import check_target, write_plot
from tlkeras.diagnostics.recommend.candidates import TARGETS, BackboneLimits, Candidate, choose_candidates
from tlkeras.diagnostics.recommend.measurements import (
    CandidateResult,
    Difference,
    MeasurementContext,
    compare_folds,
    make_context,
    measure_all,
)
from tlkeras.errors import RecipeError, ResourceError
from tlkeras.finetuning.auto_stages import FEW_PER_CLASS
from tlkeras.plotting.charts import plot_pareto_front
from tlkeras.results import Result
from tlkeras.training.builders.variants import find_recipe_backbone, write_recommended

NOISE = 0.05  # differences with a higher p-value are called noise
_SATURATED = 0.995
_EARLY = 2 / 3


@dataclass(frozen=True)
class Recommendation:
    """A question, what is advised, and why."""

    question: str
    answer: str
    reason: str


def choose_best(
    candidates: Sequence[CandidateResult], max_milliseconds: float | None
) -> tuple[CandidateResult, Recommendation]:
    """The quickest backbone within one standard error of the best, and the reason.

    The one-standard-error rule (Breiman et al., 1984): the cheapest that cannot well be distinguished from the best.
    The candidates are in the order of `compare_to_best`, best first.
    """
    allowed = _list_allowed(candidates, max_milliseconds)
    best = (allowed or candidates)[0]
    near = [one for one in allowed if _compare(best, one).errors <= 1] or [best]
    chosen = min(near, key=lambda one: one.costs.milliseconds)
    reached = f"it reaches {chosen.scores.ranking.mean:.3f}"
    tied = ", ".join(one.name for one in allowed if one.noise)
    if not allowed:
        quickest = min(one.costs.milliseconds for one in candidates)
        reason = f"none takes at most {max_milliseconds:.4g} ms (the quickest takes {quickest:.1f}): the best of all"
    elif chosen is not best:
        near_best = f"within a standard error of {best.scores.ranking.mean:.3f} of {best.name}"
        latency = f"takes {chosen.costs.milliseconds:.1f} ms instead of {best.costs.milliseconds:.1f}"
        reason = f"{reached}, {near_best}, and {latency}"
    else:
        reason = f"{reached}{f'; five folds do not prove that {tied} is worse' if tied else ', which no other does'}"
    return chosen, Recommendation("Which backbone?", chosen.name, reason)


def compare_to_best(
    candidates: Sequence[CandidateResult], max_milliseconds: float | None
) -> tuple[CandidateResult, ...]:
    """The candidates, best first, with `noise` and `front` (Pareto's) as they compare to the best and to all."""
    best = (_list_allowed(candidates, max_milliseconds) or candidates)[0]
    points = [(one.costs.milliseconds, one.scores.ranking.mean) for one in candidates]
    return tuple(
        replace(
            one,
            noise=one is not best and _compare(best, one).probability >= NOISE,
            front=not any(other != own and other[0] <= own[0] and other[1] >= own[1] for other in points),
        )
        for one, own in zip(candidates, points, strict=True)
    )


def _list_allowed(candidates: Sequence[CandidateResult], max_milliseconds: float | None) -> list[CandidateResult]:
    return [one for one in candidates if max_milliseconds is None or one.costs.milliseconds <= max_milliseconds]


def _compare(best: CandidateResult, other: CandidateResult) -> Difference:
    return compare_folds(best.scores.ranking.folds, other.scores.ranking.folds)


def recommend_by_imagenet(candidates: Sequence[CandidateResult], chosen: CandidateResult) -> Recommendation:
    """The best backbone by accuracy on ImageNet: neither ranking wins everywhere (Renggli et al., CVPR 2022)."""
    question = "And by accuracy on ImageNet?"
    best = max((one.candidate.entry for one in candidates), key=lambda entry: entry.top1 or 0.0)
    if not best.top1:
        return Recommendation(question, "unknown", "no candidate has a published accuracy")
    if best.name == chosen.candidate.entry.name:
        return Recommendation(question, "the same", f"{best.name}: {best.top1} %")
    advice = f"{best.top1} %; where the last point matters, fine-tune both and compare"
    return Recommendation(question, best.name, advice)


def assess_similarity(separations: dict[str, float], images: int) -> tuple[float, Recommendation]:
    """Where in a backbone classes separate best, 0 to 1, and what that means for the similarity to ImageNet.

    The last blocks serve the classes that the backbone was pretrained on. Where blocks before them separate the new
    classes better, by more than a standard error, the tasks differ, and the last blocks have to change.
    """
    names, values = list(separations), list(separations.values())
    top, last = max(values), values[-1]
    error = (top * (1 - top) / images) ** 0.5
    best = max(number for number, value in enumerate(values) if value >= top - error)
    position = best / max(len(names) - 1, 1)
    question = "How similar to ImageNet?"
    if best == len(names) - 1:
        found = f"after the last block neighbours separate the classes as well as anywhere ({last:.3f})"
        return position, Recommendation(question, "similar", found)
    block = f"after {names[best]} ({best + 1} of {len(names)}): {values[best]:.3f}, against {last:.3f} after the last"
    word = "different" if position < _EARLY else "somewhat different"
    return position, Recommendation(question, word, f"neighbours separate the classes best {block}")


def recommend_finetuning(
    chosen: CandidateResult, smallest_class: int, position: float, max_minutes: float
) -> tuple[bool, Recommendation]:
    """Whether to fine-tune, and the reason.

    It depends on the training images of the rarest class, and on where in the backbone classes separate best, from 0,
    its first block, to 1, its last.
    """
    minutes = f"about {chosen.minutes:.0f} minutes" if chosen.minutes >= 1.5 else "about a minute"
    reached = f"the linear head reaches {chosen.scores.probe.mean:.3f}"
    if smallest_class < FEW_PER_CLASS:
        few = f"the rarest class has {smallest_class} images to train on, fewer than {FEW_PER_CLASS}"
        reason = f"{few}: fine-tuning would overfit to them"
    elif chosen.scores.probe.mean >= _SATURATED:
        reason = f"{reached}: little is left to gain"
    elif chosen.minutes > max_minutes:
        reason = f"fine-tuning would take {minutes} on this machine, more than the {max_minutes:.0f} allowed"
    else:
        distance = "" if position >= 1 else "; its last blocks suit ImageNet better than your classes"
        reason = f"{reached}{distance}; it takes {minutes} on this machine"
        return True, Recommendation("Frozen or fine-tuned?", "fine-tuned", reason)
    return False, Recommendation("Frozen or fine-tuned?", "frozen", reason)


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
    recipe: str | Path | Recipe | Frame,
    overrides: Mapping[str, Any] | None = None,
    *,
    limits: Mapping[str, Any] | None = None,
    images: int = 1000,
    minutes: float = 60.0,
    image: str | Path | None = None,
    to: str | Path | None = None,
) -> RecommendResult:
    """The pretrained network that suits images and this machine, at which size, frozen or fine-tuned, by measuring.

    BackboneError if no backbone meets the limits or none could be measured, DataError if the images cannot be read or
    have no two classes of two, RecipeError if the recipe file exists, ResourceError if a file cannot be written.

    Args:
        recipe: A recipe, whose own backbone is measured too, or images alone, as `check` takes them.
        limits: Fields of `BackboneLimits`; the default `target` is "server" with a GPU and "cpu" without one.
        images: Maximum number of images to examine; none is of the test split.
        minutes: Time budget for fine-tuning.
        image: The PNG file of Pareto's front; NAME-backbones.png in the current folder by default.
        to: A recipe file to write, too.
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
    chosen, which = choose_best(rows, wanted.milliseconds)
    position, similarity = assess_similarity(chosen.separations, len(context.rows))
    finetune, frozen = recommend_finetuning(chosen, context.smallest_class, position, minutes)
    advice = (which, recommend_by_imagenet(rows, chosen), similarity, frozen)
    text = _write_recipe(context, chosen.candidate, finetune, advice)
    points = [
        {"name": row.name, "milliseconds": row.costs.milliseconds, "front": row.front, "chosen": row is chosen}
        | row.scores.ranking.to_dict()
        for row in rows
    ]
    write_plot(partial(plot_pareto_front, points), plot)
    if path:
        _save(text, path)
    limit, left_out = ChosenTarget(wanted.target, TARGETS[wanted.target].reason), {**dropped, **failed}
    written = str(path) if path else None
    return RecommendResult(
        resolved.name, _list_facts(context), limit, left_out, rows, advice, recipe=text, path=written, image=str(plot)
    )


def _find_own_candidate(recipe: Recipe) -> Candidate | None:
    own = find_recipe_backbone(recipe)
    if own is None:
        return None
    entry = find_backbone(own.name)
    return Candidate(entry, own.weights, own.size or entry.default_size)


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
