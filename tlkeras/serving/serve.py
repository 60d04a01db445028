"""The verb `serve`, importable without the extra that the server needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkeras.errors import MissingExtraError

if TYPE_CHECKING:
    from tlkeras.serving.server import ServerInfo


def serve(folder: str | Path, *, started: Callable[[ServerInfo], None] = lambda info: None, **options: Any) -> None:
    """Serve a folder of versions over REST and gRPC until interrupted.

    ExportError if there is no version, ResourceError if a port is taken, MissingExtraError without the extra `serve`.

    Args:
        started: Called once the server listens.
        options: Fields of `ServeOptions`, such as `rest_port=0`.
    """
    for package in ("uvicorn", "starlette", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("A server", "serve")
    from tlkeras.serving.models import ServeOptions
    from tlkeras.serving.server import Server

    Server(Path(folder), ServeOptions(**options)).run(started)
