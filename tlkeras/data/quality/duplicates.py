"""Duplicate images, and those that mislead: with different labels, or in several splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlkeras.data.quality.near_duplicates import find_exact_duplicates, find_near_duplicates
from tlkeras.data.tables import Dataset


@dataclass(frozen=True)
class DuplicateGroup:
    """Copies of one image: two or more positions in the dataset, ascending.

    Attributes:
        exact: The bytes are the same, not just the looks.
        similarity: The lowest correlation of one with the central one; 1 if exact.
        conflicting, leaking: Their labels differ; they are in different splits.
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
    """Groups of images that are the same, then of images that look the same but are not all the same.

    Their digests are known, and the split of each where they are divided; thumbnails are those of `read_thumbnails`.
    """
    digests = dataset.digests.tolist()
    equal = [(rows, True, 1.0) for rows in find_exact_duplicates(digests)]
    near = [(group.rows, False, group.similarity) for group in find_near_duplicates(thumbnails, digests)]
    return [DuplicateGroup(*found, *_find_conflicts(dataset, found[0])) for found in equal + near]


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


def _find_conflicts(dataset: Dataset, rows: Sequence[int]) -> tuple[bool, bool]:
    """True where known labels differ, and where splits differ."""
    copies = dataset.take(np.array(rows))
    conflicting = False
    for task in dataset.tasks:
        targets = copies.targets[task.name]
        members = task.members(targets)[task.is_labelled(targets)]
        conflicting |= bool((members != members[:1]).any())
    return conflicting, len(set(copies.split)) > 1
