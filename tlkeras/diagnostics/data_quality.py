"""Issues of images and labels: counts, duplicates, wrong labels and outliers, and sentences on them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.data.depth import DEEP, describe_depth
from tlkeras.data.headers import Issue, to_printable
from tlkeras.data.issues import describe_warnings
from tlkeras.data.quality.duplicates import DuplicateGroup, LeakingGroup
from tlkeras.data.quality.label_issues import find_label_issues, find_outliers
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.errors import DataError
from tlkeras.heads.folds import cross_val_predict
from tlkeras.heads.linear import LinearHead, RidgeHead
from tlkeras.plotting.notebook import render_bars, render_card, render_table
from tlkeras.results import FLAT, HIDDEN, OPTIONAL, Result, Table
from tlkeras.training import builders
from tlkeras.training.image_data import ImageData

UNBALANCED = 10  # times as many images in the largest class
LEAKING_SHARE = 0.1  # of the held-out images; above it, metrics mean little
_MANY, _MANY_SHARE = 10, 0.05  # different files that are one image
_FOLDS = 5
_MOST_CLASSES = 20  # of which a logistic regression learns quickly


class _CoarseRidge(RidgeHead):
    """A ridge regression whose strength is chosen among whole decades, enough to find wrong labels of many classes."""

    strengths = RidgeHead.strengths[2:-1:2]


@dataclass(frozen=True)
class ClassCount(Result):
    """Number of images of a class."""

    task: str
    class_name: str  # of a regression the range of its numbers
    images: int
    share: float  # of the task's labelled images, 0 to 1
    splits: dict[str, int] = field(metadata=FLAT)

    def to_dict(self) -> dict[str, Any]:
        """The attributes side by side, `class_name` as `class`."""
        return {{"class_name": "class"}.get(name, name): value for name, value in super().to_dict().items()}


@dataclass(frozen=True)
class CheckedImage:
    """An image in question."""

    path: str  # printable
    key: str  # the path within the source
    label: str
    split: str


@dataclass(frozen=True)
class DuplicateImages:
    """Images with the same bytes, or that look the same."""

    kind: str  # "exact" or "near"
    similarity: float  # the lowest correlation of one image with the central one
    conflicting: bool  # whether labels differ
    leaking: bool  # whether they are in several splits
    images: tuple[CheckedImage, ...]


@dataclass(frozen=True)
class MislabelledImage(CheckedImage, Result):
    """An image whose label looks wrong."""

    suggested: str  # the class that the model predicts
    score: float  # by how much it is more probable, a difference of probabilities
    task: str | None = field(default=None, metadata=OPTIONAL)  # None where there is one alone


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
    merged: dict[str, str] = field(default_factory=dict)  # labels that differed only in how they are written


class Cleaning(NamedTuple):
    """How the images of a check can be cleaned: the recipe, their folder, and what writes a manifest to a path."""

    recipe: Recipe
    folder: Path
    write: Callable[[str | Path], ManifestResult | None]


@dataclass(frozen=True)
class CheckResult(Result):
    """What was found in images, labels and recipe."""

    name: str
    problems: tuple[str, ...]  # sentences; where there are none, training is advisable
    notes: tuple[str, ...]  # sentences worth reading
    facts: dict[str, str]  # on images, splits, backbone and cost, name -> text
    rejected: tuple[Issue, ...] = ()  # files that cannot be used; their paths are printable
    remarks: tuple[Issue, ...] = ()  # files that are odd
    classes: tuple[ClassCount, ...] = ()
    copies: tuple[DuplicateImages, ...] = ()  # images that are the same or look the same
    leaking_groups: tuple[LeakingGroup, ...] = ()  # groups that are in several splits
    mislabelled: tuple[MislabelledImage, ...] | None = None  # most suspicious first; None where not looked for
    outliers: tuple[OutlierImage, ...] | None = None  # most suspicious first; None where not looked for
    manifest: ManifestResult | None = field(default=None, metadata=OPTIONAL)  # the one that was written
    page: str | None = field(default=None, metadata=OPTIONAL)  # the file that was written
    cleaning: Cleaning | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)

    @property
    def label_issues(self) -> Table[MislabelledImage]:
        """Images whose label looks wrong, most suspicious first; none where they were not looked for."""
        return Table(self.mislabelled or ())

    def fix(self, to: str | Path | None = None) -> ImageData:
        """The images without those that mislead, read from the manifest that `tlkeras check --fix` writes.

        It is a new file, by default `cleaned.csv` in the folder of the images, or with a number; no image is touched.
        DataError if the images could not be read, or the file exists.
        """
        if self.cleaning is None:
            raise DataError("These images cannot be cleaned.", self.name, "Mend the problems that the check names.")
        names = ("cleaned.csv", *(f"cleaned-{number}.csv" for number in range(2, 1000)))
        path = to or next(path for name in names if not (path := self.cleaning.folder / name).exists())
        self.cleaning.write(path)
        return ImageData({"name": self.name, **builders.list_cleaned_overrides(self.cleaning.recipe, str(path))})

    def _repr_html_(self) -> str:
        verdict = self.problems or ("No problems found: ready to train.",)
        parts = [render_bars({one.class_name: one.images for one in self.classes})] if self.classes else []
        wrong = [(image.key, image.label, image.suggested) for image in self.label_issues]
        parts += [render_table(("label looks wrong", "label", "suggested"), wrong)] if wrong else []
        left_out = [(bad.path, bad.reason) for bad in self.rejected]
        parts += [render_table(("left out", "reason"), left_out)] if left_out else []
        return render_card(f"Check of {self.name}", [*verdict, *self.notes], *parts)


@dataclass(frozen=True)
class DataIssues:
    """Images to look at, most suspicious first: those whose label looks wrong, and those unlike all others."""

    mislabelled: tuple[MislabelledImage, ...]
    outliers: tuple[OutlierImage, ...]


def find_data_issues(dataset: Dataset, rows: np.ndarray, features: np.ndarray, groups: np.ndarray) -> DataIssues:
    """Labels that out-of-fold predictions of a linear head contradict, and outliers.

    Features are float [n, d], of the images at the positions `rows`. Each image of the dataset has a group, which folds
    do not divide, or "".
    """
    folded = np.where(groups[rows] == "", np.arange(len(rows)).astype(str).astype(object), groups[rows]).astype(str)
    mislabelled = []
    for task in dataset.tasks:
        if not task.has_classes:
            continue
        name = task.name if len(dataset.tasks) > 1 else None
        for at, label, suggested, score in _find_wrong_labels(task, dataset.targets[task.name][rows], features, folded):
            image = describe_image(dataset, int(rows[at]))
            wrong = MislabelledImage(image.path, image.key, label, image.split, suggested, round(score, 4), name)
            mislabelled.append(wrong)
    outliers = [
        OutlierImage(**vars(describe_image(dataset, int(rows[outlier.row]))), score=round(outlier.score, 3))
        for outlier in find_outliers(features)
    ]
    return DataIssues(tuple(sorted(mislabelled, key=lambda image: -image.score)), tuple(outliers))


def _find_wrong_labels(
    task: Task, targets: np.ndarray, features: np.ndarray, groups: np.ndarray
) -> list[tuple[int, str, str, float]]:
    """Position, label, suggested label and score of each wrong label, highest score first."""
    members = task.members(targets)
    counts = np.array([len(np.unique(groups[column])) for column in members.T])
    if targets.ndim == 1:  # a class of one image, or group, cannot be learned without it
        targets = np.where(members[:, counts == 1].any(axis=1), -1, targets)
        counts = counts[counts > 1]
    known = np.flatnonzero(task.is_labelled(targets))
    folds = min(_FOLDS, int(counts[counts > 0].min(initial=_FOLDS)))
    if folds < 2 or not len(known):
        return []
    try:
        head = LinearHead() if len(task.class_names) <= _MOST_CLASSES else _CoarseRidge()  # in closed form
        strength = head.fit(features[known], targets[known], groups=groups[known]).strength_
        maker = partial(LinearHead, C=strength) if isinstance(head, LinearHead) else partial(RidgeHead, alpha=strength)
        probabilities = cross_val_predict(maker, features, targets, folds=folds, groups=groups)
    except ValueError:  # too few images or groups of a class to learn it without some of them
        return []
    names = task.class_names
    if targets.ndim == 1:
        issues = find_label_issues(probabilities, targets)
        return [(issue.row, names[targets[issue.row]], names[issue.suggested], issue.score) for issue in issues]
    found = []
    for name, column, present in zip(names, probabilities.T, targets.T, strict=True):
        words = (f"not {name}", name)
        issues = find_label_issues(np.stack([1 - column, column], axis=1), present.astype(np.int64))
        found += [(one.row, words[1 - one.suggested], words[one.suggested], one.score) for one in issues]
    return sorted(found, key=lambda issue: -issue[-1])


def count_classes(dataset: Dataset) -> tuple[ClassCount, ...]:
    """Sizes of the classes of all tasks; a regression is one row."""
    rows = []
    splits = [str(split) for split in dict.fromkeys(dataset.split) if split]
    for task in dataset.tasks:
        targets = dataset.targets[task.name]
        members = task.members(targets)
        labelled = max(int(members.any(axis=1).sum()), 1)
        for name, column in zip(task.member_names(targets), members.T, strict=True):
            images = int(column.sum())
            by_split = {split: int((column & (dataset.split == split)).sum()) for split in splits}
            rows.append(ClassCount(task.name, name, images, images / labelled, by_split))
    return tuple(rows)


def to_printable_issue(issue: Issue) -> Issue:
    return Issue(to_printable(issue.path), issue.code, issue.reason)


def list_duplicates(dataset: Dataset, groups: Sequence[DuplicateGroup]) -> tuple[DuplicateImages, ...]:
    """Groups of duplicates with paths, labels and splits of their images."""
    found = []
    for group in groups:
        kind, images = "exact" if group.exact else "near", tuple(describe_image(dataset, row) for row in group.rows)
        similarity = round(group.similarity, 4)
        found.append(DuplicateImages(kind, similarity, group.conflicting, group.leaking, images))
    return tuple(found)


def describe_image(dataset: Dataset, row: int) -> CheckedImage:
    """Paths, labels and split of one image."""
    labels = [task.format_targets(dataset.targets[task.name][row : row + 1])[0] for task in dataset.tasks]
    path, key = to_printable(dataset.paths[row]), str(dataset.keys[row])
    return CheckedImage(path, key, ", ".join(labels), str(dataset.split[row]))


def list_problems(dataset: Dataset, groups: Sequence[DuplicateGroup], leaking: Sequence[LeakingGroup]) -> list[str]:
    """Sentences on what makes training inadvisable."""
    exact = [group for group in groups if group.exact]
    problems = []
    if conflicts := [group for group in exact if group.conflicting]:
        labels = ", ".join(sorted({describe_image(dataset, row).label for row in conflicts[0].rows}))
        if len(conflicts) == 1:
            times = len(conflicts[0].rows)
            problems.append(f"1 image appears {times} times with different labels ({labels}). Keep one.")
        else:
            images = f"{len(conflicts):,} images appear several times with different labels (such as {labels})"
            problems.append(f"{images}. Keep one of each.")
    if leaks := [group for group in exact if group.leaking]:
        names = sorted({str(split) for group in leaks for split in dataset.split[list(group.rows)]})
        images = count_of(len(leaks), "image is", "images are")
        problems.append(f"{images} in more than one split ({', '.join(names)}), so the scores would be too good.")
    leaked, held_out = _count_leaked(dataset, groups)
    if leaked > LEAKING_SHARE * held_out:
        share = f"{leaked:,} of {held_out:,} held-out images ({leaked / held_out:.0%})"
        problems.append(f"{share} look like training images, so the scores would be too good.")
    for group in leaking:
        parts = ", ".join(f"{count:,} of {split}" for split, count in group.splits.items())
        problems.append(f"Group {group.name!r} is in more than one split ({parts}). Keep its images in one.")
    return problems


def list_lost_images(dataset: Dataset, thumbnails: np.ndarray) -> list[str]:
    """A sentence if many files differ, and become the same image: what they show is lost in decoding."""
    looks: dict[bytes, dict[str, int]] = {}
    for row, (thumbnail, digest) in enumerate(zip(thumbnails, dataset.digests.tolist(), strict=True)):
        looks.setdefault(hashlib.sha256(thumbnail.tobytes()).digest(), {}).setdefault(digest, row)
    most = max(looks.values(), key=len, default={})
    if len(most) < max(_MANY, _MANY_SHARE * len(dataset)):
        return []
    example = to_printable(dataset.paths[next(iter(most.values()))])
    cure = "Where only alpha differs, set data.background"
    return [f"{len(most):,} different files decode to one image (e.g. {example}). {cure}."]


def list_notes(dataset: Dataset, groups: Sequence[DuplicateGroup]) -> list[str]:
    """Sentences on what is worth a look: odd files, imbalanced classes, duplicates."""
    odd = [warning for warning in dataset.warnings if warning.code != DEEP]  # which have a sentence of their own
    notes = [*describe_warnings(odd), *_list_imbalances(dataset)]
    exact, near = ([group for group in groups if group.exact is kind] for kind in (True, False))
    notes += filter(None, [describe_depth(dataset)])
    if exact:
        notes.append(f"{_count_groups(exact)} of identical files.")
    if near:
        notes.append(f"{_count_groups(near)} of images that look the same.")
    if conflicts := [group for group in near if group.conflicting]:
        notes.append(f"{count_of(len(conflicts), 'of these has', 'of these have')} different labels.")
    leaked, held_out = _count_leaked(dataset, groups)
    if 0 < leaked <= LEAKING_SHARE * held_out:
        images = f"{leaked:,} of {held_out:,} held-out images ({leaked / held_out:.1%})"
        verb = "looks like a training image" if leaked == 1 else "look like training images"
        notes.append(f"{images} {verb}; `--fix` keeps such copies in one split.")
    return notes


def count_of(number: int, singular: str, plural: str) -> str:
    """A number and the words that go with it: "1 image", "1,200 images"."""
    return f"{number:,} {singular if number == 1 else plural}"


def _count_groups(groups: Sequence[DuplicateGroup]) -> str:
    if all(len(group.rows) == 2 for group in groups):
        return count_of(len(groups), "pair", "pairs")
    return f"{count_of(len(groups), 'group', 'groups')} ({sum(len(group.rows) for group in groups):,} images in all)"


def _count_leaked(dataset: Dataset, groups: Sequence[DuplicateGroup]) -> tuple[int, int]:
    """The number of held-out images with a copy in the training split, and of all held-out images."""
    held_out = (dataset.split != "train") & (dataset.split != "")
    leaking = [list(group.rows) for group in groups if group.leaking]
    rows = {row for rows in leaking if "train" in dataset.split[rows] for row in rows}
    return sum(1 for row in rows if held_out[row]), int(held_out.sum())


def _list_imbalances(dataset: Dataset) -> Iterator[str]:
    for task in dataset.tasks:
        counts = task.members(dataset.targets[task.name]).sum(axis=0)
        order = [at for at in np.argsort(counts, kind="stable").tolist() if counts[at]]
        if order and counts[order[-1]] > UNBALANCED * counts[order[0]]:
            few, many = task.class_names[order[0]], task.class_names[order[-1]]
            ratio = counts[order[-1]] / counts[order[0]]
            yield f"{task.name!r}: {ratio:,.0f} times as many images of {many!r} as of {few!r}."
