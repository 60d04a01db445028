"""Results of `tlkeras check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tlkeras.data.headers import Issue
from tlkeras.data.quality.duplicates import LeakingGroup
from tlkeras.results import FLAT, OPTIONAL, Result


@dataclass(frozen=True)
class ClassCount(Result):
    """Number of images of a class, in all and by split, and its share of the task's labelled images, 0 to 1.

    The class name of a regression is the range of its numbers.
    """

    task: str
    class_name: str
    images: int
    share: float
    splits: dict[str, int] = field(metadata=FLAT)

    def to_dict(self) -> dict[str, Any]:
        """The attributes side by side, `class_name` as `class`."""
        return {{"class_name": "class"}.get(name, name): value for name, value in super().to_dict().items()}


@dataclass(frozen=True)
class CheckedImage:
    """An image in question: its printable path, its path within the source, its labels and its split."""

    path: str
    key: str
    label: str
    split: str


@dataclass(frozen=True)
class DuplicateImages:
    """Images with the same bytes (kind "exact") or that look the same ("near").

    The similarity is the lowest correlation of one image with the central one. The labels of conflicting images
    differ; leaking images are in several splits.
    """

    kind: str
    similarity: float
    conflicting: bool
    leaking: bool
    images: tuple[CheckedImage, ...]


@dataclass(frozen=True)
class MislabelledImage(CheckedImage, Result):
    """An image whose label looks wrong, the class that the model predicts, and by how much it is more probable.

    The score is a difference of probabilities; the task is None where there is one alone.
    """

    suggested: str
    score: float
    task: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class OutlierImage(CheckedImage):
    """An image unlike all others; the score is its distance from its neighbours in units of the bound, above 1."""

    score: float


@dataclass(frozen=True)
class ManifestResult:
    """A cleaned manifest: its path, the number of its images, and of those left out, by reason."""

    path: str
    images: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class CheckResult(Result):
    """What was found in images, labels and recipe."""

    name: str
    problems: tuple[str, ...]  # sentences; where there are none, training is advisable
    notes: tuple[str, ...]  # sentences worth reading
    facts: dict[str, str]  # on images, splits, backbone and cost, name -> text
    rejected: tuple[Issue, ...]  # files that cannot be used; their paths are printable
    remarks: tuple[Issue, ...]  # files that are odd
    classes: tuple[ClassCount, ...]
    copies: tuple[DuplicateImages, ...]  # images that are the same or look the same
    leaking_groups: tuple[LeakingGroup, ...]  # groups that are in several splits
    mislabelled: tuple[MislabelledImage, ...] | None  # most suspicious first; None where they were not looked for
    outliers: tuple[OutlierImage, ...] | None  # most suspicious first; None where they were not looked for
    manifest: ManifestResult | None = field(default=None, metadata=OPTIONAL)  # the one that was written
    page: str | None = field(default=None, metadata=OPTIONAL)  # the file that was written
