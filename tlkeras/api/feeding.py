"""The verb of workers that decode images for others."""

from __future__ import annotations

from typing import Any

from tlkeras.lazy_tensorflow import import_tensorflow_quietly


def feed(join: str | None = None, host: str | None = None, port: int = 5050) -> tuple[str, list[Any]]:
    """Start a worker that decodes images for trainings with `training.feed`; see `start_feeding`.

    Args:
        join: HOST:PORT of a service to join; None begins one.
        host: Name by which other machines reach this one; its own if not given.
        port: Of a new service; 0 takes any that is free.

    Returns:
        HOST:PORT of the service, and what runs until it is let go.
    """
    import_tensorflow_quietly()
    from tlkeras.data.data_service import start_data_worker

    return start_data_worker(join, host, port)
