"""Splits: stable, stratified, grouped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tlkeras.data.splits import assign_splits, check_splits, classes_missing_from_test, split_images, subsample
from tlkeras.data.tasks import MultiLabelTask
from tlkeras.errors import DataError


def keyed(*numbers: int) -> np.ndarray:
    return np.array([f"{number}.png" for number in numbers], dtype=object)


def count(splits: np.ndarray, mask: np.ndarray | None = None) -> tuple[int, int, int]:
    found = Counter(splits if mask is None else splits[mask])
    return found["train"], found["validation"], found["test"]


def test_a_split_is_a_function_of_seed_and_key(make_dataset):
    dataset = make_dataset(np.arange(1000) % 2)
    first = assign_splits(dataset, 0.1, 0.2, seed=1)
    np.testing.assert_array_equal(first, assign_splits(dataset, 0.1, 0.2, seed=1))
    assert (first != assign_splits(dataset, 0.1, 0.2, seed=2)).mean() > 0.2
    shuffled = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(assign_splits(dataset.take(shuffled), 0.1, 0.2, seed=1), first[shuffled])


def test_added_images_leave_the_old_ones_where_they_are(make_dataset):
    labels = np.arange(1010) % 2
    everything = make_dataset(labels)
    moved = 0
    for seed in range(20):
        before = assign_splits(everything.take(np.arange(1000)), 0.15, 0.25, seed)
        after = assign_splits(everything, 0.15, 0.25, seed)[:1000]
        moved += (before != after).sum()
    # only where a stratum was so uneven that the tolerance had to correct it
    assert moved <= 3
    loose = [assign_splits(everything.take(np.arange(n)), 0.15, 0.25, 0, tolerance=0.5)[:1000] for n in (1000, 1010)]
    np.testing.assert_array_equal(*loose)


def test_within_the_tolerance_only_the_hash_decides(make_dataset):
    dataset = make_dataset(np.zeros(4000, int))
    assert assign_splits(dataset, 0.2, 0.2, 3).tolist() == assign_splits(dataset, 0.2, 0.2, 3, tolerance=0.9).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_strata_are_within_the_tolerance(make_dataset, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, 600, p=[0.7, 0.2, 0.1])
    strata = rng.choice(np.array(["a", "b"], dtype=object), 600)
    splits = assign_splits(make_dataset(labels, strata=strata), 0.1, 0.25, seed)
    for label in range(3):
        for stratum in "ab":
            mask = (labels == label) & (strata == stratum)
            _, validation, test = count(splits, mask)
            assert abs(validation - 0.1 * mask.sum()) <= 0.025 * mask.sum() + 1
            assert abs(test - 0.25 * mask.sum()) <= 0.0625 * mask.sum() + 1


def test_no_tolerance_is_exact(make_dataset):
    # by hand: 0.25 of 10, 7 and 3 is 2.5, 1.75 and 0.75, in all 5: two remainders of .75, then nothing for the .5
    labels = np.repeat([0, 1, 2], [10, 7, 3])
    splits = assign_splits(make_dataset(labels), 0.0, 0.25, 0, tolerance=0)
    assert [count(splits, labels == label) for label in range(3)] == [(8, 0, 2), (5, 0, 2), (2, 0, 1)]
    labels = np.repeat([0, 1], [1508, 1116])
    assert count(assign_splits(make_dataset(labels), 0.1, 0.25, 0, tolerance=0)) == (1706, 262, 656)


@pytest.mark.parametrize("tolerance", [0, 0.1])
def test_every_split_gets_every_class(make_dataset, tolerance):
    labels = np.repeat(np.arange(12), [200, 3, 3, 3, 3, 3, 4, 5, 2, 2, 1, 3])
    for seed in range(5):
        splits = assign_splits(make_dataset(labels), 0.1, 0.1, seed, tolerance)
        for label in range(12):
            found = count(splits, labels == label)
            assert sum(found) < 3 or min(found) >= 1


def test_shares_of_zero_stay_empty(make_dataset):
    labels = np.arange(100) % 2
    assert count(assign_splits(make_dataset(labels), 0, 0, 0)) == (100, 0, 0)
    assert count(assign_splits(make_dataset(labels), 0.5, 0, 0, tolerance=0)) == (50, 50, 0)
    assert len(assign_splits(make_dataset(labels).take(np.array([], int)), 0.1, 0.1, 0)) == 0


def test_groups_are_never_parted(make_dataset):
    rng = np.random.default_rng(0)
    groups = rng.choice(np.array([f"m{number}" for number in range(40)], dtype=object), 1000)
    groups[:50] = ""
    labels = (rng.random(1000) < 0.3).astype(int)
    for seed in range(3):
        splits = assign_splits(make_dataset(labels, groups=groups), 0.15, 0.25, seed)
        assert all(len(set(splits[groups == group])) == 1 for group in set(groups) - {""})
        assert len(set(splits[:50])) > 1
        for label in (0, 1):
            train, validation, test = count(splits, labels == label)
            total = train + validation + test
            assert (
                abs(test - 0.25 * total) <= 0.025 * total + 15 and abs(validation - 0.15 * total) <= 0.015 * total + 15
            )


def test_groups_stay_when_images_are_added(make_dataset):
    groups = np.array([f"g{number % 200}" for number in range(2010)], dtype=object)
    everything = make_dataset(np.arange(2010) % 2, groups=groups)
    moved = 0
    for seed in range(10):
        before = assign_splits(everything.take(np.arange(2000)), 0.2, 0.2, seed)
        moved += (before != assign_splits(everything, 0.2, 0.2, seed)[:2000]).mean()
    assert moved / 10 < 0.01


def test_each_split_gets_groups_of_each_class(make_dataset):
    labels = np.repeat([0, 1, 2], [300, 9, 9])
    groups = np.array([f"g{number // 3}" for number in range(318)], dtype=object)
    for seed in range(5):
        splits = assign_splits(make_dataset(labels, groups=groups), 0.1, 0.1, seed)
        assert min(min(count(splits, labels == label)) for label in range(3)) >= 1


def test_given_splits_are_kept(make_dataset):
    given = np.array(["train"] * 80 + ["test"] * 20, dtype=object)
    dataset = make_dataset(np.arange(100) % 2, given_splits=given)
    splits = assign_splits(dataset, 0.25, 0.5, 0, tolerance=0)
    assert count(splits[:80]) == (60, 20, 0) and count(splits[80:]) == (0, 0, 20)
    np.testing.assert_array_equal(assign_splits(dataset, 0, 0.5, 0), given)
    given[80:] = "validation"
    assert count(assign_splits(make_dataset(np.arange(100) % 2, given_splits=given), 0.25, 0.5, 0, 0)) == (40, 20, 40)
    given[:3], given[90:] = "", "test"
    three = assign_splits(make_dataset(np.arange(100) % 2, given_splits=given), 0.25, 0.5, 0)
    assert three.tolist() == ["train"] * 80 + ["validation"] * 10 + ["test"] * 10


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (-0.1, 1.0, "(?s)validation is not a fraction.*Received: -0.1.*test is not a fraction.*Received: 1.0"),
        (0.5, 0.5, "leave nothing to train on. Received: 0.5 . 0.5"),
        (float("nan"), 0.2, "Received: nan"),
    ],
)
def test_impossible_fractions(make_dataset, validation, test, message):
    with pytest.raises(DataError, match=message):
        assign_splits(make_dataset(np.arange(10) % 2), validation, test, 0)


def test_several_tasks_are_balanced_together(make_dataset):
    targets = {"a": np.arange(400) % 2, "b": np.arange(400) // 2 % 2}
    targets["b"][:40] = -1
    splits = assign_splits(make_dataset(targets), 0, 0.25, 0, tolerance=0)
    for a in (0, 1):
        for b in (-1, 0, 1):
            mask = (targets["a"] == a) & (targets["b"] == b)
            assert abs(count(splits, mask)[2] - mask.sum() / 4) < 1


def test_thin(make_dataset):
    labels = np.repeat([0, 1, 2], [80, 16, 4])
    dataset = make_dataset(labels)
    few = subsample(dataset, 25, seed=0)
    assert Counter(few.targets["label"].tolist()) == {0: 19, 1: 4, 2: 2}
    numbers = [int(key.split(".")[0]) for key in few.keys]
    assert numbers == sorted(numbers)
    assert subsample(dataset, 100, 0) is dataset
    assert Counter(subsample(dataset, 3, 0).targets["label"].tolist()) == {0: 2, 1: 2, 2: 2}
    assert subsample(dataset, 25, 1).keys.tolist() != few.keys.tolist()
    # what is thinned is split as evenly as what is whole
    assert 2 <= count(assign_splits(subsample(dataset, 50, 0), 0, 0.2, 0))[2] <= 20


def make_labelled(make_dataset, targets: np.ndarray, **given):
    names = tuple(f"l{number}" for number in range(targets.shape[1]))
    dataset = make_dataset(np.zeros(len(targets), int), tasks=(MultiLabelTask("tags", names),), **given)
    return replace(dataset, targets={"tags": targets.astype(np.int8)})


@pytest.mark.parametrize("grouped", [False, True])
def test_every_label_is_balanced(make_dataset, grouped):
    """Twelve labels make more sets of labels than there are images to divide them by."""
    targets = np.random.default_rng(0).random((800, 12)) < np.linspace(0.01, 0.6, 12)
    groups = (np.arange(800) // 2).astype(str).astype(object) if grouped else np.full(800, "", dtype=object)
    dataset, shares, off = make_labelled(make_dataset, targets, groups=groups), np.array([0.65, 0.1, 0.25]), {}
    for tolerance in (0, 0.25, 0.9):  # at the last one all but empty splits are as the hashes have them
        splits = assign_splits(dataset, 0.1, 0.25, 1, tolerance)
        found = np.array([count(splits, column) for column in (np.ones(800, bool), *targets.T)])
        ideal = found.sum(axis=1, keepdims=True) * shares
        off[tolerance] = np.abs(found - ideal).mean()
        assert (np.abs(found - ideal) <= tolerance * ideal + 1).all() or tolerance == 0
        assert (found > 0).all()
        if grouped:
            assert (splits[::2] == splits[1::2]).all()
    assert off[0] < off[0.9] / (2 if grouped else 4)


def test_labels_stay_where_they_are_when_images_are_added(make_dataset):
    targets = np.random.default_rng(0).random((1010, 5)) < 0.3
    everything = make_labelled(make_dataset, targets)
    before = assign_splits(everything.take(np.arange(1000)), 0.15, 0.25, 0)
    assert (before != assign_splits(everything, 0.15, 0.25, 0)[:1000]).sum() <= 3


def test_thin_keeps_every_label(make_dataset):
    targets = np.zeros((500, 3))
    targets[:250, 0], targets[[7, 100, 400], 1], targets[2:, 2] = 1, 1, 1
    kept = subsample(make_labelled(make_dataset, targets), 20, 0).targets["tags"]
    assert 20 <= len(kept) <= 24
    assert (kept.sum(axis=0) >= 2).all() and ((1 - kept).sum(axis=0) >= 2).all()
    assert 5 <= kept[:, 0].sum() <= 15


def test_labels_that_a_split_lacks_are_told(make_dataset):
    labelled = make_labelled(make_dataset, np.array([[1, 0], [1, 1], [0, 1], [1, 1]]))
    dataset = replace(labelled, split=np.array(["train", "train", "test", "test"], dtype=object))
    with pytest.raises(DataError, match="no training image .with a weight above 0. shows the absence of l0"):
        check_splits(dataset)
    (note,) = classes_missing_from_test(dataset)
    assert "no test image" in note and "shows the absence of l1; it is not measured" in note


@pytest.mark.parametrize("sizes", [[3] * 500, [2] * 50 + [100] * 10, [1, 1, 2, 3, 40]], ids=len)
@pytest.mark.parametrize("grouped", [False, True])
def test_rare_classes_are_trained_on_first(make_dataset, sizes, grouped):
    targets = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.array([f"g{row}" if grouped else "" for row in range(len(targets))], dtype=object)
    for seed in range(2 if grouped else 8):
        dataset = make_dataset(targets[: 300 if grouped else None], groups=groups[: 300 if grouped else None])
        dataset = replace(dataset, split=assign_splits(dataset, 0.2, 0.2, seed))
        check_splits(dataset)
        for number, size in enumerate(np.bincount(dataset.targets["label"])):
            held = set(dataset.split[dataset.targets["label"] == number])
            assert held == {"train", *["test"][: int(size > 1)], *["validation"][: int(size > 2)]}


def test_splits_of_plain_lists():
    keys, labels = [f"{number}.png" for number in range(60)], ["cat", "dog", "emu"] * 20
    groups = [str(number // 6) for number in range(60)]
    splits = split_images(keys, labels, validation=0.2, test=0.3, seed=1)
    assert splits.dtype.kind == "U" and len(splits) == 60
    assert 12 <= np.count_nonzero(splits == "test") <= 24
    assert all(len(set(splits[first::3])) == 3 for first in range(3))  # every class is in every split
    more = split_images([*keys, "60.png"], [*labels, "cat"], validation=0.2, test=0.3, seed=1)
    assert np.count_nonzero(more[:60] != splits) <= 1
    grouped = split_images(keys, np.array([0, 1, 2] * 20), groups, seed=1)
    assert all(len(set(grouped[first : first + 6])) == 1 for first in range(0, 60, 6))
    several = split_images(keys, np.random.default_rng(0).integers(0, 2, (60, 4)), seed=1)
    assert set(several) == {"train", "validation", "test"}
    with pytest.raises(DataError, match=r"not of the same images. Received: 60 keys, targets \(59,\), groups None"):
        split_images(keys, labels[:-1])
