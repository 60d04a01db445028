"""The image files that are named to be predicted, and their predictions, as every way to predict returns them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkeras.data.headers import Header, ImageError, ImageWarning, InvalidImage, Rendering, check_header, to_printable
from tlkeras.data.inspection import UPPER_BITS, list_warnings
from tlkeras.data.issues import describe_issues
from tlkeras.data.sources.folders import iter_image_files
from tlkeras.errors import DataError, TlkerasError, list_some
from tlkeras.plotting.notebook import render_bars, render_card
from tlkeras.results import HIDDEN, Result, Table, make_frame

if TYPE_CHECKING:
    import pandas

_NOTED = ("orientation-ignored", "upper-bits")
"""Codes of what a prediction must say of an image that it could read."""


def expand_paths(images: Sequence[str | Path]) -> tuple[list[str], list[InvalidImage]]:
    """Image files, and those below folders, in order, and the other files there; DataError if some do not exist."""
    lost = [InvalidImage(str(image), "missing", "it does not exist") for image in images if not os.path.lexists(image)]
    if lost:
        raise DataError.from_problems("Some images were not found:", list_some(describe_issues(lost)))
    return find_files(images)


def find_files(images: Sequence[str | Path]) -> tuple[list[str], list[InvalidImage]]:
    """The named files, existing or not, and images below folders, and the other files there; DataError if none."""
    rejected: list[InvalidImage] = []
    paths: list[str] = []
    for image in images:
        paths += iter_image_files(image, rejected) if os.path.isdir(image) else [str(image)]
    if not paths and not rejected:
        raise explain_no_images(images, rejected)
    return paths, rejected


def explain_no_images(places: Sequence[str | Path], rejected: Sequence[InvalidImage]) -> TlkerasError:
    """The error that there is no image in any place, with what is there instead."""
    places = ", ".join(list_some(list(map(str, places)))) or "no file and no folder"
    if not rejected:
        return DataError("No image was found.", places)
    headline = f"No image was found. Received: {places}, with:"
    return DataError.from_problems(headline, list_some(describe_issues(rejected)))


def list_notes(path: str, seen: Header | bytes, rendering: Rendering | None = None) -> list[ImageWarning]:
    """What must be said of an image, known by its header or bytes, that is not taken as a viewer shows it.

    Where the rendering is known and has no depth range, that is also what becomes of 16 bits.
    """
    try:
        header = check_header(seen) if isinstance(seen, bytes) else seen
    except ImageError:
        return []
    found = list_warnings(path, header)
    cut = rendering is not None and rendering.depth_range is None and any(one.code == "deep" for one in found)
    noted = [ImageWarning(path, "upper-bits", f"{UPPER_BITS}; data.depth_range sets other values")] if cut else []
    return noted + [warning for warning in found if warning.code in _NOTED]


@dataclass(frozen=True)
class UnreadableImage(Result):
    """An image without a prediction or features."""

    path: str  # the file, in printable characters
    reason: str  # why it has none
    code: str  # the kind of reason, for programs: "missing", "unsupported", "damaged" ...


def list_unreadable(images: Iterable[InvalidImage]) -> Table[UnreadableImage]:
    """The images without a prediction, as results have them."""
    return Table(UnreadableImage(to_printable(bad.path), bad.reason, bad.code) for bad in images)


@dataclass(frozen=True)
class ClassProbability(Result):
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class TaskPrediction(Result):
    """The prediction of one task for one image."""

    label: str  # all predicted labels, or the number, as one text, as the source writes it
    probability: float | None = None  # probability of the most probable class; None of a number
    labels: tuple[str, ...] = ()  # predicted classes: one, or every one whose probability reaches the threshold
    top: tuple[ClassProbability, ...] = ()  # the most probable classes, best first
    value: float | None = None  # the predicted number; None where classes are predicted
    classes: Sequence[str] = field(default=(), repr=False, compare=False, metadata=HIDDEN)
    outputs: np.ndarray | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)  # float32 [k]

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class; none of a number, or where a server was asked."""
        return {} if self.outputs is None else dict(zip(self.classes, self.outputs.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without those that this kind of task does not have."""
        missing = {"value"} if self.value is None else {"probability", "labels", "top"}
        return {name: value for name, value in super().to_dict().items() if name not in missing}


@dataclass(frozen=True, kw_only=True)
class ImagePrediction(TaskPrediction):
    """The predictions for one image."""

    path: str  # the file, in printable characters
    tasks: Mapping[str, TaskPrediction] = field(default_factory=dict)  # by name; those above are of the first

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name; `tasks` only where there are several."""
        return {name: value for name, value in super().to_dict().items() if name != "tasks" or len(value) > 1}

    def _repr_html_(self) -> str:
        bars = render_bars({one.label: one.probability for one in self.top}) if self.top else ""
        return render_card(self.label, [self.path], bars)


@dataclass(frozen=True)
class PredictionResult(Result):
    """Predictions for some images."""

    run: str  # name of the run, or address of the served model
    threshold: float | None  # probability from which an image has a label; None where the most probable class counts
    predictions: Table[ImagePrediction]  # one per readable image, in the order given
    unreadable: Table[UnreadableImage]  # all other files, also those that folders hold beside images
    notes: tuple[str, ...] = ()  # sentences on images that were not predicted as a viewer shows them

    def count_labels(self) -> dict[str, int]:
        """The number of images of each predicted label, most frequent first."""
        return dict(Counter(label for one in self.predictions for label in one.labels).most_common())

    def to_frame(self) -> pandas.DataFrame:
        """`path`, `label`, `probability` and `p_CLASS` or `value` of each image, and of unreadable ones the `reason`.

        MissingExtraError without pandas.
        """
        rows = [_list_cells(one) for one in self.predictions]
        return make_frame([*rows, *({"path": bad.path, "reason": bad.reason} for bad in self.unreadable)])

    def _repr_html_(self) -> str:
        counts = self.count_labels()
        unread = f", {len(self.unreadable):,} cannot be read" if self.unreadable else ""
        parts = [render_bars(counts) if counts else "", self.unreadable._repr_html_() if self.unreadable else ""]
        return render_card(self.run, [f"{len(self.predictions):,} images predicted{unread}.", *self.notes], *parts)


def _list_cells(image: ImagePrediction) -> Mapping[str, Any]:
    """The cells of a prediction by column; of several tasks each has its name in front."""
    cells: dict[str, Any] = {"path": image.path}
    for name, of_task in image.tasks.items():
        prefix = f"{name}_" if len(image.tasks) > 1 else ""
        cells[f"{prefix}label"] = of_task.label
        if of_task.value is not None:
            cells[f"{prefix}value"] = of_task.value
            continue
        cells[f"{prefix}probability"] = of_task.probability
        cells |= {f"{prefix}p_{label}": value for label, value in of_task.probabilities.items()}
    return cells


@dataclass(frozen=True)
class PredictionFileResult(Result):
    """Predictions written into a table."""

    run: str
    out: str
    rows: int
    unreadable: tuple[UnreadableImage, ...]  # files without a row
    rejected: str | None  # path of their list; None where every image has a row
    engine: str | None  # engine of this call; None where nothing was left to compute
    resumed: int  # images that an earlier call had computed
    seconds: float  # wall time of this call
    rate: float  # images per second of this call
    notes: tuple[str, ...] = ()  # sentences on images that were not predicted as a viewer shows them


@dataclass(frozen=True)
class FailedShard(Result):
    """A shard that was given up: its number, the names of its first and last image, and the last error."""

    shard: int
    first: str
    last: str
    error: str


@dataclass(frozen=True)
class JobSummary(Result):
    """Progress of a job in shards."""

    images: int  # files found, those included that were left out
    shards: int
    done: int  # shards with a record
    rows: int  # rows in their parts
    rejected: int  # files without a row: what was left out at the beginning, and images of these shards
    bytes: int  # size of their parts
    sha256: str | None  # of all parts' digests in order: equal for equal rows; None until every shard is done

    @property
    def settled(self) -> int:
        return self.rows + self.rejected


@dataclass(frozen=True, kw_only=True)
class JobResult(JobSummary):
    """A job in shards, finished or not, after a call."""

    folder: str
    unreadable: tuple[UnreadableImage, ...]  # files without a row, named relative to the job's root
    failed: tuple[FailedShard, ...]  # shards that were given up
    notes: tuple[str, ...]  # sentences on images that were not taken as a viewer shows them
    computed: int
    seconds: float  # wall time of this call
    engine: str  # "local" or "ray"
    workers: int
