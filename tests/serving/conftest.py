"""One server of the shared export, in a thread, for all tests here."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tlkeras.serving.models import ServeOptions
from tlkeras.serving.server import Server


@contextmanager
def running(base, **options):
    """Serve a folder from a thread; yields the server once it listens."""
    defaults = {"name": "photos", "rest_port": 0, "grpc_port": 0, "max_batch_size": 8, "batch_timeout": 0.001}
    settings = ServeOptions(**{**defaults, "max_body": 2**20, "timeout": 20, **options})
    server, started = Server(Path(base), settings), threading.Event()
    thread = threading.Thread(target=server.run, args=(lambda _: started.set(),))
    thread.start()
    try:
        assert started.wait(60)
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(exported):
    with running(Path(exported.path).parent, labels={"stable": 1}) as started:
        yield started


@pytest.fixture(scope="session")
def rest(server):
    return f"http://127.0.0.1:{server.rest_port}"


@pytest.fixture(scope="session")
def rpc(server):
    return f"127.0.0.1:{server.grpc_port}"


@pytest.fixture(scope="session")
def samples(trained):
    """Bytes of held-out images, and the run's own probabilities."""
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
    """The function that starts `server`."""
    return running
