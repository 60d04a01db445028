"""Duplicates with their labels and splits, and groups that leak."""

from __future__ import annotations

import numpy as np

from tlkeras.data.quality.duplicates import (
    DuplicateGroup,
    LeakingGroup,
    find_duplicates,
    find_leaking_groups,
    join_groups,
)


def objects(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_labels_and_splits_of_copies(make_dataset):
    splits = objects("train", "test", "train", "train", "train", "train")
    digests = objects("a", "a", "b", "b", "c", "c")
    dataset = make_dataset(np.array([0, 0, 0, 1, 1, -1]), digests=digests, split=splits)
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32), np.uint8)
    found = find_duplicates(dataset, noise)
    assert found == [
        DuplicateGroup((0, 1), True, 1.0, conflicting=False, leaking=True),
        DuplicateGroup((2, 3), True, 1.0, conflicting=True, leaking=False),
        DuplicateGroup((4, 5), True, 1.0, conflicting=False, leaking=False),  # one label is not known
    ]


def test_groups_that_leak():
    groups = objects("m1", "m1", "", "m2", "m2", "", "m1")
    splits = objects("train", "test", "train", "test", "test", "test", "train")
    assert find_leaking_groups(groups, splits) == [LeakingGroup("m1", {"test": 1, "train": 2})]
    assert find_leaking_groups(objects("", ""), objects("train", "test")) == []


def test_copies_join_groups():
    copies = [DuplicateGroup((0, 3), True, 1, False, False), DuplicateGroup((3, 4), False, 0.99, False, False)]
    copies += [DuplicateGroup((5, 6), False, 0.99, False, False)]
    assert join_groups(objects("", "m", "m", "", "m", "", "", ""), copies).tolist() == ["m"] * 5 + ["copies-2"] * 2 + [
        ""
    ]
    assert join_groups(objects("", ""), []).tolist() == ["", ""]
