"""Images packed into few large files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.data.sources.tfrecords import write_tfrecords
from tlkeras.training import builders


def pack(
    recipe: str | Path | Recipe,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    shard_mb: int = 128,
) -> dict[str, Any]:
    """All images of a recipe's source, or images alone, in few large files, and a manifest of them.

    Args:
        recipe: A recipe, or images alone: a folder of classes, a manifest, "tfds:NAME" or a packaged set.
        out: A new folder.
        overrides: Values by dotted key.
        shard_mb: About how many megabytes a file may have.

    Returns:
        See `tlkeras.data.sources.tfrecords.write_tfrecords`.
    """
    resolved, _ = load_recipe_or_source(recipe, overrides)
    return write_tfrecords(builders.read_source(resolved), out, shard_mb * 2**20)
