"""Splits: the images that train, validate and test."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import DataError, list_some

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval", "trainset", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "validate", "valset", "dev", "devel", "devset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "tst", "eval", "evaluation", "holdout", "heldout"), "test"),
}
# Columns of the tables of counts below, and the order of the splits along the hashes.
_SPLITS = ("test", "validation", "train")
_FIRST = (2, 0, 1)  # the order in which they get an image of a small class
_MAX_MOVES = 10_000


def find_split(name: str) -> str:
    """The split that a name means in any spelling ("Training_set", "seg_test", "val2017"); "" for none or several."""
    words = re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", re.sub(r"(?i)(h[oe]ld)\W?_?(out)", r"\1\2", name))
    found = {SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS}
    return SPLIT_WORDS.get("".join(words).lower()) or (found.pop() if len(found) == 1 else "")


def assign_splits(dataset: Dataset, validation: float, test: float, seed: int, tolerance: float = 0.25) -> np.ndarray:
    """The split of each image: "train", "validation" or "test", str [n].

    An image's split follows from a number in [0, 1) that is a hash of the seed and its key, or its group, so that added
    images do not move the old ones: below `test` it is a test image, in the next `validation` a validation image. In
    each stratum (same targets, same `strata`) a split may differ from its fraction by `tolerance` of it, plus one; only
    beyond that, images next to the boundary change split. With `tolerance=0` the sizes are exact, by largest
    remainders. Groups are never divided, but moved as a whole; of several labels each is balanced by moving images.

    Every split gets each class that has as many images as there are splits, and images with and without each of several
    labels; of a smaller class train gets the first image, test the second. Splits given by the source are kept; missing
    ones are taken from its "train", of which the fractions are then meant. A DataError is raised for fractions outside
    [0, 1), or that leave nothing to train on.
    """
    shares = _check_fractions(validation, test)
    given = np.array(dataset.given_splits, dtype=object)
    if not given.any():
        return _divide(dataset, shares, seed, tolerance)
    splits = np.where(given == "", "train", given).astype(object)
    shares[:2] *= [split not in given for split in _SPLITS[:2]]
    shares[2] = 1 - shares[:2].sum()
    pool = np.flatnonzero(splits == "train")
    splits[pool] = _divide(dataset.take(pool), shares, seed, tolerance)
    return splits


def split_images(
    keys: Sequence[str],
    targets: np.ndarray | Sequence[Any],
    groups: Sequence[str] | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> np.ndarray:
    """The split of each image, "train", "validation" or "test", str [n], as `assign_splits` makes them.

    An image keeps its split when others are added. DataError as there, or if the arrays do not fit each other.

    Args:
        keys: A name of each image that stays the same, such as its path.
        targets: Class of each, (n,), or 1 for each label that it has and 0 else, (n, k).
        groups: Of each, such as the patient; never divided between splits; "" for none.

    >>> splits = split_images([f"{number}.png" for number in range(100)], ["cat", "dog"] * 50, test=0.1)
    >>> sorted(set(splits.tolist()))
    ['test', 'train', 'validation']
    """
    y, names = np.asarray(targets), list(map(str, keys))
    if y.ndim not in (1, 2) or len(y) != len(names) or (groups is not None and len(groups) != len(names)):
        received = f"{len(names)} keys, targets {y.shape}, groups {None if groups is None else len(groups)}"
        raise DataError("Keys, targets and groups are not of the same images.", received)
    if y.ndim == 2:
        task, targets = make_task("label", list(map(str, range(y.shape[1]))), "|"), y.astype(np.int8)
    else:
        values, targets = np.unique(y, return_inverse=True)
        task = make_task("label", list(map(str, values.tolist())))
    dataset = replace(Dataset.of_files(names, [""] * len(names)), tasks=(task,), targets={"label": np.asarray(targets)})
    if groups is not None:
        dataset = replace(dataset, groups=np.array(list(map(str, groups)), object))
    return assign_splits(dataset, validation, test, seed).astype(str)


def subsample(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """At most `limit` images, in their order, with the same fraction of each stratum and given split.

    Each of these, and each set of images that every split needs, keeps two images if it has them, whatever the limit.
    """
    if len(dataset) <= limit:
        return dataset
    strata = _number_strata(dataset, dataset.given_splits)
    sizes = np.bincount(strata)
    counts = np.maximum(_apportion(sizes, limit / len(dataset)), np.minimum(sizes, 2))
    while counts.sum() > limit and counts.max() > 2:
        counts[counts.argmax()] -= 1
    # Not the hash of the splits, which would leave only images of the first split.
    numbers = np.array([_hash(seed, f"thin {key}") for key in dataset.keys])
    order = np.lexsort((numbers, strata))
    rank = np.arange(len(dataset)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.zeros(len(dataset), bool)
    kept[order[rank < np.repeat(counts, sizes)]] = True
    by_number = np.argsort(numbers, kind="stable")
    for column in _join_coverage(dataset).T:
        if kept[column].sum() < 2:
            kept[by_number[column[by_number]][:2]] = True
    return dataset.take(np.flatnonzero(kept))


def check_splits(dataset: Dataset) -> None:
    """Raise a DataError unless every class has training images and there are test images, with weights above 0."""
    train, test = ((dataset.weights > 0) & (dataset.split == split) for split in ("train", "test"))
    problems = [] if test.any() else ["There is no test image (with a weight above 0)."]
    for task in dataset.tasks:
        if test.any() and not (test & task.is_labelled(dataset.targets[task.name])).any():
            problems.append(f"{task.name!r}: no test image (with a weight above 0) has a label.")
        if absent := _list_absent(task, dataset, train):
            problems.append(f"{task.name!r}: no training image (with a weight above 0) shows {absent}.")
            problems += task.list_spellings(dataset.targets[task.name])
    if problems:
        hint = "Add images, change the split, or remove the class."
        raise DataError.from_problems(f"There are too few images to train and test all classes. {hint}", problems)


def classes_missing_from_test(dataset: Dataset) -> list[str]:
    """Sentences on the classes that cannot be evaluated, because no test image has them."""
    tested = (dataset.weights > 0) & (dataset.split == "test")
    unseen = [(task.name, absent) for task in dataset.tasks if (absent := _list_absent(task, dataset, tested))]
    rule = "no test image (with a weight above 0) shows"
    return [f"{name!r}: {rule} {absent}; it is not measured." for name, absent in unseen]


def _list_absent(task: Task, dataset: Dataset, rows: np.ndarray) -> str:
    sets = task.find_coverage(dataset.targets[task.name][rows])
    return ", ".join(list_some([name for name, images in sets.items() if not images.any()]))


def _number_strata(dataset: Dataset, *more: np.ndarray) -> np.ndarray:
    """The stratum of each image by its number, int64 [n]: the same targets, strata, and values [n] of `more`."""
    columns = (task.strata(dataset.targets[task.name]) for task in dataset.tasks)
    rows = [tuple(map(str, row)) for row in zip(*columns, dataset.strata, *more, strict=True)]
    index = {row: number for number, row in enumerate(sorted(set(rows)))}
    return np.array([index[row] for row in rows], dtype=np.int64)


def _join_coverage(dataset: Dataset) -> np.ndarray:
    """Sets of images of which every split needs some, bool [n, columns]."""
    sets = [images for task in dataset.tasks for images in task.find_coverage(dataset.targets[task.name]).values()]
    return np.array(sets, bool).reshape(-1, len(dataset)).T


def _check_fractions(validation: float, test: float) -> np.ndarray:
    wrong = {name: share for name, share in {"validation": validation, "test": test}.items() if not 0 <= share < 1}
    problems = [f"{name} is not a fraction, at least 0 and less than 1. Received: {wrong[name]}." for name in wrong]
    if not problems and validation + test >= 1:
        problems = [f"validation and test leave nothing to train on. Received: {validation} + {test}."]
    if problems:
        raise DataError.from_problems("The images cannot be split:", problems)
    return np.array([test, validation, 1 - test - validation])


def _divide(dataset: Dataset, shares: np.ndarray, seed: int, tolerance: float) -> np.ndarray:
    if not len(dataset):
        return np.array([], dtype=object)
    strata = _number_strata(dataset)
    labels = np.concatenate([task.balanced(dataset.targets[task.name]) for task in dataset.tasks], axis=1)
    coverage = _join_coverage(dataset)
    grouped = bool(dataset.groups.any())
    units = np.where(dataset.groups == "", dataset.keys, dataset.groups) if grouped else dataset.keys
    numbers = np.array([_hash(seed, str(unit)) for unit in units])
    if grouped or labels.size:
        one_hot = strata[:, None] == np.arange(strata.max(initial=-1) + 1)
        balanced = np.concatenate([np.ones((len(strata), 1)), one_hot, labels], axis=1)
        splits = _move_units(balanced, coverage, numbers, shares, tolerance)
    else:
        splits = _cut_strata(strata, coverage, numbers, shares, tolerance)
    return np.array(_SPLITS, dtype=object)[splits]


def _hash(seed: int, unit: str) -> float:
    digest = hashlib.blake2b(f"{seed}\0{unit}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _natural(numbers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The split by the hash alone, an index of `_SPLITS`, int64 [n]."""
    return np.searchsorted(np.cumsum(shares)[:2], numbers, side="right")


def _cut_strata(
    strata: np.ndarray, coverage: np.ndarray, numbers: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Cut every stratum, in the order of its hashes, into test, validation and train."""
    sizes = np.bincount(strata)
    if tolerance == 0:  # exact in each stratum and in all
        test = _apportion(sizes, shares[0])
        validation = _apportion(sizes - test, shares[1] * sizes.sum() / max((sizes - test).sum(), 1))
        counts = np.column_stack([test, validation, sizes - test - validation])
    else:
        counts = _tolerant_counts(strata, sizes, _natural(numbers, shares), shares, tolerance)
    member = np.zeros((len(sizes), coverage.shape[1]), bool)
    member[strata] = coverage
    _fill_empty_splits(counts, member, np.flatnonzero(shares))
    splits = np.empty(len(strata), np.int64)
    splits[np.lexsort((numbers, strata))] = np.repeat(np.tile(np.arange(3), len(sizes)), counts.ravel())
    return splits


def _tolerant_counts(
    strata: np.ndarray, sizes: np.ndarray, natural: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Sizes of the splits by the hashes, clipped to the tolerance, int64 [strata, 3]."""
    found = np.stack([np.bincount(strata[natural == split], minlength=len(sizes)) for split in (0, 1)], axis=1)
    ideal = sizes[:, None] * shares[:2]
    slack = (tolerance * ideal + 1) * (shares[:2] > 0)
    held = np.clip(found, np.ceil(ideal - slack), np.floor(ideal + slack)).astype(np.int64)
    held[:, 1] = np.minimum(held[:, 1], sizes - held[:, 0])
    return np.column_stack([held, sizes - held.sum(axis=1)])


def _apportion(sizes: np.ndarray, share: float) -> np.ndarray:
    """A share of each size, by largest remainders, int64 [n]."""
    ideal = sizes * share
    counts = np.floor(ideal).astype(np.int64)
    missing = round(ideal.sum()) - counts.sum()
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return counts


def _fill_empty_splits(counts: np.ndarray, member: np.ndarray, wanted: np.ndarray) -> None:
    """Move one image of each class [strata, classes] to each wanted split without any, in `counts` [strata, 3]. Train
    comes first, validation last, as far as the images of the class go.
    """
    order = [split for split in _FIRST if split in wanted]
    for column in member.T:
        rows = np.flatnonzero(column)
        for place, split in enumerate(order):
            totals = counts[rows].sum(axis=0)
            if totals[split] == 0 and totals.sum() > place:
                totals[order[:place]] -= 1  # they keep one
                donor = totals.argmax()
                row = rows[counts[rows, donor].argmax()]
                counts[row, [donor, split]] += [-1, 1]


def _move_units(
    balanced: np.ndarray, coverage: np.ndarray, numbers: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Start from the hashes and move whole groups, or single images, while the balance improves."""
    order, unit = np.unique(numbers, return_inverse=True)
    features = np.concatenate([balanced, coverage], axis=1)
    held = np.zeros((len(order), features.shape[1]))
    np.add.at(held, unit, features)
    imbalance = _measure_balance(held, balanced.shape[1], shares, tolerance)
    splits = _natural(order, shares)
    totals = np.stack([held[splits == split].sum(axis=0) for split in range(3)])
    rows = np.arange(len(order))
    ends = np.cumsum(shares)
    # of each hash from the interval of each split
    distance = np.maximum(np.maximum((ends - shares) - order[:, None], order[:, None] - ends), 0)
    for _ in range(_MAX_MOVES):
        leave = imbalance(totals[splits], splits) - imbalance(totals[splits] - held, splits)
        gains = np.full((len(order), 3), -np.inf)
        for split in np.flatnonzero(shares):
            there = np.full(len(order), split)
            gains[:, split] = leave + imbalance(totals[there], there) - imbalance(totals[there] + held, there)
        gains[rows, splits] = -np.inf
        if gains.max() <= 1e-9:
            break
        # Of the best moves, the nearest in the order of the hashes, which changes least with more images.
        worth = np.where(gains >= gains.max() / 2, distance, np.inf)
        group, split = np.unravel_index(worth.argmin(), worth.shape)
        totals[splits[group]] -= held[group]
        totals[split] += held[group]
        splits[group] = split
    return splits[unit]


def _measure_balance(
    held: np.ndarray, balanced: int, shares: np.ndarray, tolerance: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function from (totals [n, columns], splits [n]) to the imbalance of each split, float64 [n]. The first
    `balanced` columns of `held` [groups, columns] should be near their fraction; the others are classes, of which each
    split should have some where enough groups have them.
    """
    sizes = held.sum(axis=0)
    units = (held > 0).sum(axis=0)[balanced:]
    order = [split for split in _FIRST if shares[split]]
    needed = np.array([order.index(split) + 1 if split in order else np.inf for split in range(3)])
    worth = sizes[0] * np.array([1, 1, len(sizes) + 1])  # a label without training images stops the run

    def imbalance(totals: np.ndarray, splits: np.ndarray) -> np.ndarray:
        ideal = shares[splits][:, None] * sizes[:balanced]
        beyond = np.abs(totals[:, :balanced] - ideal) - (tolerance * ideal + 1)
        absent = (totals[:, balanced:] < 0.5) & (units >= needed[splits][:, None])
        return np.maximum(beyond, 0).sum(axis=1) + worth[splits] * absent.sum(axis=1)

    return imbalance
