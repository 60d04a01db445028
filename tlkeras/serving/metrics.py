"""Metrics of the server, for Prometheus."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        by_method, by_status = ("model_name", "method"), ("model_name", "method", "status")
        self._requests = Counter("tlkeras_requests", "Requests answered.", by_status, registry=registry)
        self._seconds = Histogram(
            "tlkeras_request_seconds", "Time of a request.", by_method, buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram("tlkeras_batch_rows", "Rows per batch.", buckets=_ROWS, registry=registry)
        self.running = Gauge("tlkeras_requests_in_progress", "Requests in progress.", registry=registry)
        by_version = ("model_name", "version")
        self._versions = Gauge("tlkeras_version_loaded", "1 for each loaded version.", by_version, registry=registry)

    def observe_request(self, model: str, method: str, status: str, seconds: float) -> None:
        self._requests.labels(model, method, status).inc()
        self._seconds.labels(model, method).observe(seconds)

    def set_versions(self, model: str, versions: Collection[int]) -> None:
        self._versions.clear()
        for number in versions:
            self._versions.labels(model, str(number)).set(1)

    def format(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
