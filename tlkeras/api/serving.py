"""The verbs of models that are served."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkeras.errors import MissingExtraError
from tlkeras.lazy_tensorflow import import_tensorflow_quietly


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
    import_tensorflow_quietly()
    from tlkeras.exporting.model_card import make_name
    from tlkeras.serving.batching import Batching
    from tlkeras.serving.models import Model, RequestLimits
    from tlkeras.serving.server import Server, ServerAddress

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


def predict_remotely(url: str, images: Sequence[str | Path], *, timeout: float = 30.0) -> dict[str, Any]:
    """Ask a model that is served about image files and folders; see `tlkeras.serving.client.predict`."""
    from tlkeras.serving import client

    return client.predict(url, [str(image) for image in images], timeout=timeout)
