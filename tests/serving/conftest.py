"""One server of the shared export, in a thread, for all tests here."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tlkeras.serving.batching import Batching
from tlkeras.serving.models import Model, RequestLimits
from tlkeras.serving.server import Server, ServerAddress


@contextmanager
def running(base, name="photos", **options):
    """Serve a folder from a thread; yields the server once it listens."""
    limits = options.pop("limits", RequestLimits(body=2**20, seconds=20))
    model = Model(Path(base), name, batching=options.pop("batching", Batching(8, 0.001)), limits=limits, **options)
    server, started = Server(model, ServerAddress(rest_port=0, grpc_port=0)), threading.Event()
    thread = threading.Thread(target=server.run, args=(lambda _: started.set(),))
    thread.start()
    try:
        assert started.wait(60)
        server.model = model
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(exported):
    with running(Path(exported["path"]).parent, pinned={"stable": 1}) as started:
        yield started


@pytest.fixture(scope="session")
def rest(server):
    return f"http://127.0.0.1:{server.rest_port}"


@pytest.fixture(scope="session")
def rpc(server):
    return f"127.0.0.1:{server.grpc_port}"


@pytest.fixture(scope="session")
def samples(trained):
    """Bytes of held-out images, and the probabilities that the run itself gave."""
    found = json.loads((trained / "samples.json").read_text())
    return [((trained / sample["file"]).read_bytes(), sample["probabilities"]) for sample in found]


@pytest.fixture
def post(rest):
    def _post(path, body, **options):
        kind = {"data": body} if isinstance(body, (bytes, str)) else {"json": body}
        return requests.post(rest + path, **kind, timeout=30, **options)

    return _post


@pytest.fixture
def run_server():
    """The function that `server` is made with."""
    return running
