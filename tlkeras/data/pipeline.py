"""Images in order, decoded in parallel, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import tensorflow as tf

from tlkeras.data.decoding import decode, decode_file
from tlkeras.data.headers import ImageError, InvalidImage, parse_slice, read_image

Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""From an image uint8 [h, w, 3] and its index, an int64 scalar, to its view or views."""

_CHUNK = 4096
_PACKED_CHUNK = 64  # encoded images in memory


def epoch_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `count` images for an epoch, int64 [count], the same on every machine and in every version.

    The ranks of the raw output of the counter-based generator Philox-4x64-10 (Salmon et al. 2011) under (seed, epoch).
    """
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def make_image_dataset(
    paths: Sequence[str], size: int, resize: str, batch_size: int, *, augment: Augment | None = None, workers: int = 0
) -> tf.data.Dataset:
    """Decoded files in order: batches of (index int64 [b], images uint8 [b, size, size, 3]).

    `index` counts within `paths`, which are read in chunks and never copied as a whole. A file that cannot be read or
    decoded is skipped: its index is missing, and `read_error` gives the reason. The last batch may be smaller. For
    `resize` see `decode`, for `augment` `augmentation.views`. The stream's own pool has `workers` threads, by default
    one per core of the process, and decodes `prefetch` batches ahead.
    """
    workers = workers or count_cores()

    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, content: tf.Tensor, packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = tf.cond(packed, lambda: content, lambda: tf.io.read_file(content))
        image = decode(encoded, size, resize)
        return index, image if augment is None else augment(image, index)

    signature = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.bool))
    stream = (
        tf.data.Dataset.from_generator(lambda: _read_chunks(paths), output_signature=signature)
        .unbatch()
        .map(load, num_parallel_calls=workers, deterministic=True)
        .ignore_errors(log_warning=False)
        .batch(batch_size)
        .prefetch(2)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return stream.with_options(options)


def _read_chunks(paths: Sequence[str]) -> Iterator[tuple[np.ndarray, list[bytes], np.ndarray]]:
    """Yield indices, names of files or bytes of slices (TensorFlow cannot read these), and a mask of the slices."""
    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        packed = np.array([parse_slice(path) is not None for path in chunk])
        step = _PACKED_CHUNK if packed.any() else _CHUNK
        for at in range(0, len(chunk), step):
            rows = range(at, min(at + step, len(chunk)))
            contents = [_read_slice(chunk[row]) if packed[row] else os.fsencode(chunk[row]) for row in rows]
            yield start + np.array(rows, np.int64), contents, packed[at : at + step]


def _read_slice(path: str) -> bytes:
    with suppress(ImageError):
        return read_image(path)
    return b""


def list_cores() -> list[int]:
    """The cores that this process may run on; a container, a scheduler or a parent can restrict them."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def count_cores() -> int:
    """The number of cores that this process may run on."""
    return len(list_cores())


def read_error(path: str) -> InvalidImage:
    """The reason why `make_image_dataset` skipped a file."""
    try:
        decode_file(path, 32, "stretch")
    except ImageError as error:
        return InvalidImage(path, error.code, error.reason)
    return InvalidImage(path, "changed", "it could not be read a moment ago and can be now")
