"""A development server with TensorFlow Serving's REST and gRPC; production is TensorFlow Serving itself."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from tlkeras.errors import ExportError, ResourceError
from tlkeras.exporting.versions import list_versions
from tlkeras.serving.grpc_server import make_grpc_server
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import Model, ServeOptions
from tlkeras.serving.rest import make_app

_BACKLOG = 2048


@dataclass(frozen=True)
class ServerInfo:
    """Addresses of a running server."""

    name: str
    url: str  # address of REST and of the page
    grpc: str | None  # HOST:PORT of gRPC; None without it
    versions: list[int]  # loaded versions, in ascending order


class Server:
    """A server of one model, ready to run; `grpc_port` is known once it runs, and None without gRPC.

    ExportError if the folder holds no version, ResourceError if a port is taken.
    """

    def __init__(self, folder: Path, options: ServeOptions):
        if not list_versions(folder):
            rule, way_out = "holds no exported model.", f"Export a run into it: tlkeras export RUN --to {folder}"
            if (folder / "manifest.json").is_file() and (folder / "recipe.yaml").is_file():
                run = folder.name if folder.parent == Path("runs") else folder
                rule, way_out = "is a run, not an exported model.", f"Export it first: tlkeras export {run}"
            raise ExportError(f"{folder} {rule}", way_out=way_out)
        self.model = Model(folder, options)
        self._options, self._handler = options, RequestHandler(self.model)
        if options.grpc_port:
            _bind(options.host, options.grpc_port).close()  # fails here rather than within the server
        self._socket = _bind(options.host, options.rest_port)
        self._socket.listen(_BACKLOG)  # connections wait until the model is loaded
        self.rest_port: int = self._socket.getsockname()[1]
        self.grpc_port: int | None = None
        patience: dict[str, Any] = {"timeout_graceful_shutdown": 10, "timeout_keep_alive": 30}
        app = make_app(self._handler, self._live)
        config = uvicorn.Config(app, log_level="warning", access_log=False, backlog=_BACKLOG, lifespan="on", **patience)
        self._uvicorn = uvicorn.Server(config)
        self._started: Callable[[ServerInfo], None] = lambda info: None

    @contextlib.asynccontextmanager
    async def _live(self, app: object) -> AsyncIterator[None]:
        await self.model.refresh()
        watcher = asyncio.get_running_loop().create_task(self.model.watch())
        host, grpc_server = self._options.host, None
        if self._options.grpc_port is not None:
            grpc_server, self.grpc_port = make_grpc_server(self._handler, f"{host}:{self._options.grpc_port}")
            await grpc_server.start()
        grpc = f"{host}:{self.grpc_port}" if self.grpc_port else None
        url = f"http://{host}:{self.rest_port}"
        self._started(ServerInfo(self.model.name, url, grpc, sorted(self.model.versions)))
        try:
            yield
        finally:
            if grpc_server is not None:
                await grpc_server.stop(grace=5)
            watcher.cancel()
            await self.model.close()

    def run(self, started: Callable[[ServerInfo], None] = lambda info: None) -> None:
        """Serve until `stop` is called or a signal comes; `started` is called once both interfaces listen."""
        self._started = started
        with self._socket:
            self._uvicorn.run(sockets=[self._socket])

    def stop(self) -> None:
        """Finish the running requests, then end `run`; from any thread."""
        self._uvicorn.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        rule = f"Cannot listen on {host}:{port}: {error.strerror or error}."
        raise ResourceError(rule, way_out="Choose another port with --rest-port or --grpc-port.") from None
    return bound
