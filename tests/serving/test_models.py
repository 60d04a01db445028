"""When a version is let go: not before those who found it have their answer."""

import asyncio

from tlkeras.serving.models import Model


class FakeVersion:
    """A version that only knows whether it was closed."""

    def __init__(self):
        self.number, self.batchers, self.served, self.closed = 1, {}, self, False

    def close(self):
        self.closed = True


def test_a_version_outlives_the_requests_that_found_it(tmp_path):
    async def work():
        model, version, mark = Model(tmp_path, "photos"), FakeVersion(), object()
        model.versions[1] = version
        model.running.add(mark)
        model._let_go(1)
        assert not model.versions, "nobody finds it any more"
        await asyncio.sleep(0.1)
        model.running.add(object())  # came later: it asks another version
        before = version.closed
        model.running.discard(mark)
        await asyncio.wait(model._leaving, timeout=5)
        return before, version.closed, model.states[1].name

    assert asyncio.run(work()) == (False, True, "END")
