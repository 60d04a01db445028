"""Images decoded by other machines: TensorFlow's data service, in the order and with the pixels of this machine."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.data.decoding import decode
from tlkeras.data.sources.tfrecord_slices import parse_slice
from tlkeras.errors import DataError, RunError

service = tf.data.experimental.service

PORT = 5050
_SENT = 8  # images in a message
_MOST_WAITING = 1024  # images that may be there before one that is needed first
_PATIENCE = 5.0  # seconds

logger = logging.getLogger(__name__)

Element = tuple[tf.Tensor, tf.Tensor]
Arrival = tuple[int, np.ndarray] | None


def check_data_service(address: str, paths: Sequence[str]) -> None:
    """Make sure that workers can be asked for images.

    Raises:
        DataError: The images are packed, which workers cannot read.
        RunError: Nobody listens at the address.
    """
    if any(map(parse_slice, paths)):
        raise DataError("Workers read files by themselves.", "packed images", "Leave training.data_service out.")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except (OSError, ValueError) as error:
        raise RunError(
            "A data service must listen at HOST:PORT.",
            f"{address!r} ({error})",
            "Start one with: tlkeras data-service",
        ) from None


def make_data_service_dataset(
    address: str,
    paths: Sequence[str],
    size: int,
    fit: str,
    batch_size: int,
    *,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what `stream_images` does, decoded by the workers of a data service.

    Workers take files first come, first served. What a worker that dies had taken never comes, and is decoded here.

    Args:
        address: HOST:PORT of the service's dispatcher.
        paths, size, fit, batch_size, augment: As in `stream_images`; workers must see the files at the same paths.

    Raises:
        RunError: The service ends.
    """

    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, path: tf.Tensor) -> Element:
        image = decode(tf.io.read_file(path), size, fit)
        return index, image if augment is None else augment(image, index)

    count, names = len(paths), [os.fsencode(path) for path in paths]
    files = tf.data.Dataset.from_tensor_slices((np.arange(count, dtype=np.int64), names))
    decoded = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors(log_warning=False).batch(_SENT)
    distribute = service.distribute(service.ShardingPolicy.DYNAMIC, f"grpc://{address}")
    here = tf.function(load, autograph=False)

    def decode_here(index: int) -> np.ndarray | None:
        try:
            return here(tf.constant(index, tf.int64), names[index])[1].numpy()
        except tf.errors.OpError:  # it cannot be read, here either
            return None

    with closing(_receive(lambda: decoded.apply(distribute), address)) as arriving:
        ordered = _put_in_order(arriving, count, decode_here)
        while batch := list(islice(ordered, batch_size)):
            yield np.array([index for index, _ in batch], np.int64), np.stack([image for _, image in batch])


def _receive(ask: Callable[[], tf.data.Dataset], address: str) -> Generator[Arrival]:
    """Yield images as they arrive, and None where nothing has for a while: TensorFlow waits for the dead for ever.

    Args:
        ask: Tells the service what is wanted.
        address: Of the service, for messages.

    Raises:
        RunError: The service ends.
    """
    arrivals: queue.Queue[Any] = queue.Queue(_MOST_WAITING // _SENT)
    left = threading.Event()

    def put(arrival: Any) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                return arrivals.put(arrival, timeout=0.5)

    def fetch() -> None:
        try:
            elements = iter(ask())
            while not left.is_set():
                put(next(elements, None))
        except tf.errors.OpError as error:
            put(error)

    threading.Thread(target=fetch, daemon=True).start()
    patience = _PATIENCE
    try:
        while True:
            try:
                arrival = arrivals.get(timeout=patience)
            except queue.Empty:
                if patience:
                    logger.warning("Nothing comes from the data service at %s: images are decoded here.", address)
                patience = 0.0
                yield None
                continue
            patience = _PATIENCE
            if arrival is None:
                return
            if isinstance(arrival, tf.errors.OpError):
                raise RunError(
                    "The data service must stay there until training ends.",
                    f"{address}: {arrival.message}",
                    "Start it again, and go on with: tlkeras train --resume latest",
                )
            yield from zip(*(values.numpy() for values in arrival), strict=True)
    finally:
        left.set()  # a thread that waits for a dead worker stays behind: there is no way to call it back


def _put_in_order(
    arriving: Iterable[Arrival], count: int, decode_here: Callable[[int], np.ndarray | None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield images by index, whatever order they arrive in.

    What does not come while many later ones do, or while nothing does, is decoded here, or left out if it cannot be.
    """
    waiting: dict[int, np.ndarray] = {}
    needed = 0

    def settle(until: int) -> Iterator[tuple[int, np.ndarray]]:
        nonlocal needed
        while needed < until or needed in waiting:
            found = waiting.pop(needed, None)
            if found is not None or (found := decode_here(needed)) is not None:
                yield needed, found
            needed += 1

    for arrival in arriving:
        if arrival is None:
            yield from settle(min(max(waiting, default=needed + _SENT), count))
        elif arrival[0] >= needed:
            waiting[int(arrival[0])] = arrival[1]
            yield from settle(needed + (len(waiting) > _MOST_WAITING))
        if needed == count:
            return
    yield from settle(count)


def start_data_worker(join: str | None = None, host: str | None = None, port: int = PORT) -> tuple[str, list[Any]]:
    """Start a worker of a data service on this machine, and its dispatcher where none is joined.

    Args:
        join: HOST:PORT of a dispatcher; None starts one here.
        host: The name by which other machines reach this one; its own if not given.
        port: Of the dispatcher; 0 takes any that is free. Workers take any.

    Returns:
        HOST:PORT of the dispatcher, and what runs, which ends when it is let go.

    Raises:
        RunError: The port is taken, or nobody listens at the address to join.
    """
    host, running = host or socket.gethostname(), []
    if join is None:
        with suppress(OSError), socket.create_connection(("localhost", port), 1.0):  # TensorFlow would share it
            raise RunError("A data service needs a free port.", port, "Choose another with --port, or --join it.")
        try:
            dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        except tf.errors.OpError as error:
            raise RunError(
                "A data service needs a free port.", f"{port} ({error.message})", "Choose another."
            ) from None
        join = f"{host}:{dispatcher.target.rpartition(':')[2]}"
        running.append(dispatcher)
    else:
        check_data_service(join, [])
    config = service.WorkerConfig(join, worker_address=f"{host}:%port%", heartbeat_interval_ms=1000)
    return join, [*running, service.WorkerServer(config)]
