"""Settings and addresses of the development server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlkeras.data.headers import MAX_PIXELS


@dataclass(frozen=True)
class ServeOptions:
    """Settings of the development server.

    Attributes:
        host: Address to listen on.
        rest_port: Port of REST; 0: any free one.
        grpc_port: Port of gRPC; 0: any free one, None: no gRPC.
        name: Name of the model; None: the folder's.
        labels: Versions by label, loaded in addition to the newest.
        newest: Number of the newest versions that stay loaded.
        max_batch_size: Largest number of images that run together; 1: no batching.
        batch_timeout: Seconds that a request waits for others.
        max_body: Largest body of a request, bytes.
        max_pixels: Largest image, pixels.
        max_requests: Largest number of concurrent requests.
        timeout: Seconds until a request fails.
        threads: TensorFlow's threads per operation; 0: one per core.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500
    name: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    newest: int = 1
    max_batch_size: int = 32
    batch_timeout: float = 0.002
    max_body: int = 64 * 2**20
    max_pixels: int = MAX_PIXELS
    max_requests: int = 512
    timeout: float = 30.0
    threads: int = 0


@dataclass(frozen=True)
class ServerInfo:
    """Addresses of a running server.

    Attributes:
        name: Name of the model.
        url: Address of REST and of the page.
        grpc: HOST:PORT of gRPC; None without it.
        versions: Loaded versions, in ascending order.
    """

    name: str
    url: str
    grpc: str | None
    versions: list[int]
