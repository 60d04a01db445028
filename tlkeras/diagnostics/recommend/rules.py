"""From figures to answers: which backbone, frozen or fine-tuned, and the reason for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlkeras.diagnostics.recommend.scores import compare_folds
from tlkeras.finetuning.auto_stages import FEW_PER_CLASS

NOISE = 0.05
"""Differences that would arise by chance more often than this are called noise."""

_SATURATED = 0.995
_EARLY = 2 / 3


class Recommendation(NamedTuple):
    """A question, what is advised, and why."""

    question: str
    answer: str
    reason: str


@dataclass(frozen=True)
class DatasetProfile:
    """What the advice on fine-tuning rests on.

    Attributes:
        smallest_class: Training images of the rarest class.
        probe: Balanced accuracy of the linear head on the chosen backbone.
        position: Where in the backbone classes separate best, from 0, its first block, to 1, its last.
        minutes: That fine-tuning would take on this machine.
        most_minutes: That it may take.
    """

    smallest_class: int
    probe: float
    position: float
    minutes: float
    most_minutes: float


def choose_best(
    rows: Sequence[dict[str, Any]], most_milliseconds: float | None
) -> tuple[dict[str, Any], Recommendation]:
    """Return the quickest of those within one standard error of the best, and why.

    The one-standard-error rule (Breiman et al., 1984): the cheapest that cannot well be told from the best.

    Args:
        rows: Candidates, best first, with `folds`, `score`, `milliseconds`; `noise` is set in each.
        most_milliseconds: An image may take so long; None: any time.
    """
    allowed = [row for row in rows if most_milliseconds is None or row["milliseconds"] <= most_milliseconds]
    best = (allowed or rows)[0]
    for row in rows:
        row["noise"] = row is not best and compare_folds(best["folds"], row["folds"]).probability >= NOISE
    near = [row for row in allowed if compare_folds(best["folds"], row["folds"]).errors <= 1] or [best]
    chosen = min(near, key=lambda row: row["milliseconds"])
    return chosen, Recommendation(
        "Which backbone?", chosen["name"], _say_why(chosen, best, rows, allowed, most_milliseconds)
    )


def _say_why(
    chosen: dict[str, Any],
    best: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    allowed: Sequence[dict[str, Any]],
    most_milliseconds: float | None,
) -> str:
    reached = f"{chosen['score']['mean']:.3f}"
    if not allowed:
        quickest = min(row["milliseconds"] for row in rows)
        return f"none answers within {most_milliseconds:.4g} ms (the quickest takes {quickest:.1f}): the best of all"
    if chosen is not best:
        gained = f"in {chosen['milliseconds']:.1f} ms instead of {best['milliseconds']:.1f}"
        known = f"within a standard error of {best['score']['mean']:.3f} of {best['name']}"
        return f"it reaches {reached}, {known}, and answers {gained}"
    others = [row["name"] for row in allowed if row["noise"]]
    if others:
        return f"it reaches {reached}; five folds do not prove that {', '.join(others)} is worse"
    return f"it reaches {reached}, which no other does"


def mark_pareto_front(rows: Sequence[dict[str, Any]]) -> None:
    """Set `front` in those than which no other is both quicker and better (Pareto's front)."""
    for row in rows:
        row["front"] = not any(
            other["milliseconds"] <= row["milliseconds"]
            and other["score"]["mean"] >= row["score"]["mean"]
            and (other["milliseconds"], other["score"]["mean"]) != (row["milliseconds"], row["score"]["mean"])
            for other in rows
        )


def judge_similarity(separations: dict[str, float], images: int) -> tuple[float, Recommendation]:
    """Return where in a backbone classes separate best, 0 to 1, and what that says of the source's task.

    What the last blocks serve is the source's own classes. Where blocks before them separate the new classes better,
    by more than a standard error, the tasks are unlike, and the last blocks have to change.

    Args:
        separations: Accuracy of nearest neighbours by block, in order.
        images: That it was counted over.
    """
    names, values = list(separations), list(separations.values())
    top, last = max(values), values[-1]
    error = (top * (1 - top) / images) ** 0.5
    best = max(place for place, value in enumerate(values) if value >= top - error)
    position = best / max(len(names) - 1, 1)
    question = "How similar to ImageNet?"
    if best == len(names) - 1:
        found = f"after the last block neighbours separate the classes as well as anywhere ({last:.3f})"
        return position, Recommendation(question, "similar", found)
    place = f"after {names[best]} ({best + 1} of {len(names)}): {values[best]:.3f}, against {last:.3f} after the last"
    word = "different" if position < _EARLY else "somewhat different"
    return position, Recommendation(question, word, f"neighbours separate the classes best {place}")


def judge_finetuning(situation: DatasetProfile) -> tuple[bool, Recommendation]:
    """Return whether to fine-tune, and why."""
    question = "Frozen or fine-tuned?"
    minutes = f"about {situation.minutes:.0f} minutes" if situation.minutes >= 1.5 else "about a minute"
    if situation.smallest_class < FEW_PER_CLASS:
        few = f"the rarest class has {situation.smallest_class} images to train on, fewer than {FEW_PER_CLASS}"
        return False, Recommendation(question, "frozen", f"{few}: a changed backbone would learn them by heart")
    if situation.probe >= _SATURATED:
        return False, Recommendation(
            question, "frozen", f"the linear head reaches {situation.probe:.3f}: little is left to gain"
        )
    if situation.minutes > situation.most_minutes:
        limit = f"more than the {situation.most_minutes:.0f} allowed"
        return False, Recommendation(question, "frozen", f"fine-tuning would take {minutes} on this machine, {limit}")
    distance = "" if situation.position >= 1 else "; its last blocks serve the source more than your classes"
    left = f"the linear head reaches {situation.probe:.3f}{distance}"
    return True, Recommendation(question, "fine-tuned", f"{left}; it takes {minutes} on this machine")
