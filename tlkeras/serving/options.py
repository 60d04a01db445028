"""Settings and addresses of the development server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlkeras.data.headers import MAX_PIXELS


@dataclass(frozen=True)
class ServeOptions:
    """Settings of the development server."""

    host: str = "127.0.0.1"  # address to listen on
    rest_port: int = 8501  # port of REST; 0: any free one
    grpc_port: int | None = 8500  # port of gRPC; 0: any free one, None: no gRPC
    name: str | None = None  # name of the model; None: the folder's
    labels: Mapping[str, int] = field(default_factory=dict)  # versions by label, loaded in addition to the newest
    newest: int = 1  # number of the newest versions that stay loaded
    max_batch_size: int = 32  # largest number of images that run together; 1: no batching
    batch_timeout: float = 0.002  # seconds that a request waits for others
    max_body: int = 64 * 2**20  # largest body of a request, bytes
    max_pixels: int = MAX_PIXELS  # largest image, pixels
    max_requests: int = 512  # largest number of concurrent requests
    timeout: float = 30.0  # seconds until a request fails
    threads: int = 0  # TensorFlow's threads per operation; 0: one per core


@dataclass(frozen=True)
class ServerInfo:
    """Addresses of a running server."""

    name: str
    url: str  # address of REST and of the page
    grpc: str | None  # HOST:PORT of gRPC; None without it
    versions: list[int]  # loaded versions, in ascending order
