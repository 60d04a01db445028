"""The verbs of the store of frozen activations."""

from __future__ import annotations

from typing import Any


def list_cache() -> dict[str, Any]:
    """Return where the activation cache lies and what it holds."""
    from dataclasses import asdict

    from tlkeras.features.cache import ActivationCache

    cache = ActivationCache()
    spaces = [asdict(space) for space in cache.list_spaces()]
    return {"root": str(cache.root), "bytes": sum(space["bytes"] for space in spaces), "spaces": spaces}


def prune_cache(*, max_gb: float | None = None, unused_days: float | None = None) -> dict[str, Any]:
    """Remove activations: by size (least recently used first), by age, or both."""
    from dataclasses import asdict

    from tlkeras.features.cache import ActivationCache

    removed = ActivationCache().prune(
        max_bytes=None if max_gb is None else int(max_gb * 1e9),
        unused_seconds=None if unused_days is None else unused_days * 86_400,
    )
    return {"removed": [asdict(space) for space in removed], "bytes": sum(space.bytes for space in removed)}
