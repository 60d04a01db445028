"""Images in order, decoded in parallel here or by a data service, in memory that does not grow with their number."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import ImageSize
from tlkeras.data.decoding import decode, decode_file
from tlkeras.data.headers import ImageError, InvalidImage, Look, Rendering, parse_slice, read_image
from tlkeras.data.transcoding import to_decodable
from tlkeras.errors import DataError, RunError

service = tf.data.experimental.service
logger = logging.getLogger(__name__)

Arrival = tuple[int, np.ndarray] | None

Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""From an image uint8 [h, w, 3] and its index, an int64 scalar, to its view or views."""

_CHUNK = 4096
_PACKED_CHUNK = 64  # encoded images in memory
PORT = 5050  # of a data service
_MESSAGE = 8  # images
_MAX_EARLY = 1024  # images that arrived before one that is needed first
_TIMEOUT = 5.0  # seconds


def epoch_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `count` images for an epoch, int64 [count], the same on every machine and in every version.

    The ranks of the raw output of the counter-based generator Philox-4x64-10 (Salmon et al. 2011) under (seed, epoch).
    """
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def make_image_dataset(
    paths: Sequence[str],
    size: ImageSize,
    rendering: Look,
    batch_size: int,
    *,
    augment: Augment | None = None,
    workers: int = 0,
) -> tf.data.Dataset:
    """Decoded files in order: batches of (index int64 [b], images uint8 [b, h, w, 3]).

    `index` counts within `paths`, which are read in chunks and never copied as a whole. A file that cannot be read or
    decoded is skipped: its index is missing, and `read_error` gives the reason. The last batch may be smaller. For
    `rendering` see `decode`, for `augment` `augmentation.views`. The stream's own pool has `workers` threads, by
    default one per core of the process, and decodes two batches ahead.
    """
    workers, max_pixels = workers or count_cores(), Rendering.of(rendering).max_pixels

    def transcode(encoded: bytes) -> bytes:
        with suppress(ImageError):
            return to_decodable(encoded, max_pixels)
        return b""

    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, content: tf.Tensor, packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = tf.cond(packed, lambda: content, lambda: tf.io.read_file(content))
        known = _is_decodable(encoded)
        encoded = tf.cond(known, lambda: encoded, lambda: tf.numpy_function(transcode, [encoded], tf.string))
        image = decode(tf.ensure_shape(encoded, []), size, rendering)
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


def _is_decodable(encoded: tf.Tensor) -> tf.Tensor:
    """True for JPEG, PNG and plain WebP, which need no look at their header; others may have to be transcoded."""
    known = tf.reduce_any(tf.strings.substr(encoded, 0, 2) == [b"\xff\xd8", b"\x89P"])
    return tf.cond(known, lambda: True, lambda: _is_plain_webp(encoded))


@partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})  # as in `decoding`
def _is_plain_webp(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 16), r"RIFF(?s:\C{4})WEBPVP8[ L]")


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


def read_error(path: str, rendering: Look = "stretch") -> InvalidImage:
    """The reason why `make_image_dataset` skipped a file."""
    try:
        decode_file(path, 32, rendering)
    except ImageError as error:
        return InvalidImage(path, error.code, error.reason)
    return InvalidImage(path, "changed", "it could not be read a moment ago and can be now")


def check_data_service(address: str, paths: Sequence[str]) -> None:
    """Raise a RunError if no data service listens at the address, a DataError if an image is packed."""
    if any(map(parse_slice, paths)):
        raise DataError("A data service cannot read packed images.", None, "Leave training.data_service out.")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _TIMEOUT).close()
    except (OSError, ValueError) as error:
        way_out = "Start one with: tlkeras data-service"
        raise RunError("No data service answers at this address.", f"{address!r} ({error})", way_out) from None


def make_data_service_dataset(
    address: str,
    paths: Sequence[str],
    size: ImageSize,
    rendering: Look,
    batch_size: int,
    *,
    augment: Augment | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of `make_image_dataset`, decoded by the workers of a data service at HOST:PORT.

    Workers have the same paths; files of a dead one, or that must be transcoded, are decoded here. A RunError is raised
    if the service ends.
    """

    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        encoded = tf.cond(_is_decodable(encoded), lambda: encoded, lambda: tf.constant(b""))
        image = decode(encoded, size, rendering)
        return index, image if augment is None else augment(image, index)

    count, names = len(paths), [os.fsencode(path) for path in paths]
    files = tf.data.Dataset.from_tensor_slices((np.arange(count, dtype=np.int64), names))
    decoded = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors(log_warning=False).batch(_MESSAGE)
    distribute = service.distribute(service.ShardingPolicy.DYNAMIC, f"grpc://{address}")
    view = augment and tf.function(augment, autograph=False)

    def decode_here(index: int) -> np.ndarray | None:
        with suppress(ImageError):  # unreadable, here too
            image = decode_file(paths[index], size, rendering)
            return image if view is None else view(tf.constant(image), tf.constant(index, tf.int64)).numpy()
        return None

    with closing(_receive(lambda: decoded.apply(distribute), address)) as arrivals:
        ordered = _sort_by_index(arrivals, count, decode_here)
        while batch := list(islice(ordered, batch_size)):
            yield np.array([index for index, _ in batch], np.int64), np.stack([image for _, image in batch])


def _receive(request: Callable[[], tf.data.Dataset], address: str) -> Generator[Arrival]:
    """Yield images as they arrive, and None after a while without any: TensorFlow waits for dead workers for ever."""
    arrivals: queue.Queue[Any] = queue.Queue(_MAX_EARLY // _MESSAGE)
    stopped = threading.Event()

    def put(arrival: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                return arrivals.put(arrival, timeout=0.5)

    def fetch() -> None:
        try:
            elements = iter(request())
            while not stopped.is_set():
                put(next(elements, None))
        except tf.errors.OpError as error:
            put(error)

    threading.Thread(target=fetch, daemon=True).start()
    timeout = _TIMEOUT
    try:
        while True:
            try:
                arrival = arrivals.get(timeout=timeout)
            except queue.Empty:
                if timeout:
                    logger.warning("No images arrive from the data service at %s: decoding them here.", address)
                timeout = 0.0
                yield None
                continue
            timeout = _TIMEOUT
            if arrival is None:
                return
            if isinstance(arrival, tf.errors.OpError):
                way_out = "Start it again, and resume with: tlkeras train --resume latest"
                raise RunError("The data service ended before the training.", f"{address}: {arrival.message}", way_out)
            yield from zip(*(values.numpy() for values in arrival), strict=True)
    finally:
        stopped.set()  # a thread that waits for a dead worker remains: it cannot be cancelled


def _sort_by_index(
    arrivals: Iterable[Arrival], count: int, decode_here: Callable[[int], np.ndarray | None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield images by index; one missing while many later or none arrive is decoded here, or left out if unreadable."""
    early: dict[int, np.ndarray] = {}
    needed = 0

    def settle(until: int) -> Iterator[tuple[int, np.ndarray]]:
        nonlocal needed
        while needed < until or needed in early:
            found = early.pop(needed, None)
            if found is not None or (found := decode_here(needed)) is not None:
                yield needed, found
            needed += 1

    for arrival in arrivals:
        if arrival is None:
            yield from settle(min(max(early, default=needed + _MESSAGE), count))
        elif arrival[0] >= needed:
            early[int(arrival[0])] = arrival[1]
            yield from settle(needed + (len(early) > _MAX_EARLY))
        if needed == count:
            return
    yield from settle(count)


def start_data_worker(join: str | None = None, host: str | None = None, port: int = PORT) -> tuple[str, list[Any]]:
    """Start a worker of a data service here, and a dispatcher unless there is one at `join`, HOST:PORT.

    Returns HOST:PORT of the dispatcher, and the servers, which end when they are garbage-collected. Others reach this
    machine as `host`; port 0 is any free one. A RunError is raised if it is in use, or nothing listens at `join`.
    """
    host, running = host or socket.gethostname(), []
    if join is None:
        with suppress(OSError), socket.create_connection(("localhost", port), 1.0):  # TensorFlow would share it
            raise RunError("The port is in use.", port, "Choose another with --port, or --join the service there.")
        try:
            dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        except tf.errors.OpError as error:
            rule, received = "The data service cannot use the port.", f"{port} ({error.message})"
            raise RunError(rule, received, "Choose another with --port.") from None
        join = f"{host}:{dispatcher.target.rpartition(':')[2]}"
        running.append(dispatcher)
    else:
        check_data_service(join, [])
    config = service.WorkerConfig(join, worker_address=f"{host}:%port%", heartbeat_interval_ms=1000)
    return join, [*running, service.WorkerServer(config)]
