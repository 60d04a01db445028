"""Batching of concurrent requests: outputs, waiting, refusals."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlkeras.serving.batching import BatchScheduler
from tlkeras.serving.status import Code, StatusError


def work(send, run, limits):
    """Run `send(scheduler)` in a loop of its own; returns its result and the sizes of the batches."""
    sizes = []

    async def main():
        with ThreadPoolExecutor(2) as executor:
            return await send(BatchScheduler(run, executor, sizes.append, *limits))

    return asyncio.run(main()), sizes


def double(array):
    time.sleep(0.01)
    if (array < 0).any():
        raise ValueError("negative")
    return [array * 2]


async def send_many(scheduler, values):
    pending = [scheduler.submit([np.array(value)]) for value in values]
    return await asyncio.gather(*pending, return_exceptions=True)


def test_each_request_gets_its_own_rows():
    values = [[1], [2, 3], [4], [5, 6, 7], [8]]
    outputs, sizes = work(lambda scheduler: send_many(scheduler, values), double, (4, 0.05))
    assert [output[0].tolist() for output in outputs] == [[2], [4, 6], [8], [10, 12, 14], [16]]
    assert sizes == [4, 4]


def test_one_bad_request_fails_alone():
    outputs, _ = work(lambda scheduler: send_many(scheduler, [[1], [-1], [3]]), double, (8, 0.05))
    assert outputs[0][0].tolist() == [2] and outputs[2][0].tolist() == [6]
    assert isinstance(outputs[1], ValueError)


def test_a_request_larger_than_a_batch_runs_alone():
    outputs, sizes = work(lambda scheduler: send_many(scheduler, [[1] * 9, [2]]), double, (4, 0.01))
    assert [len(output[0]) for output in outputs] == [9, 1]
    assert sizes == [9, 1]


def test_a_full_queue_refuses():
    outputs, _ = work(lambda scheduler: send_many(scheduler, [[1], [2], [3], [4]]), double, (1, 0.0, 2))
    refused = [output for output in outputs if isinstance(output, StatusError)]
    assert len(refused) == 2
    assert refused[0].code is Code.UNAVAILABLE and "queue" in refused[0].message


def test_cancelled_requests_are_not_run():
    seen = []

    def note(array):
        seen.extend(array.tolist())
        return double(array)

    async def send(scheduler):
        first, second, third = (asyncio.ensure_future(scheduler.submit([np.array([n])])) for n in (1, 2, 3))
        await asyncio.sleep(0.001)
        second.cancel()
        return await asyncio.gather(first, third)

    (first, third), _ = work(send, note, (8, 0.03))
    assert (first[0].tolist(), third[0].tolist()) == ([2], [6])
    assert seen == [1, 3]


def test_closing_runs_the_waiting_requests():
    async def send(scheduler):
        pending = asyncio.ensure_future(scheduler.submit([np.array([1])]))
        await asyncio.sleep(0)
        await scheduler.close()
        return await pending

    (output,), _ = work(send, double, (8, 0.01))
    assert output.tolist() == [2]
    with pytest.raises(ValueError, match="negative"):
        work(lambda scheduler: scheduler.submit([np.array([-1])]), double, (32, 0.002))
