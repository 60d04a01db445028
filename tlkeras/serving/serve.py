"""A server until it is interrupted, or in the background; importable without the extra that it needs."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkeras.errors import MissingExtraError, ServingError

if TYPE_CHECKING:
    from tlkeras.serving.server import Server, ServerInfo


class BackgroundServer:
    """A server that runs beside the program: a notebook goes on, and shows the page.

    Attributes:
        url: Address of the page and of REST.
        grpc: HOST:PORT of gRPC; None without it.
    """

    def __init__(self, server: Server):
        self._server, listens = server, threading.Event()
        infos: list[ServerInfo] = []

        def start(info: ServerInfo) -> None:
            infos.append(info)
            listens.set()

        def serve_until_stopped() -> None:
            try:
                server.run(start)
            finally:
                listens.set()

        self._thread = threading.Thread(target=serve_until_stopped, daemon=True)
        self._thread.start()
        listens.wait()
        if not infos:
            raise ServingError("The server ended before it listened.", None, "See its messages above.")
        self.url, self.grpc = infos[0].url, infos[0].grpc

    def stop(self) -> None:
        """Finish the running requests, then end."""
        self._server.stop()
        self._thread.join()

    def __repr__(self) -> str:
        return f"BackgroundServer({self.url!r}; stop() ends it)"

    def _repr_html_(self) -> str:
        return f"<a href='{self.url}/'>{self.url}/</a>"


def serve(
    folder: str | Path,
    *,
    block: bool = True,
    started: Callable[[ServerInfo], None] = lambda info: None,
    **options: Any,
) -> BackgroundServer | None:
    """Serve a folder of versions over REST and gRPC until interrupted, or in the background.

    ExportError if there is no version, ResourceError if a port is taken, MissingExtraError without the extra `serve`.

    Args:
        block: Return when the server was interrupted; else return it as soon as it listens, on free ports.
        started: Called once a server that blocks listens.
        options: Fields of `ServeOptions`, such as `rest_port=0`.
    """
    for package in ("uvicorn", "starlette", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("A server", "serve")
    from tlkeras.serving.models import ServeOptions
    from tlkeras.serving.server import Server

    if not block:
        return BackgroundServer(Server(Path(folder), ServeOptions(**{"rest_port": 0, "grpc_port": 0, **options})))
    Server(Path(folder), ServeOptions(**options)).run(started)
    return None
