"""Cleaned manifests: the images left out, with reasons, and the file that is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tlkeras.data.quality.duplicates import DuplicateGroup, clean, find_leaking_groups, write_manifest
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset
from tlkeras.errors import DataError


def objects(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_reasons_to_leave_out(make_dataset):
    dataset = make_dataset(np.arange(12) % 2, given_splits=objects(*["train"] * 8, *["test"] * 4))
    copies = [
        DuplicateGroup((0, 2), True, 1, False, False),  # one stays
        DuplicateGroup((1, 8), True, 1, True, True),  # the right label is not known
        DuplicateGroup((3, 9), True, 1, False, True),  # the held-out one stays
        DuplicateGroup((4, 6, 10), False, 0.99, False, True),  # looks like a held-out one
        DuplicateGroup((5, 7), False, 0.99, False, False),  # both stay, together
    ]
    cleaning = clean(dataset, copies, [])
    assert cleaning.kept.tolist() == [0, 5, 7, 9, 10, 11]
    assert cleaning.left_out == {
        "it looks like a held-out image": 2,
        "the same bytes again": 2,
        "the same bytes have several labels": 2,
    }
    assert cleaning.groups[[5, 7]].tolist() == [cleaning.groups[5]] * 2 and cleaning.groups[0] == ""


def test_leaking_groups_leave_the_training_split(make_dataset):
    groups = objects("m", "m", "n", "n")
    dataset = make_dataset(
        np.array([0, 1, 0, 1]), groups=groups, given_splits=objects("train", "test", "train", "train")
    )
    cleaning = clean(dataset, [], find_leaking_groups(groups, dataset.given_splits))
    assert cleaning.kept.tolist() == [1, 2, 3] and cleaning.left_out == {"its group is held out elsewhere": 1}


def test_a_cleaned_manifest_is_read_again(plant):
    root = plant({"=1+1/a.png": 1, "=1+1/b.png": 2, "dog/a.png": 3, "dog/b.png": 4, "dog/c.png": 4})
    table = read_table(str(root))
    dataset = build_dataset(table)
    copies = [DuplicateGroup((3, 4), True, 1, False, False), DuplicateGroup((0, 1), False, 0.99, False, False)]
    cleaning = clean(dataset, copies, [])
    path = write_manifest(root / "clean.csv", table, dataset, cleaning, {"suggested": ["", "", "=1+1", "", ""]})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["path"] for row in rows] == ["./=1+1/a.png", "./=1+1/b.png", "dog/a.png", "dog/b.png"]  # no formula
    assert [row["suggested"] for row in rows] == ["", "", "=1+1", ""]
    again = build_dataset(read_table(str(path)))
    assert again.keys.tolist() == dataset.keys[:4].tolist()
    assert again.groups[0] == again.groups[1] != "" and not again.groups[2:].any()
    above = write_manifest(root.parent / "clean.csv", table, dataset, cleaning)
    assert len(read_table(str(above))) == 4


def test_manifest_errors(plant, tmp_path):
    root = plant({"cat/a.png": 1, "cat/b.png": 2, "dog/a.png": 3, "dog/b.png": 4})
    table = read_table(str(root))
    dataset = build_dataset(table)
    cleaning = clean(dataset, [], [])
    (tmp_path / "else").mkdir()
    with pytest.raises(DataError, match=r"would not contain its images.*Write it to .*set/cleaned\.csv"):
        write_manifest(tmp_path / "else/clean.csv", table, dataset, cleaning)
    (root / "mine.csv").write_text("precious")
    with pytest.raises(DataError, match="already exists; tlkeras never overwrites"):
        write_manifest(root / "mine.csv", table, dataset, cleaning)
    assert (Path(root) / "mine.csv").read_text() == "precious"
