"""Images in order, decoded in parallel, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tlkeras.data.decoding import decode, decode_file
from tlkeras.data.headers import ImageError, InvalidImage, read_image
from tlkeras.data.sources.tfrecord_slices import parse_slice

_CHUNK = 4096
_PACKED_CHUNK = 64  # whose bytes are in memory


def epoch_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which `count` examples are visited: int64 [count], a permutation.

    A pure function of its arguments, the same on every machine and in every version: the ranks of the raw output of
    the counter-based generator Philox-4x64-10 (Salmon et al. 2011) under the key (seed, epoch).
    """
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def make_image_dataset(
    paths: Sequence[str],
    size: int,
    fit: str,
    batch_size: int,
    *,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    workers: int | None = None,
    prefetch: int = 2,
) -> tf.data.Dataset:
    """Decode files in the order given: batches of (index int64 [b], images uint8 [b, size, size, 3]).

    `index` counts within `paths`. A file that cannot be read or decoded is skipped: its index does not appear, and
    `explain_unreadable` says why. The last batch may be smaller.

    Args:
        paths: Any sequence, also one that looks its paths up: it is read in chunks and never copied as a whole.
        size: Side of the images in pixels.
        fit: As in `decode`.
        batch_size: Images in a batch.
        augment: From an image uint8 [size, size, 3] and its index, an int64 scalar, to what takes its place in the
            batch, one view or several; see `augmentation.show_one` and `show_all`.
        workers: Threads of the stream's own pool, by default one per core of the process; fewer leave cores to an
            engine that runs at the same time.
        prefetch: Batches decoded ahead.
    """
    workers = workers or count_cores()

    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, known: tf.Tensor, packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = tf.cond(packed, lambda: known, lambda: tf.io.read_file(known))
        image = decode(encoded, size, fit)
        return index, image if augment is None else augment(image, index)

    signature = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.bool))
    stream = (
        tf.data.Dataset.from_generator(lambda: _read_chunks(paths), output_signature=signature)
        .unbatch()
        .map(load, num_parallel_calls=workers, deterministic=True)
        .ignore_errors(log_warning=False)
        .batch(batch_size)
        .prefetch(prefetch)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return stream.with_options(options)


def _read_chunks(paths: Sequence[str]) -> Iterator[tuple[np.ndarray, list[bytes], np.ndarray]]:
    """Yield indices, the names of files or the bytes of slices, which TensorFlow cannot read, and which is which."""
    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        packed = np.array([parse_slice(path) is not None for path in chunk])
        step = _PACKED_CHUNK if packed.any() else _CHUNK
        for at in range(0, len(chunk), step):
            rows = range(at, min(at + step, len(chunk)))
            known = [_read(chunk[row]) if packed[row] else os.fsencode(chunk[row]) for row in rows]
            yield start + np.array(rows, np.int64), known, packed[at : at + step]


def _read(path: str) -> bytes:
    """Return what a slice holds, which TensorFlow cannot read by itself; nothing where it cannot be read."""
    try:
        return read_image(path)
    except ImageError:
        return b""


def list_cores() -> list[int]:
    """Return the cores that this process may run on; a container, a scheduler or a parent may have narrowed them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(list_cores())


def read_error(path: str) -> InvalidImage:
    """Say why `stream_images` skipped a file."""
    try:
        decode_file(path, 32, "stretch")
    except ImageError as error:
        return InvalidImage(path, error.code, error.reason)
    return InvalidImage(path, "changed", "it could not be read a moment ago and can be now")
