"""What a worker does: one shard after the other, until none is left that it could do."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow

from tlkeras.data.headers import InvalidImage
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import count_cores, read_error
from tlkeras.errors import ResourceError
from tlkeras.features.engines import Engine
from tlkeras.features.extraction import ImageFiles
from tlkeras.inference.jobs.job import Job

_PAUSE = 0.5  # seconds between two looks at what others are at
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

MakeTable = Callable[[list[str], list[str], list[np.ndarray]], tuple[pyarrow.Table, np.ndarray]]
"""From names, digests and outputs [n, ...] each to rows, and which of the images have one, bool [n]."""


class ShardProcessor:
    """Turns image files into rows of a table. Equal files give equal rows, whoever computes them.

    Args:
        engine: Runs a model on images of one size.
        size: Side of these images in pixels.
        fit: How an image becomes a square.
        make_table: What the rows are.
    """

    def __init__(self, engine: Engine, size: int, fit: str, make_table: MakeTable):
        self.engine, self.size, self.fit, self._make_table = engine, size, fit, make_table

    def compute(self, paths: Sequence[str], names: Sequence[str]) -> tuple[pyarrow.Table, list[InvalidImage]]:
        """Return the rows of images in their order, and the images that have none, each with its reason."""
        with ThreadPoolExecutor(count_cores()) as pool:
            seen = list(pool.map(read_header_and_digest, paths))
        rejected = {row: found for row, found in enumerate(seen) if isinstance(found, InvalidImage)}
        rows = np.array([row for row in range(len(paths)) if row not in rejected], np.int64)
        digests = ["" if isinstance(found, InvalidImage) else found[0] for found in seen]
        results = list(self.engine.run(ImageFiles(paths, digests, self.fit).stream(rows, self.size)))
        read = np.concatenate([index for index, _ in results]) if results else rows[:0]
        for row in np.setdiff1d(rows, read).tolist():
            rejected[row] = read_error(paths[row])
        outputs = [np.concatenate(parts) for parts in zip(*(outputs for _, outputs in results), strict=True)]
        chosen = read.tolist()
        table, usable = self._make_table([names[row] for row in chosen], [digests[row] for row in chosen], outputs)
        for row in read[~usable].tolist():
            rejected[row] = InvalidImage(
                paths[row], "not-finite", "the network gives NaN, infinity or too large numbers"
            )
        return table, [rejected[row] for row in sorted(rejected)]


def process_shards(job: Job, work: ShardProcessor, advance: Callable[[int], None] = lambda images: None) -> None:
    """Do all shards that nobody else does, and those of workers that died meanwhile; return when none is left.

    A shard that fails is tried again, `ATTEMPTS` times by all workers together; then the rest goes on without it.

    Args:
        advance: Told the number of images after each shard done.

    Raises:
        ResourceError: The disk is full; that is no shard's fault, and no attempt is counted.
    """
    while pending := job.list_pending():
        idle = True
        for shard in pending:
            with job.claim(shard) as free:
                if free and not job.is_done(shard) and process_shard(job, work, shard):
                    idle = False
                    record = job.read_record(shard)
                    advance(record["rows"] + record["rejected"])
        if idle:
            time.sleep(_PAUSE)


def process_shard(job: Job, work: ShardProcessor, shard: int) -> bool:
    """Compute a shard that was claimed; return whether it is done."""
    job.note_start(shard)
    try:
        paths = job.read_paths(shard)
        job.finish(shard, *work.compute(paths, [job.name(path) for path in paths]))
    except OSError as error:
        if error.errno in _FULL:
            job.forget_attempts(shard)
            raise ResourceError(
                "The disk must have room for the job's results.",
                f"{error.strerror} at {job.folder}",
                "What was done is kept. Free some space and give the command again.",
            ) from error
        job.note_error(shard, f"{type(error).__name__}: {error}")
        return False
    except Exception as error:  # whatever it is, the other shards must not suffer
        job.note_error(shard, f"{type(error).__name__}: {error}")
        return False
    return True
