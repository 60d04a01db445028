"""Images packed into few large files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.data.sources.tfrecords import PackResult, write_tfrecords
from tlkeras.training import builders


def pack(
    recipe: str | Path | Recipe, out: str | Path, overrides: Mapping[str, Any] | None = None, *, shard_mb: int = 128
) -> PackResult:
    """The images of a recipe or a source written to few large TFRecord files, with a manifest of them.

    A source is a folder of classes, a manifest, "tfds:NAME" or a packaged set; overrides are values by dotted key, and
    `shard_mb` is the approximate size of a file in megabytes.
    DataError if the folder `out` exists, or no image can be read; ResourceError if it cannot be written.
    """
    resolved, _ = load_recipe_or_source(recipe, overrides)
    return write_tfrecords(builders.read_source(resolved), out, shard_mb * 2**20)
