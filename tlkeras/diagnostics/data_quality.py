"""What `tlkeras check` finds in images and labels, as plain data: counts, copies, suspects, and how grave it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tlkeras.data.headers import Issue, to_printable
from tlkeras.data.inspection import ValidatedDataset
from tlkeras.data.quality.duplicates import DuplicateGroup, LeakingGroup
from tlkeras.data.quality.label_issues import Outlier, find_label_issues, find_outliers
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.heads.cross_validation import cross_val_predict
from tlkeras.heads.linear import LinearHead

UNBALANCED = 10  # times as many images in the largest class
LEAKING_SHARE = 0.1  # of the held-out images; where more of them only look like training ones, figures mean little
_FOLDS = 5


@dataclass(frozen=True)
class DataIssues:
    """Images to look at first.

    Attributes:
        mislabelled: By task: row, label, what a model says instead, and by how much.
        outliers: Rows unlike all others.
    """

    mislabelled: dict[str, list[tuple[int, str, str, float]]] = field(default_factory=dict)
    outliers: list[Outlier] = field(default_factory=list)


def find_suspects(dataset: Dataset, rows: np.ndarray, features: np.ndarray, groups: np.ndarray) -> DataIssues:
    """Return labels that out-of-fold answers of a linear head contradict, and images unlike all others.

    Args:
        examples: All of them.
        rows: Those that have features, int64 [n].
        features: Float [n, d].
        groups: Of all examples: what is never learned and asked at once; "" is no group.
    """
    own = np.array([str(number) for number in range(len(rows))], dtype=object)
    together = np.where(groups[rows] == "", own, groups[rows]).astype(str)
    mislabelled = {}
    for task in dataset.tasks:
        if not task.has_classes:
            continue
        found = _find_wrong_labels(task, dataset.targets[task.name][rows], features, together)
        mislabelled[task.name] = [(int(rows[at]), label, other, score) for at, label, other, score in found]
    outliers = [Outlier(int(rows[outlier.row]), outlier.score) for outlier in find_outliers(features)]
    return DataIssues(mislabelled, outliers)


def _find_wrong_labels(
    task: Task, targets: np.ndarray, features: np.ndarray, groups: np.ndarray
) -> list[tuple[int, str, str, float]]:
    known = np.flatnonzero(task.is_labelled(targets))
    members = task.members(targets)
    counts = np.array([len(np.unique(groups[known][column])) for column in members[known].T])
    folds = min(_FOLDS, int(counts[counts > 0].min(initial=_FOLDS)))
    if folds < 2:
        return []
    try:
        strength = LinearHead().fit(features[known], targets[known], groups=groups[known]).C_
        maker = partial(LinearHead, C=strength)
        probabilities = cross_val_predict(maker, features, targets, folds=folds, groups=groups)
    except ValueError:  # too few images or groups of a class to learn it without some of them
        return []
    if targets.ndim == 1:
        suspects = find_label_issues(probabilities, targets)
        names = task.class_names
        return [(bad.row, names[targets[bad.row]], names[bad.suggested], bad.score) for bad in suspects]
    found = []
    for number, name in enumerate(task.class_names):
        two = np.stack([1 - probabilities[:, number], probabilities[:, number]], axis=1)
        words = (f"not {name}", name)
        for bad in find_label_issues(two, targets[:, number].astype(np.int64)):
            found.append((bad.row, words[1 - bad.suggested], words[bad.suggested], bad.score))
    return sorted(found, key=lambda suspect: -suspect[-1])


def describe_classes(dataset: Dataset, splits: np.ndarray) -> list[dict[str, Any]]:
    """Return a row per task and class: images, share of the task's, and images by split where there are splits.

    The row of a number tells its range.
    """
    rows = []
    for task in dataset.tasks:
        targets = dataset.targets[task.name]
        members = task.members(targets)
        for name, column in zip(task.member_names(targets), members.T, strict=True):
            share = column.sum() / max(members.any(axis=1).sum(), 1)
            by_split = {str(split): int((column & (splits == split)).sum()) for split in dict.fromkeys(splits) if split}
            rows.append({"task": task.name, "class": name, "images": int(column.sum()), "share": share, **by_split})
    return rows


def describe_findings(findings: Sequence[Issue]) -> list[dict[str, str]]:
    """Return path, code and reason of each, as text that can be printed."""
    return [{"path": to_printable(found.path), "code": found.code, "reason": found.reason} for found in findings]


def duplicates_to_dicts(dataset: Dataset, splits: np.ndarray, copies: Sequence[DuplicateGroup]) -> list[dict[str, Any]]:
    """Return each group of copies with path, labels and split of its images."""
    return [
        {
            "kind": "exact" if group.exact else "near",
            "similarity": round(group.similarity, 4),
            "conflicting": group.conflicting,
            "leaking": group.leaking,
            "images": [describe_image(dataset, splits, row) for row in group.rows],
        }
        for group in copies
    ]


def describe_suspects(dataset: Dataset, splits: np.ndarray, suspects: DataIssues) -> dict[str, list[dict[str, Any]]]:
    """Return `mislabelled` and `outliers`, the most suspicious first."""
    several = len(dataset.tasks) > 1
    wrong = [
        {
            **describe_image(dataset, splits, row),
            **({"task": name} if several else {}),
            "label": label,
            "suggested": suggested,
            "score": round(score, 4),
        }
        for name, found in suspects.mislabelled.items()
        for row, label, suggested, score in found
    ]
    wrong.sort(key=lambda suspect: -suspect["score"])
    odd = [
        {**describe_image(dataset, splits, outlier.row), "score": round(outlier.score, 3)}
        for outlier in suspects.outliers
    ]
    return {"mislabelled": wrong, "outliers": odd}


def describe_image(dataset: Dataset, splits: np.ndarray, row: int) -> dict[str, Any]:
    """Return path, key, label and split of one image; the key is its path within the source."""
    labels = [_write_label(task, dataset.targets[task.name][row : row + 1]) for task in dataset.tasks]
    path, key = to_printable(dataset.paths[row]), str(dataset.keys[row])
    return {"path": path, "key": key, "label": ", ".join(labels), "split": str(splits[row])}


def _write_label(task: Task, target: np.ndarray) -> str:
    return task.format_targets(target)[0]


def summarise(
    inspection: ValidatedDataset, splits: np.ndarray, copies: Sequence[DuplicateGroup], leaking: Sequence[LeakingGroup]
) -> tuple[list[str], list[str]]:
    """Return problems, for which training is not advisable, and notes, which are worth a look; sentences both."""
    problems = [*_list_copy_problems(splits, copies)]
    for group in leaking:
        parts = " and ".join(f"{count:,} of {split}" for split, count in group.splits.items())
        problems.append(f"Group {group.name!r} stands on several splits: {parts}. Its images must stay together.")
    notes = [*_list_remarks(inspection), *_list_imbalances(inspection.dataset), *_list_copy_notes(splits, copies)]
    return problems, notes


def _list_copy_problems(splits: np.ndarray, copies: Sequence[DuplicateGroup]) -> Iterator[str]:
    exact = [group for group in copies if group.exact]
    if conflicts := [group for group in exact if group.conflicting]:
        yield f"{_count(conflicts)} have the same bytes and different labels: which one is right?"
    if leaks := [group for group in exact if group.leaking]:
        yield f"{_count(leaks)} have the same bytes and stand on different splits: what is measured was learned."
    share = _measure_leak(splits, copies)
    if share > LEAKING_SHARE:
        yield f"{share:.0%} of the held-out images look like ones to train on: figures would be too good."


def _list_copy_notes(splits: np.ndarray, copies: Sequence[DuplicateGroup]) -> Iterator[str]:
    exact, near = ([group for group in copies if group.exact is kind] for kind in (True, False))
    if exact:
        yield f"{_count(exact)} have the same bytes as another."
    if near:
        yield f"{_count(near)} look the same as another."
    if conflicts := [group for group in near if group.conflicting]:
        yield f"{_count(conflicts)} of these have different labels."
    share = _measure_leak(splits, copies)
    if 0 < share <= LEAKING_SHARE:
        yield f"{share:.1%} of the held-out images look like ones to train on; `--fix` groups them."


def _count(groups: Sequence[DuplicateGroup]) -> str:
    return f"{sum(len(group.rows) for group in groups):,} images in {len(groups):,} group(s)"


def _measure_leak(splits: np.ndarray, copies: Sequence[DuplicateGroup]) -> float:
    """Return which share of the held-out images has a copy among those to train on."""
    held = (splits != "train") & (splits != "")
    rows = {row for group in copies if group.leaking and "train" in splits[list(group.rows)] for row in group.rows}
    return len([row for row in rows if held[row]]) / max(int(held.sum()), 1)


def _list_remarks(inspection: ValidatedDataset) -> Iterator[str]:
    """Yield a sentence per kind of oddity, with how often it was met and the first image."""
    counts = Counter(note.code for note in inspection.notes)
    for code, count in counts.most_common():
        first = next(note for note in inspection.notes if note.code == code)
        yield str(first) if count == 1 else f"{count:,} images are like this one: {first}"


def _list_imbalances(dataset: Dataset) -> Iterator[str]:
    for task in dataset.tasks:
        counts = task.members(dataset.targets[task.name]).sum(axis=0)
        order = [at for at in np.argsort(counts, kind="stable").tolist() if counts[at]]
        if order and counts[order[-1]] > UNBALANCED * counts[order[0]]:
            few, many, times = (
                task.class_names[order[0]],
                task.class_names[order[-1]],
                counts[order[-1]] / counts[order[0]],
            )
            yield f"{task.name!r}: there are {times:,.0f} times as many images of {many!r} as of {few!r}."
