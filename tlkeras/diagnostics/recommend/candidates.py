"""Which backbones come into question: those that meet the limits, whose weights can be had, best prior first."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tlkeras.backbones.catalog import BackboneInfo, find_backbone, select_backbones
from tlkeras.backbones.weights import why_unavailable
from tlkeras.config.schema.features import KERAS_HUB_PREFIX
from tlkeras.errors import BackboneError, suggest

BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Target:
    """Where a model will answer, and what that allows.

    Attributes:
        reason: Why these limits.
        multiply_adds: Per image of the default size, at most.
        megabytes: Of weights in float32, at most.
    """

    reason: str
    multiply_adds: float | None = None
    megabytes: float | None = None


TARGETS = {
    "server": Target("a server with a GPU takes any backbone"),
    "cpu": Target("a few images a second on a core", multiply_adds=2e9),
    "mobile": Target(
        "the mobile setting of the literature: below 600 M multiply-adds", multiply_adds=6e8, megabytes=25
    ),
}


@dataclass(frozen=True)
class BackboneLimits:
    """What a backbone must meet.

    Attributes:
        target: A key of `TARGETS`.
        patterns: Shell patterns, one of which the name matches; `hub:PRESET` of KerasHub, too.
        licences: SPDX identifiers of the weights that are accepted; none given accepts all.
        parameters, multiply_adds, megabytes: At most so many; they replace the target's.
        milliseconds: At most, per image one at a time, measured on this machine.
        most: Candidates to measure.
    """

    target: str = "cpu"
    patterns: tuple[str, ...] = ("*",)
    licences: tuple[str, ...] = ()
    parameters: float | None = None
    multiply_adds: float | None = None
    megabytes: float | None = None
    milliseconds: float | None = None
    most: int = 6


@dataclass(frozen=True)
class Candidate:
    """A backbone with weights that can be had, at an image size.

    Attributes:
        entry: Its facts.
        weights: As in a recipe.
        size: Side of the images, pixels.
    """

    entry: BackboneInfo
    weights: str
    size: int

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return f"{self.entry.name} at {self.size}"

    @property
    def megabytes(self) -> float:
        """Return the size of its weights in float32."""
        return count_megabytes(self.entry)


def count_megabytes(entry: BackboneInfo) -> float:
    """Return the size of a backbone's weights in float32."""
    return entry.parameters * BYTES_PER_PARAMETER / 1e6


def choose_candidates(limits: BackboneLimits, own: Candidate | None = None) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates, best prior first, and why each other backbone is none.

    The prior is the accuracy on ImageNet. The best of each family comes first, then the others, so that one family of
    many sizes does not take all places.

    Args:
        own: One that is to be measured beside the others, whatever its prior.

    Raises:
        BackboneError: A limit is none, or no backbone meets all of them; says how many each leaves.
    """
    _check_words(limits)
    dropped, met = {}, []
    presets = [find_backbone(pattern) for pattern in limits.patterns if pattern.startswith(KERAS_HUB_PREFIX)]
    for entry in [*presets, *select_backbones()]:
        if own is not None and entry.name == own.entry.name:
            continue
        reason = next(_list_reasons(entry, limits), None)
        if reason is not None:
            dropped[entry.name] = reason
            continue
        weights, obstacle = _find_weights(entry)
        if weights is None:
            dropped[entry.name] = obstacle
        else:
            met.append(Candidate(entry, weights, entry.default_size))
    places = limits.most - (own is not None)
    chosen = _spread(met, places)
    for candidate in met:
        if candidate not in chosen:
            dropped[candidate.entry.name] = f"{limits.most} others come first by accuracy on ImageNet"
    if not chosen and own is None:
        raise BackboneError.from_problems(
            "A backbone must meet all limits, and its weights must be at hand:", _count(dropped)
        )
    return ([own] if own else []) + chosen, dropped


def _check_words(limits: BackboneLimits) -> None:
    if limits.target not in TARGETS:
        raise BackboneError("A target must be a known one.", repr(limits.target), suggest(limits.target, TARGETS))
    entries = select_backbones()
    known = {entry.licence for entry in entries}
    for licence in limits.licences:
        if licence not in known:
            raise BackboneError("A licence must be one that the catalog has.", repr(licence), suggest(licence, known))
    for pattern in limits.patterns:
        if not pattern.startswith(KERAS_HUB_PREFIX) and not fnmatch.filter((entry.name for entry in entries), pattern):
            names = [entry.name for entry in entries]
            raise BackboneError("A candidate must be in the catalog.", repr(pattern), suggest(pattern, names))


def _list_reasons(entry: BackboneInfo, limits: BackboneLimits) -> Iterator[str]:
    """Yield why a backbone does not meet the limits."""
    target = TARGETS[limits.target]
    if not any(pattern == entry.name or fnmatch.fnmatchcase(entry.name, pattern) for pattern in limits.patterns):
        yield "its name matches no pattern"
    if set(entry.weights) == {"none"}:
        yield "it has no pretrained weights"
    if limits.licences and entry.licence not in limits.licences:
        yield f"licence {entry.licence}"
    most = limits.parameters
    if most is not None and entry.parameters > most:
        yield f"more than {most / 1e6:,.4g} M parameters"
    most = limits.multiply_adds or target.multiply_adds
    if most is not None and entry.multiply_adds > most:
        yield f"more than {most / 1e6:,.4g} M multiply-adds"
    most = limits.megabytes or target.megabytes
    if most is not None and count_megabytes(entry) > most:
        yield f"more than {most:,.4g} MB of weights"


def _find_weights(entry: BackboneInfo) -> tuple[str | None, str]:
    """Return the first source of weights that can be had, or None and what is in the way."""
    obstacles = []
    for source in entry.weights:
        if source == "none":
            continue
        obstacle = why_unavailable(entry, source)
        if obstacle is None:
            return source, ""
        obstacles.append(obstacle)
    return None, "; ".join(obstacles)


def _spread(candidates: Sequence[Candidate], places: int) -> list[Candidate]:
    """Return so many: the best of each family by prior, then the best of the rest; best prior first."""
    ordered = sorted(candidates, key=_prior, reverse=True)
    families: dict[str, Candidate] = {}
    for candidate in ordered:
        families.setdefault(candidate.entry.family, candidate)
    first = list(families.values())
    rest = [candidate for candidate in ordered if candidate not in first]
    return sorted([*first, *rest][: max(places, 0)], key=_prior, reverse=True)


def _prior(candidate: Candidate) -> float:
    return candidate.entry.top1 or 0.0


def _count(dropped: dict[str, str]) -> list[str]:
    """Say how many backbones each reason leaves out."""
    counts: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        counts.setdefault(reason, []).append(name)
    return [f"{reason}: {_list_few(names)}" for reason, names in sorted(counts.items(), key=lambda item: -len(item[1]))]


def _list_few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
