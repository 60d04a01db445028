"""A worker of a job: one shard after the other, until none is left that it could compute."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow

from tlkeras.data.headers import InvalidImage
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import count_cores, read_error
from tlkeras.data.tables import Dataset
from tlkeras.errors import ResourceError
from tlkeras.features.engines import Engine
from tlkeras.features.extraction import stream_images
from tlkeras.inference.jobs.job import Job
from tlkeras.inference.jobs.rows import MakeTable

_PAUSE = 0.5  # seconds until claims of other workers are tried again
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class ShardProcessor:
    """Turns image files into rows of a table. Equal files give equal rows on every machine."""

    engine: Engine  # runs a model on images of one size
    size: int  # side of these images in pixels
    resize: str  # how an image becomes a square
    make_table: MakeTable  # makes the rows
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the rows depend on besides the images, JSON values

    def compute(self, paths: Sequence[str], names: Sequence[str]) -> tuple[pyarrow.Table, list[InvalidImage]]:
        """Rows of images in their order, and the images that have none, each with its reason."""
        with ThreadPoolExecutor(count_cores()) as pool:
            seen = list(pool.map(read_header_and_digest, paths))
        rejected = {row: found for row, found in enumerate(seen) if isinstance(found, InvalidImage)}
        rows = np.array([row for row in range(len(paths)) if row not in rejected], np.int64)
        digests = ["" if isinstance(found, InvalidImage) else found[0] for found in seen]
        results = list(self.engine.run(stream_images(Dataset.of_files(paths, digests, self.resize), rows, self.size)))
        read = np.concatenate([index for index, _ in results]) if results else rows[:0]
        for row in np.setdiff1d(rows, read).tolist():
            rejected[row] = read_error(paths[row])
        outputs = [np.concatenate(parts) for parts in zip(*(outputs for _, outputs in results), strict=True)]
        chosen = read.tolist()
        table, usable = self.make_table([names[row] for row in chosen], [digests[row] for row in chosen], outputs)
        for row in read[~usable].tolist():
            reason = "the network gives NaN, infinity or too large numbers"
            rejected[row] = InvalidImage(paths[row], "not-finite", reason)
        return table, [rejected[row] for row in sorted(rejected)]


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
            raise ResourceError(
                f"Cannot write results to {job.folder}.",
                error.strerror,
                "Finished shards are kept. Free some space and run the same command again.",
            ) from error
        job.note_error(shard, f"{type(error).__name__}: {error}")
        return False
    return True
