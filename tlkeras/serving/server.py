"""A development server that speaks TensorFlow Serving's REST and gRPC; production is TensorFlow Serving itself."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from tlkeras.errors import ExportError, MissingExtraError, ResourceError
from tlkeras.exporting.model_card import make_name
from tlkeras.exporting.versions import list_versions
from tlkeras.serving.batching import Batching
from tlkeras.serving.grpc_server import make_server
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import Model, RequestLimits
from tlkeras.serving.rest import make_app

_BACKLOG = 2048


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens; port 0 takes a free one, and None for gRPC none."""

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500


def serve(
    folder: str | Path, *, started: Callable[[dict[str, Any]], None] = lambda facts: None, **options: Any
) -> None:
    """Serve a folder of versions over REST and gRPC until interrupted.

    Args:
        folder: Of the versions, as `export` writes it.
        started: Told `name`, `url`, `grpc` and `versions` once it listens.
        options: `host`, `rest_port`, `grpc_port`; `name` of the model (default: the folder's); `labels`, versions by
            label; `newest`, how many versions stay loaded; `max_batch_size` and `batch_timeout` (seconds); `max_body`
            (bytes), `max_pixels`, `max_requests` and `timeout` (seconds) of requests; `threads` of TensorFlow.

    Raises:
        ExportError: There is no version.
        ResourceError: A port is taken.
        MissingExtraError: The extra `serve` is not installed.
    """
    for package in ("uvicorn", "starlette", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("A server", "serve")
    given = _Options(options)
    batching = Batching(**given.take(max_batch_size="max_batch_size", batch_timeout="timeout"))
    limits = RequestLimits(
        **given.take(max_body="body", max_pixels="pixels", max_requests="concurrency", timeout="seconds")
    )
    address = ServerAddress(**given.take(host="host", rest_port="rest_port", grpc_port="grpc_port"))
    name = options.get("name") or make_name(Path(folder))
    rest = given.take(labels="pinned", newest="newest", threads="threads")
    model = Model(Path(folder), name, batching=batching, limits=limits, **rest)

    def tell(server: Server) -> None:
        started(
            {
                "name": name,
                "url": f"http://{address.host}:{server.rest_port}",
                "grpc": server.grpc_port and f"{address.host}:{server.grpc_port}",
                "versions": sorted(model.versions),
            }
        )

    Server(model, address).run(tell)


class _Options:
    def __init__(self, given: Mapping[str, Any]):
        self._given = given

    def take(self, **names: str) -> dict[str, Any]:
        """Return the options that were given, under other names."""
        return {there: self._given[here] for here, there in names.items() if self._given.get(here) is not None}


class Server:
    """A server of one model, ready to run.

    Raises:
        ExportError: The folder holds no version.
        ResourceError: A port is taken.
    """

    def __init__(self, model: Model, address: ServerAddress):
        if not list_versions(model.base):
            raise ExportError(
                f"{model.base} must hold versions, folders with a number as their name.",
                "none",
                f"Make one with: tlkeras export RUN --to {model.base}",
            )
        self._model, self._address = model, address
        self._desk = RequestHandler(model)
        if address.grpc_port:
            _bind(address.host, address.grpc_port).close()  # said now, not from within the server
        self._socket = _bind(address.host, address.rest_port)
        self._socket.listen(_BACKLOG)  # who comes before the model is loaded waits
        self.rest_port: int = self._socket.getsockname()[1]
        self.grpc_port: int | None = None
        config = uvicorn.Config(
            make_app(self._desk, self._live),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=30,
            backlog=_BACKLOG,
            lifespan="on",
        )
        self._uvicorn = uvicorn.Server(config)
        self._started: Callable[[Server], None] = lambda server: None

    @contextlib.asynccontextmanager
    async def _live(self, app: object) -> AsyncIterator[None]:
        await self._model.refresh()
        watcher = asyncio.get_running_loop().create_task(self._model.watch())
        rpc = None
        if self._address.grpc_port is not None:
            rpc, self.grpc_port = make_server(self._desk, f"{self._address.host}:{self._address.grpc_port}")
            await rpc.start()
        self._started(self)
        try:
            yield
        finally:
            if rpc is not None:
                await rpc.stop(grace=5)
            watcher.cancel()
            await self._model.close()

    def run(self, started: Callable[[Server], None] = lambda server: None) -> None:
        """Serve until `stop` is called or a signal comes.

        Args:
            started: Called once both interfaces listen.
        """
        self._started = started
        with self._socket:
            self._uvicorn.run(sockets=[self._socket])

    def stop(self) -> None:
        """Answer what was asked, then end `run`; from any thread."""
        self._uvicorn.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise _refuse(host, port) from None
    return bound


def _refuse(host: str, port: int) -> ResourceError:
    return ResourceError(
        "A server needs a port that is free.", f"{host}:{port}", "Choose another with --rest-port or --grpc-port."
    )
