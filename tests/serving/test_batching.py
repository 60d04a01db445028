"""Requests that are run together: who gets what, who waits, who is refused."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlkeras.serving.batching import Batching, BatchScheduler
from tlkeras.serving.status import Code, StatusError


def work(ask, run, options):
    """Run `ask(batcher)` in a loop of its own; returns its result and the sizes of the batches."""
    sizes = []

    async def main():
        with ThreadPoolExecutor(2) as executor:
            return await ask(BatchScheduler(run, executor, options, sizes.append))

    return asyncio.run(main()), sizes


def double(array):
    time.sleep(0.01)
    if (array < 0).any():
        raise ValueError("negative")
    return [array * 2]


async def ask_many(batcher, values):
    asked = [batcher.submit([np.array(value)]) for value in values]
    return await asyncio.gather(*asked, return_exceptions=True)


def test_each_gets_its_own_rows():
    values = [[1], [2, 3], [4], [5, 6, 7], [8]]
    answers, sizes = work(lambda batcher: ask_many(batcher, values), double, Batching(4, 0.05))
    assert [answer[0].tolist() for answer in answers] == [[2], [4, 6], [8], [10, 12, 14], [16]]
    assert sizes == [4, 4]


def test_one_bad_request_spoils_only_itself():
    answers, _ = work(lambda batcher: ask_many(batcher, [[1], [-1], [3]]), double, Batching(8, 0.05))
    assert answers[0][0].tolist() == [2] and answers[2][0].tolist() == [6]
    assert isinstance(answers[1], ValueError)


def test_a_request_larger_than_a_batch_runs_alone():
    answers, sizes = work(lambda batcher: ask_many(batcher, [[1] * 9, [2]]), double, Batching(4, 0.01))
    assert [len(answer[0]) for answer in answers] == [9, 1]
    assert sizes == [9, 1]


def test_a_full_queue_refuses():
    answers, _ = work(lambda batcher: ask_many(batcher, [[1], [2], [3], [4]]), double, Batching(1, 0.0, 2))
    refused = [answer for answer in answers if isinstance(answer, StatusError)]
    assert len(refused) == 2
    assert refused[0].code is Code.UNAVAILABLE and "queue" in refused[0].message


def test_who_went_away_is_not_run():
    seen = []

    def note(array):
        seen.extend(array.tolist())
        return double(array)

    async def ask(batcher):
        first, second, third = (asyncio.ensure_future(batcher.submit([np.array([n])])) for n in (1, 2, 3))
        await asyncio.sleep(0.001)
        second.cancel()
        return await asyncio.gather(first, third)

    (first, third), _ = work(ask, note, Batching(8, 0.03))
    assert (first[0].tolist(), third[0].tolist()) == ([2], [6])
    assert seen == [1, 3]


def test_closing_answers_what_waits():
    async def ask(batcher):
        asked = asyncio.ensure_future(batcher.submit([np.array([1])]))
        await asyncio.sleep(0)
        await batcher.close()
        return await asked

    (answer,), _ = work(ask, double, Batching(8, 0.01))
    assert answer.tolist() == [2]
    with pytest.raises(ValueError, match="negative"):
        work(lambda batcher: batcher.submit([np.array([-1])]), double, Batching())
