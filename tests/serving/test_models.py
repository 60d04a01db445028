"""A version is unloaded only after the requests that found it are done."""

import asyncio

from tlkeras.serving.models import Model, ServeOptions


class FakeVersion:
    """A version that records whether it was closed."""

    def __init__(self):
        self.number, self.schedulers, self.loaded, self.closed = 1, {}, self, False

    def close(self):
        self.closed = True


def test_a_version_outlives_the_requests_that_found_it(tmp_path):
    async def work():
        model, version, request = Model(tmp_path, ServeOptions()), FakeVersion(), object()
        model.versions[1] = version
        model.running.add(request)
        model._retire(1)
        assert not model.versions, "new requests do not find it"
        await asyncio.sleep(0.1)
        model.running.add(object())  # a later request, of another version
        before = version.closed
        model.running.discard(request)
        await asyncio.wait(model._unloading, timeout=5)
        return before, version.closed, model.states[1].name

    assert asyncio.run(work()) == (False, True, "END")
