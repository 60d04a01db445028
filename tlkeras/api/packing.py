"""The verb of packing pictures into few large files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.api.recipes import resolve
from tlkeras.lazy_tensorflow import load_tensorflow


def pack(
    recipe: str, out: str | Path, overrides: Mapping[str, Any] | None = None, *, shard_mb: int = 128
) -> dict[str, Any]:
    """Write all pictures of a recipe's source, or of pictures alone, into few large files, and a manifest of them.

    Args:
        recipe: A recipe, or pictures alone: a folder of classes, a manifest, "tfds:NAME" or a packaged set.
        out: A new folder.
        overrides: Values by dotted key.
        shard_mb: About how many megabytes a file may have.

    Returns:
        See `tlkeras.data.sources.tfrecords.pack`.
    """
    _, resolved = resolve(recipe, overrides)
    load_tensorflow()
    from tlkeras.data.sources import tfrecords
    from tlkeras.training import builders

    return tfrecords.pack(builders.read_source(resolved), out, shard_mb * 2**20)
