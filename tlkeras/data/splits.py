"""Which image trains, which one chooses, which one tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.errors import DataError, list_some

# Columns of the tables of counts below: the splits in the order in which they take from the hash order.
_SPLITS = ("test", "validation", "train")
_MOST_MOVES = 10_000


def assign_splits(dataset: Dataset, validation: float, test: float, seed: int, tolerance: float = 0.25) -> np.ndarray:
    """Give every example a split: "train", "validation" or "test", str [examples].

    An image's split follows from a number in [0, 1) that is a hash of the seed and its key, or its group: below
    `test` it tests, in the next `validation` it validates. So images that are added do not move the old ones. In
    each stratum (same targets, same `strata`) the size of a split may be off its exact share by `tolerance` times the
    share, plus one; only beyond that the boundary moves along the order of the hashes, and images next to it change
    split. With `tolerance=0` the sizes are exact, by largest remainders, and more images move.

    Every split gets each class that has as many images as there are splits. Examples of one group are never parted;
    their sizes are balanced as well as moving whole groups can. Where an image can have several labels, too many of
    its sets of labels are rare for strata: each label is balanced instead, by moving single images in the same way
    (with `tolerance=0` as near to its share as this goes), and every split gets images with and without it. Splits that
    the source gives are kept: what it lacks is carved out of its "train" (shares are of what is carved up).

    Raises:
        DataError: Shares outside [0, 1) or that leave nothing to train on.
    """
    shares = _check_shares(validation, test)
    given = np.array(dataset.given_splits, dtype=object)
    if not given.any():
        return _divide(dataset, shares, seed, tolerance)
    splits = np.where(given == "", "train", given).astype(object)
    shares[:2] *= [split not in given for split in _SPLITS[:2]]
    shares[2] = 1 - shares[:2].sum()
    pool = np.flatnonzero(splits == "train")
    splits[pool] = _divide(dataset.take(pool), shares, seed, tolerance)
    return splits


def subsample(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """Keep at most `limit` examples, in their order, with the same share of each stratum and split given.

    Each of these keeps two examples, where it has them, even if that makes more than `limit`; so does what each split
    should show.
    """
    if len(dataset) <= limit:
        return dataset
    strata = _number(zip(*_list_strata(dataset), dataset.given_splits, strict=True))
    sizes = np.bincount(strata)
    counts = np.maximum(_apportion(sizes, limit / len(dataset)), np.minimum(sizes, 2))
    while counts.sum() > limit and counts.max() > 2:
        counts[counts.argmax()] -= 1
    # Another hash than the one of the splits, which would leave only images of the first split.
    numbers = np.array([_hash(seed, f"thin {key}") for key in dataset.keys])
    order = np.lexsort((numbers, strata))
    rank = np.arange(len(dataset)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.zeros(len(dataset), bool)
    kept[order[rank < np.repeat(counts, sizes)]] = True
    by_number = np.argsort(numbers, kind="stable")
    for column in _join_aspects(dataset).T:
        if kept[column].sum() < 2:
            kept[by_number[column[by_number]][:2]] = True
    return dataset.take(np.flatnonzero(kept))


def check_splits(dataset: Dataset) -> None:
    """Make sure that there is something to learn every class from, and something to measure on.

    Args:
        dataset: All images; `split` is "" for those that dropped out.

    Raises:
        DataError: A class has no training image with weight, or no test image has any; all such problems.
    """
    splits = dataset.split
    counts = dataset.weights > 0
    problems = [] if (counts & (splits == "test")).any() else ["There is no test image (with a weight above 0)."]
    for task in dataset.tasks:
        absent = _list_absent(task, dataset, counts & (splits == "train"))
        known = task.is_labelled(dataset.targets[task.name])
        if (counts & (splits == "test")).any() and not (counts & known & (splits == "test")).any():
            problems.append(f"{task.name!r}: no test image (with a weight above 0) has a label.")
        if absent:
            problems.append(
                f"{task.name!r}: no training image (with a weight above 0) shows {', '.join(list_some(absent))}."
            )
    if problems:
        hint = "Add images, change the split, or remove the class."
        raise DataError.from_problems(f"Every class needs images to learn from, and a test split. {hint}", problems)


def classes_missing_from_test(dataset: Dataset) -> list[str]:
    """Sentences on the classes that cannot be measured, because no test image shows them."""
    tested = (dataset.weights > 0) & (dataset.split == "test")
    unseen = {task.name: _list_absent(task, dataset, tested) for task in dataset.tasks}
    return [
        f"{name!r}: no test image (with a weight above 0) shows {', '.join(list_some(absent))}; it is not measured."
        for name, absent in unseen.items()
        if absent
    ]


def _list_absent(task: Task, dataset: Dataset, rows: np.ndarray) -> list[str]:
    shown = np.any(task.coverage_columns(dataset.targets[task.name][rows]), axis=0)
    return [name for name, is_shown in zip(task.coverage_names, shown, strict=True) if not is_shown]


def _list_strata(dataset: Dataset) -> list[np.ndarray]:
    """Return columns [n] whose distinct rows are strata."""
    return [*(task.strata(dataset.targets[task.name]) for task in dataset.tasks), dataset.strata]


def _join_aspects(dataset: Dataset) -> np.ndarray:
    """Return what every split should show, bool [n, columns]."""
    return np.concatenate([task.coverage_columns(dataset.targets[task.name]) for task in dataset.tasks], axis=1)


def _check_shares(validation: float, test: float) -> np.ndarray:
    given = {"validation": validation, "test": test}
    problems = [
        f"{name} is a share, at least 0 and less than 1. Received: {share}."
        for name, share in given.items()
        if not 0 <= share < 1
    ]
    if not problems and validation + test >= 1:
        problems = [f"validation and test together leave something to train on. Received: {validation} + {test}."]
    if problems:
        raise DataError.from_problems("The shares of a split must add up to less than 1.", problems)
    return np.array([test, validation, 1 - test - validation])


def _divide(dataset: Dataset, shares: np.ndarray, seed: int, tolerance: float) -> np.ndarray:
    if not len(dataset):
        return np.array([], dtype=object)
    strata = _number(zip(*_list_strata(dataset), strict=True))
    labels = np.concatenate([task.balanced(dataset.targets[task.name]) for task in dataset.tasks], axis=1)
    aspects = _join_aspects(dataset)
    grouped = bool(dataset.groups.any())
    units = np.where(dataset.groups == "", dataset.keys, dataset.groups) if grouped else dataset.keys
    numbers = np.array([_hash(seed, str(unit)) for unit in units])
    if grouped or labels.size:
        balanced = np.concatenate([np.ones((len(strata), 1)), _one_hot(strata), labels], axis=1)
        splits = _move_units(balanced, aspects, numbers, shares, tolerance)
    else:
        splits = _cut_strata(strata, aspects, numbers, shares, tolerance)
    return np.array(_SPLITS, dtype=object)[splits]


def _hash(seed: int, unit: str) -> float:
    digest = hashlib.blake2b(f"{seed}\0{unit}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _number(values: Iterable[tuple]) -> np.ndarray:
    """Number the distinct tuples in sorted order: int64 [rows]."""
    rows = [tuple(map(str, row)) for row in values]
    index = {row: number for number, row in enumerate(sorted(set(rows)))}
    return np.array([index[row] for row in rows], dtype=np.int64)


def _one_hot(strata: np.ndarray) -> np.ndarray:
    """int64 [rows] -> bool [rows, strata]."""
    return strata[:, None] == np.arange(strata.max(initial=-1) + 1)


def _natural(numbers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The split that the hash alone gives: int64 [rows], an index of `_SIDES`."""
    return np.searchsorted(np.cumsum(shares)[:2], numbers, side="right")


def _cut_strata(
    strata: np.ndarray, aspects: np.ndarray, numbers: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Cut every stratum, in the order of its hashes, into test, validation and train."""
    sizes = np.bincount(strata)
    if tolerance == 0:
        counts = _exact_counts(sizes, shares)
    else:
        counts = _tolerant_counts(strata, sizes, _natural(numbers, shares), shares, tolerance)
    member = np.zeros((len(sizes), aspects.shape[1]), bool)
    member[strata] = aspects
    _fill_empty_splits(counts, member, np.flatnonzero(shares))
    splits = np.empty(len(strata), np.int64)
    splits[np.lexsort((numbers, strata))] = np.repeat(np.tile(np.arange(3), len(sizes)), counts.ravel())
    return splits


def _tolerant_counts(
    strata: np.ndarray, sizes: np.ndarray, natural: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Sizes of the splits as the hashes give them, brought within the tolerance: int64 [strata, 3]."""
    found = np.stack([np.bincount(strata[natural == split], minlength=len(sizes)) for split in (0, 1)], axis=1)
    ideal = sizes[:, None] * shares[:2]
    slack = (tolerance * ideal + 1) * (shares[:2] > 0)
    held = np.clip(found, np.ceil(ideal - slack), np.floor(ideal + slack)).astype(np.int64)
    held[:, 1] = np.minimum(held[:, 1], sizes - held[:, 0])
    return np.column_stack([held, sizes - held.sum(axis=1)])


def _exact_counts(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Sizes of the splits by largest remainders, exact in each stratum and in all: int64 [strata, 3]."""
    test = _apportion(sizes, shares[0])
    rest = sizes - test
    validation = _apportion(rest, shares[1] * sizes.sum() / max(rest.sum(), 1))
    return np.column_stack([test, validation, rest - validation])


def _apportion(sizes: np.ndarray, share: float) -> np.ndarray:
    ideal = sizes * share
    counts = np.floor(ideal).astype(np.int64)
    missing = round(ideal.sum()) - counts.sum()
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return counts


def _fill_empty_splits(counts: np.ndarray, member: np.ndarray, wanted: np.ndarray) -> None:
    """Move one image of a class to each wanted split without any, from the split that has most (in place).

    Args:
        counts: int64 [strata, 3].
        member: bool [strata, classes], the classes of each stratum.
        wanted: Splits with a share.
    """
    for column in member.T:
        rows = np.flatnonzero(column)
        for split in wanted:
            totals = counts[rows].sum(axis=0)
            if totals[split] == 0 and totals.sum() >= len(wanted):
                donor = totals.argmax()
                row = rows[counts[rows, donor].argmax()]
                counts[row, [donor, split]] += [-1, 1]


def _move_units(
    balanced: np.ndarray, aspects: np.ndarray, numbers: np.ndarray, shares: np.ndarray, tolerance: float
) -> np.ndarray:
    """Start from the hashes and move whole groups, or single images, while the balance gets better."""
    order, unit = np.unique(numbers, return_inverse=True)
    features = np.concatenate([balanced, aspects], axis=1)
    held = np.zeros((len(order), features.shape[1]))
    np.add.at(held, unit, features)
    wanted = np.flatnonzero(shares)
    miss = _measure_balance(held, balanced.shape[1], shares, tolerance)
    splits = _natural(order, shares)
    totals = np.stack([held[splits == split].sum(axis=0) for split in range(3)])
    rows = np.arange(len(order))
    distance = _measure_distance(order, shares)
    for _ in range(_MOST_MOVES):
        leave = miss(totals[splits], splits) - miss(totals[splits] - held, splits)
        gains = np.full((len(order), 3), -np.inf)
        for split in wanted:
            there = np.full(len(order), split)
            gains[:, split] = leave + miss(totals[there], there) - miss(totals[there] + held, there)
        gains[rows, splits] = -np.inf
        if gains.max() <= 1e-9:
            break
        # Of the moves that help much, the nearest in the order of the hashes, which changes least with more images.
        worth = np.where(gains >= gains.max() / 2, distance, np.inf)
        group, split = np.unravel_index(worth.argmin(), worth.shape)
        totals[splits[group]] -= held[group]
        totals[split] += held[group]
        splits[group] = split
    return splits[unit]


def _measure_distance(numbers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How far each hash is from the interval of each split: float64 [groups, 3]."""
    ends = np.cumsum(shares)
    below = (ends - shares) - numbers[:, None]
    return np.maximum(np.maximum(below, numbers[:, None] - ends), 0)


def _measure_balance(
    held: np.ndarray, balanced: int, shares: np.ndarray, tolerance: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function of (totals [n, columns], splits [n]): how far each split is from what it should be.

    The first `balanced` columns of `held` [groups, columns] should be near their share; the others are classes, of
    which each split should have some where enough groups have them.
    """
    sizes = held.sum(axis=0)
    enough = (held > 0).sum(axis=0)[balanced:] >= np.count_nonzero(shares)

    def miss(totals: np.ndarray, splits: np.ndarray) -> np.ndarray:
        ideal = shares[splits][:, None] * sizes[:balanced]
        beyond = np.abs(totals[:, :balanced] - ideal) - (tolerance * ideal + 1)
        absent = (totals[:, balanced:] < 0.5) & enough
        return np.maximum(beyond, 0).sum(axis=1) + sizes[0] * absent.sum(axis=1)

    return miss
