"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("model_name", "method", "status")
        self._requests = Counter("tlkeras_requests", "Requests answered.", labels, registry=self._registry)
        self._seconds = Histogram(
            "tlkeras_request_seconds",
            "Time to an answer.",
            ("model_name", "method"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "tlkeras_batch_rows", "Rows that ran together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        self._running = Gauge("tlkeras_requests_in_progress", "Requests being worked on.", registry=self._registry)
        self._versions = Gauge(
            "tlkeras_version_loaded", "1 for each loaded version.", ("model_name", "version"), registry=self._registry
        )

    def observe_request(self, model: str, method: str, status: str, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(model, method, status).inc()
        self._seconds.labels(model, method).observe(seconds)

    def observe_batch(self, rows: int) -> None:
        """Count a batch."""
        self._batches.observe(rows)

    def set_running(self, requests: int) -> None:
        """Note how many requests are being worked on."""
        self._running.set(requests)

    def set_versions(self, model: str, versions: Collection[int]) -> None:
        """Note which versions are loaded."""
        self._versions.clear()
        for number in versions:
            self._versions.labels(model, str(number)).set(1)

    def write(self) -> bytes:
        """Return all of it in the text format of Prometheus."""
        return generate_latest(self._registry)
