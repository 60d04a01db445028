"""A worker of a job: one shard after the other, from image files to rows, until none is left that it could compute."""

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow

from tlkeras.config.image_size import ImageSize
from tlkeras.data.headers import ImageWarning, InvalidImage, Rendering
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import count_cores, read_error
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.errors import ResourceError
from tlkeras.features.engines import Engine
from tlkeras.features.extraction import stream_images
from tlkeras.inference.jobs.job import Job
from tlkeras.inference.results import list_notes

_PAUSE = 0.5  # seconds until claims of other workers are tried again
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

MakeTable = Callable[[list[str], list[str], list[np.ndarray]], tuple[pyarrow.Table, np.ndarray]]
"""From names, digests and outputs [n, ...] each to rows, and which of the images have one, bool [n]."""


def feature_table(dtype: str, width: int) -> MakeTable:
    """A function that makes rows of name, SHA-256 and features, a list of `width` numbers in float16 or float32."""

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        values = outputs[0].reshape(len(names), width) if outputs else np.empty((0, width), np.float32)
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        usable = np.asarray(np.isfinite(values).all(axis=1))
        features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values[usable].ravel()), width)
        return pyarrow.table({**_identify(names, digests, usable), "features": features}), usable

    return make


def prediction_table(tasks: Sequence[Task]) -> MakeTable:
    """A function that makes rows of name, SHA-256 and each task's columns, after its name where there are several.

    These are `label` and a float32 `probability of NAME` per class, or `value`.
    """
    several = len(tasks) > 1
    header = [f"{task.name}: {name}" if several else name for task in tasks for name in task.prediction_columns()]

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        predictions = outputs or [np.empty((0, len(task.class_names)), np.float32) for task in tasks]
        usable = np.asarray(np.all([np.isfinite(prediction).all(axis=1) for prediction in predictions], axis=0))
        columns: list[Any] = []
        for task, prediction in zip(tasks, predictions, strict=True):
            if task.has_classes:
                columns.append(pyarrow.array(task.format(task.decide(prediction[usable])), pyarrow.string()))
            columns += [pyarrow.array(column) for column in prediction[usable].T]
        return pyarrow.table({**_identify(names, digests, usable), **dict(zip(header, columns, strict=True))}), usable

    return make


def _identify(names: list[str], digests: list[str], usable: np.ndarray) -> dict[str, pyarrow.Array]:
    chosen = np.flatnonzero(usable).tolist()
    texts = {"image": names, "sha256": digests}
    return {key: pyarrow.array([text[row] for row in chosen], pyarrow.string()) for key, text in texts.items()}


@dataclass(frozen=True)
class ShardProcessor:
    """Turns image files into rows of a table. Equal files give equal rows on every machine."""

    engine: Engine  # runs a model on images of one size
    size: ImageSize  # of these images in pixels
    rendering: Rendering  # how an image becomes RGB of that size
    make_table: MakeTable  # makes the rows
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the rows depend on besides the images, JSON values

    def compute(
        self, paths: Sequence[str], names: Sequence[str]
    ) -> tuple[pyarrow.Table, list[InvalidImage], list[ImageWarning]]:
        """Rows of images in their order, images that have none, and images that were not taken as viewers show them."""
        with ThreadPoolExecutor(count_cores()) as pool:
            seen = list(pool.map(read_header_and_digest, paths, [self.rendering.max_pixels] * len(paths)))
        rejected = {row: found for row, found in enumerate(seen) if isinstance(found, InvalidImage)}
        rows = np.array([row for row in range(len(paths)) if row not in rejected], np.int64)
        digests = ["" if isinstance(found, InvalidImage) else found[0] for found in seen]
        dataset = Dataset.of_files(paths, digests, self.rendering)
        results = list(self.engine.run(stream_images(dataset, rows, self.size)))
        read = np.concatenate([index for index, _ in results]) if results else rows[:0]
        for row in np.setdiff1d(rows, read).tolist():
            rejected[row] = read_error(paths[row], self.rendering)
        outputs = [np.concatenate(parts) for parts in zip(*(outputs for _, outputs in results), strict=True)]
        chosen = read.tolist()
        table, usable = self.make_table([names[row] for row in chosen], [digests[row] for row in chosen], outputs)
        for row in read[~usable].tolist():
            reason = "the network gives NaN, infinity or too large numbers"
            rejected[row] = InvalidImage(paths[row], "not-finite", reason)
        headers = [None if row in rejected or isinstance(one, InvalidImage) else one[1] for row, one in enumerate(seen)]
        known = [(path, header) for path, header in zip(paths, headers, strict=True) if header]
        noted = [note for path, header in known for note in list_notes(path, header, self.rendering)]
        return table, [rejected[row] for row in sorted(rejected)], noted


def process_shards(job: Job, processor: ShardProcessor, advance: Callable[[int], None] = lambda images: None) -> None:
    """Compute all shards that no other worker computes, and those of workers that died meanwhile, until none is left.

    A shard that fails is tried again, `ATTEMPTS` times by all workers together; the other shards are computed anyway.
    ResourceError if the disk is full; no attempt is counted.
    """
    while pending := job.list_pending():
        idle = True
        for shard in pending:
            with job.claim(shard) as free:
                if free and not job.is_done(shard) and process_shard(job, processor, shard):
                    idle = False
                    advance(job.read_record(shard).images)
        if idle:
            time.sleep(_PAUSE)


def process_shard(job: Job, processor: ShardProcessor, shard: int) -> bool:
    """Compute a shard that was claimed; whether it is done."""
    job.note_start(shard)
    try:
        paths = job.read_paths(shard)
        job.finish(shard, *processor.compute(paths, [job.name(path) for path in paths]))
    except Exception as error:  # of any kind: the other shards are computed nevertheless
        if isinstance(error, OSError) and error.errno in _FULL:
            job.forget_attempts(shard)
            way_out = "Finished shards are kept. Free some space and run the same command again."
            raise ResourceError(f"Cannot write results to {job.folder}.", error.strerror, way_out) from error
        job.note(shard, error=f"{type(error).__name__}: {error}")
        return False
    return True
