"""Batching of concurrent requests: one batch runs at a time while the next one is gathered."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from tlkeras.serving.status import Code, StatusError

Arrays = list[np.ndarray]
BatchFn = Callable[..., Arrays]


@dataclass(frozen=True)
class _Request:
    arrays: Arrays
    rows: int
    outputs: asyncio.Future[Arrays]


class BatchScheduler:
    """Runs one signature, within one event loop: at most so many rows together, 1 turning batching off.

    A request waits `timeout` seconds for others, and is refused if more than `max_waiting` rows would wait. A batch
    that fails is run again request by request, so that one bad image fails only its own request.
    """

    def __init__(
        self,
        run: BatchFn,
        executor: Executor,
        observe: Callable[[int], None],
        max_batch_size: int,
        timeout: float,
        max_waiting: int = 1024,
    ):
        self._run, self._executor, self._observe = run, executor, observe
        self._max_batch_size, self._timeout, self._max_waiting = max_batch_size, timeout, max_waiting
        self._waiting: deque[_Request] = deque()
        self._rows = 0
        self._busy = False
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, arrays: Sequence[np.ndarray]) -> Arrays:
        """Outputs for inputs with the same number of rows, at least one; StatusError if too many rows are waiting."""
        rows = len(arrays[0])
        if self._rows + rows > max(self._max_waiting, rows):
            raise StatusError(Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._work())
        request = _Request(list(arrays), rows, loop.create_future())
        self._waiting.append(request)
        self._rows += rows
        self._arrived.set()
        return await request.outputs

    async def close(self) -> None:
        """Run the waiting requests, then stop."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.01)
        if self._task:
            self._task.cancel()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            batch = await self._gather()
            self._busy = True
            try:
                await self._run_batch(batch)
            finally:
                self._busy = False

    async def _gather(self) -> list[_Request]:
        """The requests of the next batch, after waiting for more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while self._rows < self._max_batch_size:
                    self._arrived.clear()
                    await self._arrived.wait()
        batch: list[_Request] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self._max_batch_size):
            request = self._waiting.popleft()
            self._rows -= request.rows
            if not request.outputs.cancelled():  # its client has gone
                batch.append(request)
                rows += request.rows
        (self._arrived.set if self._waiting else self._arrived.clear)()
        return batch

    async def _run_batch(self, batch: list[_Request]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        self._observe(sum(request.rows for request in batch))
        joined = batch[0].arrays
        if len(batch) > 1:
            joined = [np.concatenate(parts) for parts in zip(*(request.arrays for request in batch), strict=True)]
        try:
            outputs = await loop.run_in_executor(self._executor, self._run, *joined)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    await self._run_batch([request])
            elif not batch[0].outputs.done():
                batch[0].outputs.set_exception(error)
            return
        stop = 0
        for request in batch:
            start, stop = stop, stop + request.rows
            if not request.outputs.done():
                request.outputs.set_result([output[start:stop] for output in outputs])
