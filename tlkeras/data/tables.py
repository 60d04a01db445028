"""Images with named columns (`ImageTable`), and the labelled images made by choosing some of them (`Dataset`)."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tlkeras.data.cells import MISSING_LABEL, list_classes, read_number, split_cell
from tlkeras.data.headers import ImageWarning, InvalidImage, Look, Rendering, to_printable
from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import DataError, fold_alike, list_some, suggest

SPLITS = ("train", "validation", "test")
TARGET = "target"
"""The split of target-domain images that are learned from without their labels."""


@dataclass(frozen=True)
class ImageTable:
    """Files on disk and what is known about them, one string per file and column; "" where nothing is known.

    Attributes:
        source, root: What the table was read from, as the user wrote it; the folder that holds the images.
        paths, keys: Absolute paths, undecodable bytes as surrogates; paths relative to `root`, with "/" and printable.
        columns: By name. "split" holds words of `SPLITS`.
        defaults: Column by role ("label", "weight", "group", "domain", "stratify") where the caller names none.
        classes: Class names in their order, for columns where it is known; others are sorted.
        facts, rejected: Licence, citation, address ...; files that were found and left out.
        lost, notes: Cells of the rejected files, by column; sentences on what was done that the user should know.
    """

    source: str
    root: Path
    paths: list[str]
    keys: list[str]
    columns: dict[str, list[str]]
    defaults: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    rejected: tuple[InvalidImage, ...] = ()
    lost: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Dataset:
    """The images that are used, with the targets of each. All arrays have one entry per image; texts may be "".

    Attributes:
        source, root, keys, paths, facts, rejected, notes: As of `ImageTable`.
        targets: By task name, as the kind of task has them, see `Task`.
        weights: Sample weights, float32.
        groups, domains: Images of one group always share a split; those of one domain come from the same place, str.
        strata, given_splits: What splits balance besides the targets; words of `SPLITS`, as the source gives them, str.
        digests: SHA-256 of each file's bytes, str; "" where the file was not read yet.
        split: What each image is used for: one of `SPLITS`, or `TARGET`, str; "" where nothing is decided yet.
        warnings, rendering: What is odd in files; how an image becomes a square.
    """

    source: str
    root: Path
    keys: np.ndarray
    paths: np.ndarray
    tasks: tuple[Task, ...]
    targets: dict[str, np.ndarray]
    weights: np.ndarray
    groups: np.ndarray
    domains: np.ndarray
    strata: np.ndarray
    given_splits: np.ndarray
    digests: np.ndarray
    split: np.ndarray
    facts: dict[str, str] = field(default_factory=dict)
    rejected: tuple[InvalidImage, ...] = ()
    warnings: tuple[ImageWarning, ...] = ()
    notes: tuple[str, ...] = ()
    rendering: Rendering = field(default_factory=Rendering)

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of_files(cls, paths: Sequence[str], digests: Sequence[str], rendering: Look = "stretch") -> Dataset:
        """Images without labels, known by the SHA-256 of their bytes."""
        names, nothing = _objects(paths), _objects([""] * len(paths))
        rest = (np.ones(len(paths), np.float32), nothing, nothing, nothing, nothing, _objects(digests), nothing)
        return cls("files", Path(), names, names, (), {}, *rest, rendering=Rendering.of(rendering))

    def rows(self, split: str) -> np.ndarray:
        """Positions of the images of a split, int64 [n]."""
        return np.flatnonzero(self.split == split)

    def take(self, rows: np.ndarray) -> Dataset:
        """The images of `rows`, indices or a boolean mask, in that order; tasks keep all their classes."""
        arrays = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, targets={name: column[rows] for name, column in self.targets.items()}, **arrays)


def build_dataset(
    table: ImageTable,
    labels: Sequence[str] = (),
    weight: str | None = None,
    group: str | None = None,
    domain: str | None = None,
    stratify: Sequence[str] | None = None,
    separator: str | Mapping[str, Mapping[str, str]] | None = None,
) -> Dataset:
    """The labelled images of a table; each label column becomes a task.

    A role that is None is played by the table's default column for it, if there is one; "" leaves it empty. With a
    separator cells hold any number of labels, and an empty one says that there is none. Where columns are of several
    kinds, their facts, as `make_task` takes them, stand by name in its place. A DataError lists all problems at once:
    unknown columns, weights that are no numbers, classes, or labels that too few images have or lack.
    """
    labels = list(labels) or [_find_label(table)]
    roles = {"weight": weight, "group": group, "domain": domain}
    chosen = {role: table.defaults.get(role, "") if column is None else column for role, column in roles.items()}
    if problems := _unknown_columns(table, [*labels, *filter(None, chosen.values()), *(stratify or ())]):
        raise DataError.from_problems(f"{table.source!r} lacks columns that were named:", problems)
    alike = {} if separator is None or isinstance(separator, Mapping) else {"separator": separator}
    facts = separator if isinstance(separator, Mapping) else {}
    tasks = [_make_task(table, name, facts.get(name, alike)) for name in labels]
    problems = [problem for task in tasks for problem in task.list_problems(table.columns[task.name])]
    return _make_dataset(table, tasks, chosen, stratify, problems)


def build_dataset_for_tasks(table: ImageTable, tasks: Sequence[Task], roles: Mapping[str, str | None]) -> Dataset:
    """The images of a table with the labels of existing tasks, of which classes may be missing among them.

    Columns of labels bear the tasks' names; roles ("weight", "group", "domain") that the table lacks are left out. A
    DataError lists all problems: no such column, classes that no task has, weights that are no numbers.
    """
    if problems := _unknown_columns(table, [task.name for task in tasks]):
        raise DataError.from_problems(f"{table.source!r} has no column with the labels:", problems)
    wanted = {role: table.defaults.get(role, "") if column is None else column for role, column in roles.items()}
    chosen = {role: column if column in table.columns else "" for role, column in wanted.items()}
    unknown = [problem for task in tasks for problem in task.list_unknown(table.columns[task.name])]
    return _make_dataset(table, tasks, chosen, None, fold_alike(unknown))


def _make_dataset(
    table: ImageTable, tasks: Sequence[Task], roles: dict[str, str], stratify: Sequence[str] | None, problems: list[str]
) -> Dataset:
    weights = _parse_weights(table, roles["weight"], problems)
    problems += [problem for task in tasks for problem in _list_lost_classes(table, task)]
    if problems:
        raise DataError.from_problems(f"The labels or weights of {table.source!r} cannot be used:", problems)
    if stratify is None:
        stratify = [table.defaults["stratify"]] if "stratify" in table.defaults else []
    strata = [table.columns[name] for name in stratify] or [[""] * len(table)]
    targets = {task.name: task.encode(table.columns[task.name]) for task in tasks}
    return Dataset(
        source=table.source,
        root=table.root,
        keys=_objects(table.keys),
        paths=_objects(table.paths),
        tasks=tuple(tasks),
        targets=targets,
        weights=weights,
        groups=_column(table, roles["group"]),
        domains=_column(table, roles["domain"]),
        strata=_objects([" | ".join(values) for values in zip(*strata, strict=True)]),
        given_splits=_column(table, "split" if "split" in table.columns else ""),
        digests=_objects([""] * len(table)),
        split=_objects([""] * len(table)),
        facts=table.facts,
        rejected=table.rejected,
        notes=(*table.notes, *(note for task in tasks for note in task.list_spellings(targets[task.name]))),
    )


def _list_lost_classes(table: ImageTable, task: Task) -> list[str]:
    """Sentences on classes of which all files were left out, with the reasons."""
    separator = task.get_config().get("separator")
    files: dict[str, list[InvalidImage]] = {}
    for bad, cell in zip(table.rejected, table.lost.get(task.name, ()) if task.has_classes else (), strict=False):
        for name in list_classes([cell], separator):
            files.setdefault(name, []).append(bad)
    problems = []
    for name in sorted({*files} - {*list_classes(table.columns[task.name], separator)}):
        reasons = Counter(bad.reason for bad in files[name]).most_common(3)
        told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        example = f"of {len(files[name]):,}: {told}, such as {to_printable(files[name][0].path)}"
        problems.append(f"{task.name!r}: class {name!r} has no image that can be used, {example}.")
    way_out = "Mend these files, or remove the class with its folder or rows."
    return [*list_some(problems), *table.notes, way_out] if problems else []


def rename_columns(table: ImageTable, names: Mapping[str, str]) -> ImageTable:
    """The table with columns by further names, which hide columns that have them; a DataError names missing ones."""
    if problems := _unknown_columns(table, list(names.values())):
        raise DataError.from_problems(f"{table.source!r} lacks columns that were named:", problems)
    columns = {name: table.columns[column] for name, column in names.items()}
    classes = {name: table.classes[column] for name, column in names.items() if column in table.classes}
    hidden = {name: known for name, known in table.classes.items() if name not in columns}
    lost = {name: table.lost[column] for name, column in names.items() if column in table.lost}
    columns, lost = {**table.columns, **columns}, {**table.lost, **lost}
    return replace(table, columns=columns, classes={**hidden, **classes}, lost=lost)


def rename_labels(
    table: ImageTable, separators: Mapping[str, str | None], labels: Mapping[str, str], least: int = 0
) -> ImageTable:
    """The table with other names for labels, by column; "" is none, as for those of fewer than `least` images."""
    for name, separator in separators.items() if labels or least else ():
        cells, lost, classes = table.columns.get(name, []), table.lost.get(name, []), table.classes.get(name, ())
        counts = Counter({**dict.fromkeys([*list_classes(lost, separator), *classes], 0), MISSING_LABEL: least})
        counts.update(label for cell in cells for label in (split_cell(cell, separator) if separator else [cell]))
        notes = [f"data.labels: no image has {old!r}. {suggest(old, counts)}" for old in labels if old not in counts]
        names = {old: labels.get(old, old) for old in counts}
        merged = {
            new: sum(counts[old] for old in names if names[old] == new) for new in sorted({*names.values()} - {""})
        }
        if rare := {new: count for new, count in merged.items() if count < least}:
            told = ", ".join(list_some([f"{new} ({count})" for new, count in rare.items()]))
            notes.append(f"{name!r}: left out, with fewer than {least} images (data.min_images_per_class): {told}.")
        names |= {old: "" for old, new in names.items() if new in rare}
        table = replace(_rename_in_column(table, name, separator, names), notes=(*table.notes, *notes))
    return table


def _rename_in_column(table: ImageTable, name: str, separator: str | None, names: Mapping[str, str]) -> ImageTable:
    def rename(cell: str) -> str:
        parts = split_cell(cell, separator) if separator and cell != MISSING_LABEL else [cell]
        return (separator or "").join(dict.fromkeys(filter(None, (names[part] for part in parts))))

    known = tuple(dict.fromkeys(names[one] for one in table.classes.get(name, ()) if names[one]))
    classes = {**table.classes, name: known} if known else table.classes
    columns, lost = ({**all_, name: list(map(rename, all_.get(name, ())))} for all_ in (table.columns, table.lost))
    return replace(table, columns=columns, lost=lost, classes=classes)


def drop_unlabelled(dataset: Dataset, needless: np.ndarray | None = None) -> Dataset:
    """The images that have a label in some task or need none (`needless`, bool [n]); the others are rejected."""
    labelled = np.any([task.is_labelled(dataset.targets[task.name]) for task in dataset.tasks], axis=0)
    labelled |= False if needless is None else needless
    unlabelled = tuple(InvalidImage(path, "no-label", "it has no label") for path in dataset.paths[~labelled])
    return replace(dataset.take(labelled), rejected=(*dataset.rejected, *unlabelled))


def _find_label(table: ImageTable) -> str:
    """The column that plays the label by default; a DataError if there is none."""
    name = table.defaults.get("label", "label")
    others = [column for column in table.columns if column not in {"split", *table.defaults.values()}]
    if name not in table.columns and others:
        told = ", ".join(list_some(others))
        way_out = f"Name the column of the labels: --set {shlex.quote(f'data.label={others[0]}')}"
        raise DataError(f"{table.source!r} has no column 'label'.", told, way_out)
    return name


def _unknown_columns(table: ImageTable, names: Sequence[str]) -> list[str]:
    unknown = [name for name in dict.fromkeys(names) if name not in table.columns]
    return [f"There is no column {name!r}. {suggest(name, table.columns)}" for name in unknown]


def _make_task(table: ImageTable, name: str, facts: Mapping[str, str]) -> Task:
    separator = facts.get("separator")
    known = table.classes.get(name) if separator is None else None
    return make_task(name, known or list_classes(table.columns[name], separator), **facts)


def _parse_weights(table: ImageTable, column: str, problems: list[str]) -> np.ndarray:
    cells = table.columns[column] if column else [""] * len(table)
    weights = np.array([read_number(cell) if cell else 1.0 for cell in cells], np.float32)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    wrong = [f"{column!r} of {table.keys[row]!r} is {cells[row]!r}; a weight is a number, 0 or more." for row in bad]
    if not wrong and len(table) and not weights.any():
        wrong.append(f"{column!r}: every weight is 0.")
    problems += fold_alike(wrong)
    return weights


def _column(table: ImageTable, name: str) -> np.ndarray:
    return _objects(table.columns[name] if name else [""] * len(table))


def _objects(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)
