"""Rules from measurements to advice: which backbone, frozen or fine-tuned, with the reason for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tlkeras.diagnostics.recommend.measurements import CandidateResult
from tlkeras.diagnostics.recommend.scores import Difference, compare_folds
from tlkeras.finetuning.auto_stages import FEW_PER_CLASS

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
