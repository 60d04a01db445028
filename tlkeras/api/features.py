"""The verbs of features: computed for more images than a training would take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.api.recipes import resolve_recipe_or_data
from tlkeras.lazy_tensorflow import import_tensorflow_quietly


def extract_features(
    recipe: str, out: str | Path, overrides: Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Write the features of all images of a recipe's source, or of images alone, as Parquet files.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set. Of these the features
            of `linear_probe` are computed.
        out: The job's folder; one that holds the same job, unfinished, is gone on with.
        overrides: Values by dotted key.
        crew: `engine` ("local" or "ray"), `workers`, `shard_size` and `verify`, see `tlkeras.inference.sharded.ExecutionOptions`.

    Returns:
        Counts and what failed, see `tlkeras.inference.sharded.run_job`.
    """
    _, resolved = resolve_recipe_or_data(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.inference import sharded

    return sharded.extract_features(resolved, Path(out), sharded.ExecutionOptions(**options))
