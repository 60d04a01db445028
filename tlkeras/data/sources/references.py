"""A recipe or a source of images, as several commands accept either."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe, list_recipes, load_recipe
from tlkeras.data.sources.folders import is_data_source


def load_recipe_or_source(
    reference: str | Path | Recipe, overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe, bool]:
    """A recipe, and True if it was given; for a source of images it is `linear_probe` on them.

    A source is a folder, a manifest, "tfds:NAME" or a packaged set; overrides are values by dotted key.
    """
    if isinstance(reference, Recipe) or not is_data_source(str(reference)) or reference in list_recipes():
        return load_recipe(reference, overrides), True
    source = str(reference)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source).name).strip("-.") or "images"
    return load_recipe("linear_probe", {"name": name, "data.source": source, **(overrides or {})}), False
