"""Sentences on duplicates, imbalance and odd files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tlkeras.data.headers import ImageWarning
from tlkeras.data.quality.duplicates import DuplicateGroup, LeakingGroup
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.diagnostics.data_quality import count_classes, list_notes, list_problems


@pytest.fixture
def dataset():
    """80 training and 20 test images of two classes."""
    paths = [f"{number}.png" for number in range(100)]
    split = np.array(["train"] * 80 + ["test"] * 20, dtype=object)
    task, targets = Task("label", ("a", "b")), {"label": np.arange(100) % 2}
    return replace(Dataset.of_files(paths, [""] * 100), tasks=(task,), targets=targets, split=split)


def test_few_leaks_are_a_note_and_many_a_problem(dataset):
    few = [DuplicateGroup((0, 80), False, 0.99, False, True)]
    assert list_problems(dataset, few, []) == []
    (pair, leak) = list_notes(dataset, few)
    assert pair == "1 pair of images that look the same."
    assert leak.startswith("1 of 20 held-out images (5.0%) looks like a training image; `--fix`")
    many = [DuplicateGroup((row, 80 + row), False, 0.99, False, True) for row in range(3)]
    (problem,) = list_problems(dataset, many, [])
    assert problem.startswith("3 of 20 held-out images (15%) look like training images")


def test_exact_duplicates_and_groups_are_problems(dataset):
    conflict, leak = DuplicateGroup((0, 1), True, 1.0, True, False), DuplicateGroup((2, 4, 81), True, 1.0, False, True)
    problems = list_problems(dataset, [conflict, leak], [LeakingGroup("x", {"test": 2, "train": 3})])
    assert problems == [
        "1 image appears 2 times with different labels (a, b). Keep one.",
        "1 image is in more than one split (test, train), so the scores would be too good.",
        "Group 'x' is in more than one split (2 of test, 3 of train). Keep its images in one.",
    ]
    assert list_notes(dataset, [conflict, leak])[0] == "2 groups (5 images in all) of identical files."


def test_odd_files_and_imbalance_are_notes(dataset):
    warnings = tuple(ImageWarning(f"{number}.png", "tiny", "only 8 x 8 px") for number in range(2))
    odd = replace(dataset, warnings=warnings, targets={"label": (np.arange(100) < 5).astype(int)})
    assert list_notes(odd, []) == [
        "2 images are very small (e.g. 0.png: only 8 x 8 px).",
        "'label': 19 times as many images of 'a' as of 'b'.",
    ]
    first, _ = count_classes(odd)
    assert first.to_dict() == {"task": "label", "class": "a", "images": 95, "share": 0.95, "train": 75, "test": 20}
