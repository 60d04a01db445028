"""Tasks, one per label column: a class, several labels, or a number to predict of an image."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from tlkeras.data.cells import MISSING_LABEL, list_classes, normalize_name, read_number, split_cell
from tlkeras.errors import fold_alike, list_some, suggest

THRESHOLD = 0.5

_FEW_EACH = 3  # images of a class, on average
_NO_LABEL = {"nan", "na", "n/a", "#n/a", "<na>", "nat", "none", "null", "nil", "missing", "-", "?", "unlabeled"}

TaskType = Literal["multiclass", "multilabel", "regression"]


@dataclass(frozen=True)
class Task:
    """A label to predict, one class per image: its name, and the class names in their order.

    Targets are class indices, int64 [n], -1 where unknown. Every kind of task can turn them into members, bool [n, k]:
    the classes that an image has. An image has a label from a probability of `threshold` on, if that is not None.
    """

    name: str
    class_names: tuple[str, ...]

    kind: ClassVar[TaskType] = "multiclass"
    has_classes: ClassVar[bool] = True
    is_multilabel: ClassVar[bool] = False
    threshold: ClassVar[float | None] = None
    output_name: ClassVar[str] = "probabilities"

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}

    def get_config(self) -> dict[str, str]:
        """Arguments of `make_task` besides name and classes."""
        return {}

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """Targets from the cells of a column; "" is a missing label."""
        return np.array([self._index.get(cell, -1) for cell in cells], dtype=np.int64)

    def is_labelled(self, targets: np.ndarray) -> np.ndarray:
        """Mask of the known targets, bool [n]."""
        return targets >= 0

    def members(self, targets: np.ndarray) -> np.ndarray:
        """Classes of each image, bool [n, k]; none where the target is not known."""
        return targets[:, None] == np.arange(len(self.class_names))

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Predicted members from probabilities [n, k], bool [n, k]: the most probable class."""
        return self.members(probabilities.argmax(axis=1))

    def same_decision(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Where two models predict the same by their probabilities [n, k], bool [n]."""
        return (self.decide(one) == self.decide(other)).all(axis=1)

    def measure_difference(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Largest difference between the predictions [n, k] of two models for each image, float [n]."""
        return np.abs(one - other).max(axis=1)

    def format(self, members: np.ndarray) -> list[str]:
        """One table cell per row of members."""
        return ["".join(names) for names in self.list_names(members)]

    def table_columns(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Column names and columns [n, columns] that explain probabilities [n, k] next to the predicted label."""
        return ["probability"], probabilities.max(axis=1, keepdims=True)

    def prediction_columns(self) -> list[str]:
        """Names of the cells of `format_prediction`."""
        return ["label", *(f"probability of {name}" for name in self.class_names)]

    def format_prediction(self, probabilities: np.ndarray) -> list[str]:
        """Table cells of one prediction, float [k]: the label, then the probability of each class."""
        return [*self.format(self.decide(probabilities[None])), *(f"{value:.7g}" for value in probabilities.tolist())]

    def format_targets(self, targets: np.ndarray) -> list[str]:
        """One table cell per target; `MISSING_LABEL` where it is not known."""
        written, known = self.format(self.members(targets)), self.is_labelled(targets)
        return [text if is_known else MISSING_LABEL for text, is_known in zip(written, known.tolist(), strict=True)]

    def to_indicator(self, targets: np.ndarray) -> np.ndarray:
        """Targets whose mean is the prior of the classes, float64 [n, k]; 0 where they are not known."""
        return self.members(targets).astype(np.float64)

    def to_dense_targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets as losses take them, float32 [n, k]; rows of NaN where they are not known."""
        dense = self.members(targets).astype(np.float32)
        dense[~self.is_labelled(targets)] = np.nan
        return dense

    def list_names(self, members: np.ndarray) -> list[list[str]]:
        """Names of each row's members, in the order of the classes."""
        return [[self.class_names[index] for index in np.flatnonzero(row)] for row in members]

    def member_names(self, targets: np.ndarray) -> tuple[str, ...]:
        """Names of the columns of `members`."""
        return self.class_names

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Strata that are divided between the splits one by one, int [n]."""
        return targets

    def balanced(self, targets: np.ndarray) -> np.ndarray:
        """Overlapping sets of images that are balanced between the splits, bool [n, columns]."""
        return np.zeros((len(targets), 0), bool)

    def find_coverage(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Sets of images of which every split needs some, bool [n], by name."""
        return dict(zip(self.class_names, self.members(targets).T, strict=True))

    def list_unknown(self, cells: Sequence[str]) -> list[str]:
        """Problems with classes of a column that the task does not have."""
        unknown = sorted(set(list_classes(cells, self.get_config().get("separator"))) - set(self.class_names))
        return [f"{self.name!r}: {name!r} is not a class. {suggest(name, self.class_names)}" for name in unknown]

    def list_problems(self, cells: Sequence[str]) -> list[str]:
        """Reasons why the column cannot be learned."""
        counts = Counter(cells)
        problems = self.list_unknown(cells)
        if len(self.class_names) < 2:
            problems.append(f"{self.name!r}: {_only(self.class_names, 'class')}. At least two are needed.")
        if empty := [name for name in self.class_names if not counts[name]]:
            some = ", ".join(list_some(empty))
            problems.append(f"{self.name!r}: no image: {some}. Add images, or remove the class.")
        single = [name for name in self.class_names if counts[name] == 1]
        if len(single) > 0.9 * len(self.class_names):
            problems.append(f"{self.name!r}: nearly every class has one image, such as {single[0]!r}. Add images.")
            problems += self._list_measured(whole=True)
        return problems

    def _list_measured(self, whole: bool) -> list[str]:
        """A sentence if the class names are numbers; whole ones count as such only where that is asked for."""
        numbers = [read_number(name) for name in self.class_names]
        if not all(map(math.isfinite, numbers)) or not (whole or any(number % 1 for number in numbers)):
            return []
        hint = "to predict a number, give it `kind: regression` in data.tasks, after a task with classes"
        return [f"{self.name!r}: its {len(numbers):,} classes are numbers, such as {self.class_names[-1]!r}; {hint}."]

    def find_spellings(self, targets: np.ndarray) -> dict[str, str]:
        """For each class name that differs only in how it is written, the most common one of these."""
        groups = self._group_spellings(targets).values()
        return {name: names[0] for names in groups for name in names[1:]}

    def merge_classes(self, targets: np.ndarray, names: Mapping[str, str]) -> np.ndarray:
        """Targets in which classes stand for others; all classes remain."""
        merged = [self._index.get(names.get(name, name), at) for name, at in self._index.items()]
        return np.where(targets >= 0, np.array(merged)[targets], targets)

    def _group_spellings(self, targets: np.ndarray) -> dict[str, list[str]]:
        """Class names by what they have in common, the most common first."""
        counts = dict(zip(self.class_names, self.members(targets).sum(axis=0).tolist(), strict=True))
        alike: dict[str, list[str]] = {}
        for name in sorted(self.class_names, key=lambda name: -counts[name]) if self.has_classes else ():
            alike.setdefault(normalize_name(name), []).append(name)
        return alike

    def list_spellings(self, targets: np.ndarray) -> list[str]:
        """Sentences on class names that differ only in how they are written, or that stand for a missing label."""
        counts = dict(zip(self.class_names, self.members(targets).sum(axis=0).tolist(), strict=True))
        notes = []
        for spelling, names in self._group_spellings(targets).items():
            told = ", ".join(f"{name!r} ({counts[name]:,})" for name in sorted(names))
            if len(names) > 1:
                merged = dict.fromkeys(sorted(names[1:]), names[0])
                rule = f"Labels that differ only in how they are written: {told}"
                notes.append(f'{rule}. --set "data.labels={merged}" merges them; so does `check --fix`.')
            if spelling in _NO_LABEL:
                none = dict.fromkeys(sorted(names), "")
                notes.append(f'Is {told} a missing label? --set "data.labels={none}" takes it for one.')
        few = sum(counts.values()) < _FEW_EACH * len(counts)
        return list_some(notes + (self._list_measured(whole=False) if self.has_classes and few else []))


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """Labels to predict, of which an image can have none, one or several.

    Targets are int8 [n, k]: 1 where an image has the label, 0 where not, and -1 throughout where nothing is known. An
    empty cell of a table means no label, `MISSING_LABEL` that the labels are not known.
    """

    separator: str = "|"

    kind: ClassVar[TaskType] = "multilabel"
    is_multilabel: ClassVar[bool] = True
    threshold: ClassVar[float | None] = THRESHOLD

    def get_config(self) -> dict[str, str]:
        return {"separator": self.separator}

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        targets = np.zeros((len(cells), len(self.class_names)), np.int8)
        for row, cell in enumerate(cells):
            if cell == MISSING_LABEL:
                targets[row] = -1
            else:
                targets[row, [self._index[name] for name in split_cell(cell, self.separator)]] = 1
        return targets

    def merge_classes(self, targets: np.ndarray, names: Mapping[str, str]) -> np.ndarray:
        merged = targets.copy()
        for old, new in names.items():
            if old in self._index and new in self._index:
                np.maximum(merged[:, self._index[new]], merged[:, self._index[old]], out=merged[:, self._index[new]])
                merged[:, self._index[old]] = np.minimum(merged[:, self._index[old]], 0)
        return merged

    def is_labelled(self, targets: np.ndarray) -> np.ndarray:
        return np.all(targets >= 0, axis=1)

    def members(self, targets: np.ndarray) -> np.ndarray:
        return targets == 1

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities >= THRESHOLD

    def format(self, members: np.ndarray) -> list[str]:
        return [self.separator.join(names) for names in self.list_names(members)]

    def table_columns(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [f"probability of {name}" for name in self.class_names], probabilities

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Zeros, int [n]: most sets of labels are rare, so that each label is balanced instead."""
        return np.zeros(len(targets), np.int64)

    def balanced(self, targets: np.ndarray) -> np.ndarray:
        return self.members(targets)

    def find_coverage(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Images with and without each label: one that all images have cannot be learned."""
        names = [*self.class_names, *(f"the absence of {name}" for name in self.class_names)]
        return dict(zip(names, [*(targets == 1).T, *(targets == 0).T], strict=True))

    def list_problems(self, cells: Sequence[str]) -> list[str]:
        problems = []
        if not any(self.separator in cell or not cell for cell in cells):
            received = f"no cell contains the separator {self.separator!r} or is empty. The first is {cells[0]!r}."
            way_out = "Correct data.separator, or leave it out if every image has one class."
            problems.append(f"{self.name!r}: {received} {way_out}")
        if len(self.class_names) < 2:
            way_out = "Write a single one as two classes, yes and no, without data.separator."
            problems.append(f"{self.name!r}: {_only(self.class_names, 'label')}. At least two are needed. {way_out}")
        sets = self.find_coverage(self.encode(cells))
        if empty := [name for name, rows in sets.items() if not rows.any()]:
            way_out = "A label needs images with it and without. Add images, or remove the label."
            problems.append(f"{self.name!r}: no image: {', '.join(list_some(empty))}. {way_out}")
        return problems


@dataclass(frozen=True)
class RegressionTask(Task):
    """A number to predict of every image, in the unit of the source; its only class name is its own.

    Targets are float64 [n], NaN where the number is not known. In place of probabilities stands the number, [n, 1].
    """

    kind: ClassVar[TaskType] = "regression"
    has_classes: ClassVar[bool] = False
    output_name: ClassVar[str] = "value"

    def get_config(self) -> dict[str, str]:
        return {"kind": "regression"}

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        return np.array([read_number(cell) for cell in cells], dtype=np.float64)

    def merge_classes(self, targets: np.ndarray, names: Mapping[str, str]) -> np.ndarray:
        return targets

    def is_labelled(self, targets: np.ndarray) -> np.ndarray:
        return np.isfinite(targets)

    def members(self, targets: np.ndarray) -> np.ndarray:
        return np.isfinite(targets)[:, None]

    def to_indicator(self, targets: np.ndarray) -> np.ndarray:
        return np.nan_to_num(targets)[:, None]

    def to_dense_targets(self, targets: np.ndarray) -> np.ndarray:
        return targets[:, None].astype(np.float32)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def same_decision(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Where two models predict the same to a thousandth of the largest number, bool [n]."""
        return self.measure_difference(one, other) <= 1e-3

    def measure_difference(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Difference between the numbers of two models as a fraction of the largest, float [n]."""
        return np.abs(one - other)[:, 0] / (float(np.abs(one).max()) or 1.0)

    def format(self, members: np.ndarray) -> list[str]:
        return [f"{value:.6g}" for value in members[:, 0].tolist()]

    def format_targets(self, targets: np.ndarray) -> list[str]:
        return [f"{value:.9g}" if np.isfinite(value) else MISSING_LABEL for value in targets.tolist()]

    def list_names(self, members: np.ndarray) -> list[list[str]]:
        return [[] for _ in members]

    def table_columns(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [], np.zeros((len(probabilities), 0))

    def prediction_columns(self) -> list[str]:
        return ["value"]

    def format_prediction(self, probabilities: np.ndarray) -> list[str]:
        return [f"{probabilities[0]:.7g}"]

    def member_names(self, targets: np.ndarray) -> tuple[str, ...]:
        """The range and the mean of the known numbers."""
        known = targets[self.is_labelled(targets)]
        if not len(known):
            return self.class_names
        return (f"{known.min():g} to {known.max():g}, {known.mean():.4g} on average",)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """The fifth in which each number lies, 0 to 4; -1 where it is not known."""
        known = np.isfinite(targets)
        edges = np.quantile(targets[known], [0.2, 0.4, 0.6, 0.8]) if known.any() else np.zeros(0)
        return np.where(known, np.searchsorted(edges, np.nan_to_num(targets)), -1)

    def find_coverage(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def list_unknown(self, cells: Sequence[str]) -> list[str]:
        given = [cell for cell in dict.fromkeys(cells) if cell not in ("", MISSING_LABEL)]
        return [f"{self.name!r}: {cell!r} is not a finite number." for cell in given if np.isnan(read_number(cell))]

    def list_problems(self, cells: Sequence[str]) -> list[str]:
        problems, known = fold_alike(self.list_unknown(cells)), self.encode(cells)
        if len(np.unique(known[np.isfinite(known)])) < 2:
            problems.append(f"{self.name!r}: fewer than two different numbers.")
        return problems


def _only(names: Sequence[str], what: str) -> str:
    return f"only one {what}, {names[0]!r}" if names else f"no {what}"


def prefix_with_task(tasks: Sequence[Task], task: Task, what: str) -> str:
    """`what` for the first task, `TASK_what` for others: names of what each task has one of."""
    return what if task.name == tasks[0].name else f"{task.name}_{what}"


def make_task(name: str, class_names: Sequence[str], separator: str | None = None, kind: str | None = None) -> Task:
    """The task of a column: one class per cell, labels with a separator between them, or a number."""
    if kind == "regression":
        return RegressionTask(name, (name,))
    if separator is None:
        return Task(name, tuple(class_names))
    return MultiLabelTask(name, tuple(class_names), separator)


def explain_order(tasks: Sequence[Task]) -> list[str]:
    """Sentences on tasks whose classes are whole numbers that are not their positions in the probabilities."""
    notes = []
    for task in tasks:
        places = [(at, name) for at, name in enumerate(task.class_names) if name != str(at)]
        if task.has_classes and places and all(name.isdecimal() for name in task.class_names):
            rule = f"The classes of {task.name!r} are numbers, but not their positions in the probabilities"
            notes.append(f"{rule}: position {places[0][0]} is class {places[0][1]!r}. labels.json has the order.")
    return notes
