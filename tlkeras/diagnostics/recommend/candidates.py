"""Candidate backbones: those within the limits whose weights are available, best on ImageNet first."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tlkeras.backbones.catalog import BackboneInfo, find_backbone, list_backbones
from tlkeras.backbones.weights import why_unavailable
from tlkeras.config.image_size import ImageSize, format_size
from tlkeras.config.schema.features import KERAS_HUB_PREFIX
from tlkeras.errors import BackboneError, suggest

BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Target:
    """Limits that follow from the machine a model is served on."""

    reason: str
    multiply_adds: float | None = None  # maximum per image of the default size
    megabytes: float | None = None  # maximum size of the weights in float32


TARGETS = {
    "server": Target("a server with a GPU takes any backbone"),
    "cpu": Target("a few images a second on a core", multiply_adds=2e9),
    "mobile": Target("the mobile setting of the literature: below 600 M multiply-adds", 6e8, 25),
}


@dataclass(frozen=True)
class BackboneLimits:
    """Requirements on a backbone."""

    target: str = "cpu"  # a key of `TARGETS`
    patterns: tuple[str, ...] = ("*",)  # shell patterns of names, one of which must match; or hub:PRESET of KerasHub
    licences: tuple[str, ...] = ()  # SPDX identifiers of accepted licences of the weights; all where it is empty
    parameters: float | None = None  # maximum
    multiply_adds: float | None = None  # maximum per image, which replaces the target's
    megabytes: float | None = None  # maximum, which replaces the target's
    milliseconds: float | None = None  # maximum latency of one image on this machine
    most: int = 6  # number of candidates to measure


@dataclass(frozen=True)
class Candidate:
    """A backbone with available weights, at an image size."""

    entry: BackboneInfo  # its row of the catalog
    weights: str  # as in a recipe
    size: ImageSize  # of the images, pixels

    @property
    def name(self) -> str:
        return f"{self.entry.name} at {format_size(self.size)}"

    @property
    def megabytes(self) -> float:
        """Size of its weights in float32."""
        return count_megabytes(self.entry)


def count_megabytes(entry: BackboneInfo) -> float:
    """Size of a backbone's weights in float32."""
    return entry.parameters * BYTES_PER_PARAMETER / 1e6


def choose_candidates(limits: BackboneLimits, own: Candidate | None = None) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates, best on ImageNet first, and the reason why each other backbone is left out.

    The best of each family is taken before second ones of a family, so that a family of many sizes does not fill the
    list. The user's own backbone is measured in any case. BackboneError if a limit is not valid, or no backbone meets
    all; it lists how many each limit leaves out.
    """
    _check_limits(limits)
    dropped, met = {}, []
    presets = [find_backbone(pattern) for pattern in limits.patterns if pattern.startswith(KERAS_HUB_PREFIX)]
    for entry in [*presets, *list_backbones()]:
        if own is not None and entry.name == own.entry.name:
            continue
        unmet = next(_list_reasons(entry, limits), "")
        weights, obstacle = (None, unmet) if unmet else _find_weights(entry)
        if weights is None:
            dropped[entry.name] = obstacle
        else:
            met.append(Candidate(entry, weights, entry.default_size))
    chosen = _choose_families(met, limits.most - (own is not None))
    later = f"{limits.most} others come first by accuracy on ImageNet"
    dropped |= {candidate.entry.name: later for candidate in met if candidate not in chosen}
    if not chosen and own is None:
        problems = []
        for reason, names in group_by_reason(dropped):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{reason}: {', '.join(names[:3])}{more}")
        raise BackboneError.from_problems("No backbone with available weights meets all limits:", problems)
    return ([own] if own else []) + chosen, dropped


def _check_limits(limits: BackboneLimits) -> None:
    if limits.target not in TARGETS:
        raise BackboneError("Unknown target.", repr(limits.target), suggest(limits.target, TARGETS))
    entries = list_backbones()
    names, known = [entry.name for entry in entries], {entry.licence for entry in entries}
    for licence in limits.licences:
        if licence not in known:
            raise BackboneError("No backbone has this licence.", repr(licence), suggest(licence, known))
    for pattern in limits.patterns:
        if not pattern.startswith(KERAS_HUB_PREFIX) and not fnmatch.filter(names, pattern):
            raise BackboneError("No backbone of the catalog matches.", repr(pattern), suggest(pattern, names))


def _list_reasons(entry: BackboneInfo, limits: BackboneLimits) -> Iterator[str]:
    """The limits that a backbone does not meet, as sentences."""
    target = TARGETS[limits.target]
    if not any(pattern == entry.name or fnmatch.fnmatchcase(entry.name, pattern) for pattern in limits.patterns):
        yield "its name matches no pattern"
    if set(entry.weights) == {"none"}:
        yield "it has no pretrained weights"
    if limits.licences and entry.licence not in limits.licences:
        yield f"licence {entry.licence}"
    maxima = (
        (entry.parameters / 1e6, limits.parameters, 1e6, "M parameters"),
        (entry.multiply_adds / 1e6, limits.multiply_adds or target.multiply_adds, 1e6, "M multiply-adds"),
        (count_megabytes(entry), limits.megabytes or target.megabytes, 1, "MB of weights"),
    )
    for value, most, unit, name in maxima:
        if most is not None and value > most / unit:
            yield f"more than {most / unit:,.4g} {name}"


def _find_weights(entry: BackboneInfo) -> tuple[str | None, str]:
    """The first available source of weights and "", or None and the reason."""
    obstacles = {source: why_unavailable(entry, source) for source in entry.weights if source != "none"}
    found = next((source for source, obstacle in obstacles.items() if obstacle is None), None)
    return found, "" if found else "; ".join(filter(None, obstacles.values()))


def _choose_families(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of each family and then the best of the rest, at most `count`, best on ImageNet first."""
    ordered = sorted(candidates, key=_top1, reverse=True)
    best = {candidate.entry.family: candidate for candidate in reversed(ordered)}
    taken = sorted(ordered, key=lambda candidate: candidate is not best[candidate.entry.family])[: max(count, 0)]
    return sorted(taken, key=_top1, reverse=True)


def _top1(candidate: Candidate) -> float:
    return candidate.entry.top1 or 0.0


def group_by_reason(dropped: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Each reason with the backbones that it leaves out, most first."""
    groups: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        groups.setdefault(reason, []).append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))
