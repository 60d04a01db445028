"""Predictions of images, as every way to predict returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlkeras.results import Result


@dataclass(frozen=True)
class UnreadableImage(Result):
    """An image without a prediction or features.

    Attributes:
        path: The file, in printable characters.
        reason: Why it has none.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ClassProbability(Result):
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class TaskPrediction(Result):
    """The prediction of one task for one image.

    Attributes:
        label: All predicted labels, or the number, as one text, as the source writes it.
        probability: Probability of the most probable class; None of a number.
        labels: Predicted classes: one, or every one whose probability reaches the threshold.
        top: The most probable classes, best first.
        value: The predicted number; None where classes are predicted.
    """

    label: str
    probability: float | None = None
    labels: tuple[str, ...] = ()
    top: tuple[ClassProbability, ...] = ()
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without those that this kind of task does not have."""
        missing = ("value",) if self.value is None else ("probability", "labels", "top")
        return {name: value for name, value in super().to_dict().items() if name not in missing}


@dataclass(frozen=True, kw_only=True)
class ImagePrediction(TaskPrediction):
    """The predictions for one image.

    Attributes:
        path: The file, in printable characters.
        tasks: The prediction of each task by its name; the attributes above are those of the first.
    """

    path: str
    tasks: Mapping[str, TaskPrediction] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name; `tasks` only where there are several."""
        plain = super().to_dict()
        return plain if len(self.tasks) > 1 else {name: value for name, value in plain.items() if name != "tasks"}


@dataclass(frozen=True)
class PredictionResult(Result):
    """Predictions for some images.

    Attributes:
        run: Name of the run, or address of the served model.
        threshold: Probability from which an image has a label; None where the most probable class counts.
        predictions: One per readable image, in the order given.
        unreadable: The other images.
    """

    run: str
    threshold: float | None
    predictions: tuple[ImagePrediction, ...]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class PredictionFileResult(Result):
    """Predictions written into a table.

    Attributes:
        run: Name of the run.
        out: Path of the table.
        rows: Its rows.
        unreadable: Images without a row.
        rejected: Path of their list; None where every image has a row.
        engine: Engine of this call; None where nothing was left to compute.
        resumed: Images that an earlier call had computed.
        seconds: Wall time of this call.
        rate: Images per second of this call.
    """

    run: str
    out: str
    rows: int
    unreadable: tuple[UnreadableImage, ...]
    rejected: str | None
    engine: str | None
    resumed: int
    seconds: float
    rate: float


@dataclass(frozen=True)
class FailedShard(Result):
    """A shard that was given up: its number, the names of its first and last image, and the last error."""

    shard: int
    first: str
    last: str
    error: str


@dataclass(frozen=True)
class JobSummary(Result):
    """Progress of a job in shards.

    Attributes:
        images: All images.
        shards: All shards.
        done: Shards with a record.
        rows: Rows in their parts.
        rejected: Number of their images without a row.
        bytes: Size of their parts.
        sha256: SHA-256 of all parts' digests in order: jobs with equal ones have equal rows, byte for byte. None
            until every shard is done.
    """

    images: int
    shards: int
    done: int
    rows: int
    rejected: int
    bytes: int
    sha256: str | None

    @property
    def settled(self) -> int:
        """Images of finished shards."""
        return self.rows + self.rejected


@dataclass(frozen=True, kw_only=True)
class JobResult(JobSummary):
    """A job in shards, finished or not, after a call.

    Attributes:
        folder: Folder of the job.
        unreadable: Images without a row, named relative to the job's root.
        failed: Shards that were given up.
        computed: Images of this call.
        seconds: Wall time of this call.
        engine: "local" or "ray".
        workers: Number of workers.
    """

    folder: str
    unreadable: tuple[UnreadableImage, ...]
    failed: tuple[FailedShard, ...]
    computed: int
    seconds: float
    engine: str
    workers: int
