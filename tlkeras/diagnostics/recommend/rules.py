"""Rules from measurements to advice: which backbone, frozen or fine-tuned, with the reason for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkeras.diagnostics.recommend.measurements import Measurement
from tlkeras.diagnostics.recommend.scores import compare_folds
from tlkeras.finetuning.auto_stages import FEW_PER_CLASS

NOISE = 0.05
"""Differences with a higher p-value are called noise."""

_SATURATED = 0.995
_EARLY = 2 / 3


@dataclass(frozen=True)
class Recommendation:
    """A question, what is advised, and why."""

    question: str
    answer: str
    reason: str


@dataclass(frozen=True)
class DatasetProfile:
    """The numbers that the advice on fine-tuning rests on.

    Attributes:
        smallest_class: Training images of the rarest class.
        probe: Balanced accuracy of the linear head on the chosen backbone.
        position: Where in the backbone classes separate best, from 0, its first block, to 1, its last.
        minutes: Estimated duration of fine-tuning on this machine.
        max_minutes: The time budget for it.
    """

    smallest_class: int
    probe: float
    position: float
    minutes: float
    max_minutes: float


@dataclass(frozen=True)
class BackboneChoice:
    """The chosen backbone.

    Attributes:
        chosen: One of the measurements.
        noise: For each measurement, whether the best one is better by no more than noise; False for the best.
        recommendation: The choice in words.
    """

    chosen: Measurement
    noise: tuple[bool, ...]
    recommendation: Recommendation


def choose_best(measurements: Sequence[Measurement], max_milliseconds: float | None) -> BackboneChoice:
    """The quickest backbone within one standard error of the best.

    The one-standard-error rule (Breiman et al., 1984): the cheapest that cannot well be distinguished from the best.

    Args:
        measurements: Best first.
        max_milliseconds: Maximum latency of one image; None: any.
    """
    allowed = [one for one in measurements if max_milliseconds is None or one.milliseconds <= max_milliseconds]
    best = (allowed or measurements)[0]
    differences = {one.name: compare_folds(best.scores.ranking, one.scores.ranking) for one in measurements}
    noise = tuple(one is not best and differences[one.name].probability >= NOISE for one in measurements)
    near = [one for one in allowed if differences[one.name].errors <= 1] or [best]
    chosen = min(near, key=lambda one: one.milliseconds)
    if not allowed:
        quickest = min(one.milliseconds for one in measurements)
        reason = f"none takes at most {max_milliseconds:.4g} ms (the quickest takes {quickest:.1f}): the best of all"
    else:
        tied = [one.name for one, is_noise in zip(measurements, noise, strict=True) if is_noise and one in allowed]
        reason = _explain_choice(chosen, best, tied)
    return BackboneChoice(chosen, noise, Recommendation("Which backbone?", chosen.name, reason))


def _explain_choice(chosen: Measurement, best: Measurement, tied: Sequence[str]) -> str:
    reached = f"it reaches {chosen.score:.3f}"
    if chosen is not best:
        latency = f"takes {chosen.milliseconds:.1f} ms instead of {best.milliseconds:.1f}"
        return f"{reached}, within a standard error of {best.score:.3f} of {best.name}, and {latency}"
    if tied:
        return f"{reached}; five folds do not prove that {', '.join(tied)} is worse"
    return f"{reached}, which no other does"


def find_pareto_front(measurements: Sequence[Measurement]) -> list[bool]:
    """For each measurement, whether no other is both quicker and better (Pareto's front)."""
    points = [(one.milliseconds, one.score) for one in measurements]
    return [not any(other != own and other[0] <= own[0] and other[1] >= own[1] for other in points) for own in points]


def recommend_by_imagenet(measurements: Sequence[Measurement], chosen: Measurement) -> Recommendation:
    """The best backbone by accuracy on ImageNet: neither ranking wins everywhere (Renggli et al., CVPR 2022)."""
    question = "And by accuracy on ImageNet?"
    best = max((one.candidate.entry for one in measurements), key=lambda entry: entry.top1 or 0.0)
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

    Args:
        separations: Accuracy of nearest neighbours by block, in order.
        images: The number of images it was measured on.
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


def recommend_finetuning(profile: DatasetProfile) -> tuple[bool, Recommendation]:
    """Whether to fine-tune, and the reason."""
    question = "Frozen or fine-tuned?"
    minutes = f"about {profile.minutes:.0f} minutes" if profile.minutes >= 1.5 else "about a minute"
    reached = f"the linear head reaches {profile.probe:.3f}"
    frozen = None
    if profile.smallest_class < FEW_PER_CLASS:
        few = f"the rarest class has {profile.smallest_class} images to train on, fewer than {FEW_PER_CLASS}"
        frozen = f"{few}: fine-tuning would overfit to them"
    elif profile.probe >= _SATURATED:
        frozen = f"{reached}: little is left to gain"
    elif profile.minutes > profile.max_minutes:
        limit = f"more than the {profile.max_minutes:.0f} allowed"
        frozen = f"fine-tuning would take {minutes} on this machine, {limit}"
    if frozen:
        return False, Recommendation(question, "frozen", frozen)
    distance = "" if profile.position >= 1 else "; its last blocks suit ImageNet better than your classes"
    return True, Recommendation(question, "fine-tuned", f"{reached}{distance}; it takes {minutes} on this machine")
