"""The verb of packing images into few large files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.api.recipes import resolve_recipe_or_data
from tlkeras.lazy_tensorflow import import_tensorflow_quietly


def pack(
    recipe: str, out: str | Path, overrides: Mapping[str, Any] | None = None, *, shard_mb: int = 128
) -> dict[str, Any]:
    """Write all images of a recipe's source, or of images alone, into few large files, and a manifest of them.

    Args:
        recipe: A recipe, or images alone: a folder of classes, a manifest, "tfds:NAME" or a packaged set.
        out: A new folder.
        overrides: Values by dotted key.
        shard_mb: About how many megabytes a file may have.

    Returns:
        See `tlkeras.data.sources.tfrecords.write_tfrecords`.
    """
    _, resolved = resolve_recipe_or_data(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.data.sources import tfrecords
    from tlkeras.training import builders

    return tfrecords.write_tfrecords(builders.read_source(resolved), out, shard_mb * 2**20)
