"""Duplicate images, those with different labels or in several splits, and the manifest without what misleads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlkeras.data.headers import to_printable
from tlkeras.data.quality.near_duplicates import find_exact_duplicates, find_near_duplicates
from tlkeras.data.sources.manifests import write_lines
from tlkeras.data.tables import Dataset, ImageTable
from tlkeras.errors import DataError, ResourceError

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # executed by spreadsheets
_RANKS = {"train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class DuplicateGroup:
    """Copies of one image: two or more positions in the dataset, ascending.

    The bytes are the same (exact), not just the looks; similarity is the lowest correlation of one with the central
    one, 1 if exact. Labels differ (conflicting), or splits (leaking).
    """

    rows: tuple[int, ...]
    exact: bool
    similarity: float
    conflicting: bool
    leaking: bool


@dataclass(frozen=True)
class LeakingGroup:
    """A group that is divided between splits: its name, and its number of images in each split."""

    name: str
    splits: dict[str, int]


def find_duplicates(dataset: Dataset, thumbnails: np.ndarray) -> list[DuplicateGroup]:
    """Groups of images, digests known, that are the same, then of others that look the same by `read_thumbnails`."""
    digests = dataset.digests.tolist()
    equal = [(rows, True, 1.0) for rows in find_exact_duplicates(digests)]
    near = [(group.rows, False, group.similarity) for group in find_near_duplicates(thumbnails, digests)]
    return [DuplicateGroup(*found, *_find_conflicts(dataset, found[0])) for found in equal + near]


def merge_labels(
    dataset: Dataset, groups: Sequence[DuplicateGroup], names: Mapping[str, str]
) -> tuple[Dataset, list[DuplicateGroup]]:
    """The dataset with classes that stand for others, and the groups of which labels then differ."""
    targets = {task.name: task.merge_classes(dataset.targets[task.name], names) for task in dataset.tasks}
    merged = replace(dataset, targets=targets)
    return merged, [replace(group, conflicting=_find_conflicts(merged, group.rows)[0]) for group in groups]


def _find_conflicts(dataset: Dataset, rows: Sequence[int]) -> tuple[bool, bool]:
    """True where known labels differ, and where splits differ."""
    copies = dataset.take(np.array(rows))
    conflicting = False
    for task in dataset.tasks:
        targets = copies.targets[task.name]
        members = task.members(targets)[task.is_labelled(targets)]
        conflicting |= bool((members != members[:1]).any())
    return conflicting, len(set(copies.split)) > 1


def find_leaking_groups(groups: np.ndarray, splits: np.ndarray) -> list[LeakingGroup]:
    """The groups with images in several splits, in order of their names; "" is no group."""
    leaking = []
    names, numbers = np.unique(groups.astype(str), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    for name, rows in zip(names, np.split(order, np.cumsum(np.bincount(numbers))[:-1]), strict=True):
        found, counts = np.unique(splits[rows].astype(str), return_counts=True)
        if name and len(found) > 1:
            leaking.append(LeakingGroup(str(name), dict(zip(found.tolist(), counts.tolist(), strict=True))))
    return leaking


def join_groups(groups: np.ndarray, copies: Sequence[DuplicateGroup]) -> np.ndarray:
    """The group of each image, str [n], with groups joined that contain copies of each other.

    A joint group has the name of the first group in it, or "copies-N" if there is none; images in no group keep "".
    """
    count = len(groups)
    names, numbers = np.unique(groups.astype(str), return_inverse=True)
    pairs = [(row, other) for group in copies for row, other in zip(group.rows, group.rows[1:], strict=False)]
    pairs += [(int(row), count + int(numbers[row])) for row in np.flatnonzero(groups != "")]
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs)), (left, right)), shape=(count + len(names),) * 2)
    _, component = connected_components(links, directed=False)
    sizes = np.bincount(component[:count], minlength=component.max(initial=0) + 1)
    given = {int(component[row]): str(groups[row]) for row in reversed(np.flatnonzero(groups != ""))}
    for number in component[:count][sizes[component[:count]] > 1].tolist():
        given.setdefault(number, f"copies-{len(given) + 1}")
    return np.array([given.get(number, "") for number in component[:count].tolist()], dtype=object)


@dataclass(frozen=True)
class CleanedManifest:
    """The positions kept, int64 [k]; each image's group, str [n], shared by copies; how many are left out by reason."""

    kept: np.ndarray
    groups: np.ndarray
    left_out: dict[str, int]


def clean(dataset: Dataset, copies: Sequence[DuplicateGroup], leaking: Sequence[LeakingGroup]) -> CleanedManifest:
    """Choose the images to keep.

    Of identical files with one label the first is kept, with several labels none. Images that only look the same are
    kept as a group. Where the source gives the splits, held-out images are kept, and their copies and the rest of their
    groups are removed from the other splits, first from the training images.
    """
    reasons = np.full(len(dataset), "", dtype=object)
    for row, path in enumerate(dataset.paths):
        if to_printable(path) != path:
            reasons[row] = "its name is not UTF-8, as a manifest is"
    rank = np.array([_RANKS.get(str(split), 0) for split in dataset.given_splits])
    for group in copies:
        rows = np.array(group.rows)
        if group.exact and group.conflicting:
            reasons[rows] = "the same bytes have several labels"
        elif group.exact:
            best = rows[np.argmax(rank[rows])]
            reasons[rows[(rows != best) & (reasons[rows] == "")]] = "the same bytes again"
        else:
            _drop_lower(rows, rank, reasons, "it looks like a held-out image")
    for name in dict.fromkeys(group.name for group in leaking):
        _drop_lower(np.flatnonzero(dataset.groups == name), rank, reasons, "its group is held out elsewhere")
    kept = np.flatnonzero(reasons == "")
    found, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    groups = join_groups(dataset.groups, copies)
    alone = {name for name in set(groups) if np.count_nonzero(groups[kept] == name) < 2}
    groups[[not own and name in alone for own, name in zip(dataset.groups, groups, strict=True)]] = ""
    return CleanedManifest(kept, groups, dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _drop_lower(rows: np.ndarray, rank: np.ndarray, reasons: np.ndarray, reason: str) -> None:
    rows = rows[reasons[rows] == ""]
    lower = rows[rank[rows] < rank[rows].max(initial=0)]
    reasons[lower] = reason


def write_manifest(
    path: str | Path, table: ImageTable, dataset: Dataset, plan: CleanedManifest, remarks: Mapping[str, list[str]] = {}
) -> Path:
    """Write the kept images to a new CSV manifest in or above the folder of the images, with all columns of the table.

    Groups become a column if there are any; `remarks` are more columns, of one string per image of the dataset. A
    DataError is raised if the file exists or lies elsewhere, a ResourceError if it cannot be written.
    """
    target = Path(os.path.abspath(os.path.expanduser(path)))
    folder, root = os.path.realpath(target.parent), os.path.realpath(table.root)
    if os.path.commonpath([folder, root]) != folder:
        rule = "The manifest would not contain its images: its folder is neither theirs nor above it."
        raise DataError(rule, f"{str(path)!r} for images in {root!r}", f"Write it to {root}/cleaned.csv, for example.")
    position = {where: row for row, where in enumerate(table.paths)}
    rows = [position[where] for where in dataset.paths[plan.kept]]
    columns = {name: [values[row] for row in rows] for name, values in table.columns.items()}
    if (plan.groups != "").any():
        columns["group"] = plan.groups[plan.kept].tolist()
    columns |= {name: [values[row] for row in plan.kept] for name, values in remarks.items()}
    paths = [os.path.relpath(table.paths[row], folder) for row in rows]
    paths = [(f"./{path}" if path.startswith(_FORMULAS) else path).replace(os.sep, "/") for path in paths]
    try:
        write_lines(target, columns, zip(paths, *columns.values(), strict=True))
    except FileExistsError:
        rule = "The manifest already exists; tlkeras never overwrites one."
        raise DataError(rule, repr(str(path)), "Choose another name.") from None
    except OSError as error:
        raise ResourceError("The manifest could not be written.", f"{path} ({error.strerror})") from None
    return target
