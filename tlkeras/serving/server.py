"""A development server that speaks TensorFlow Serving's REST and gRPC; production is TensorFlow Serving itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import uvicorn

from tlkeras.errors import ExportError, ResourceError
from tlkeras.exporting.versions import list_versions
from tlkeras.serving.grpc_server import make_server
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import Model
from tlkeras.serving.rest import make_app

_BACKLOG = 2048


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens; port 0 takes a free one, and None for gRPC none."""

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500


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
