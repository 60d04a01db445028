"""From a recipe to its head."""

from __future__ import annotations

from tlkeras.mapping.deep import Fitting
from tlkeras.mapping.heads import Head, make_head
from tlkeras.recipe import Recipe


def make_recipe_head(recipe: Recipe) -> Head:
    """Return the unfitted head."""
    options = recipe.mapping.model_dump()
    if options["class_weight"] == "none":
        options["class_weight"] = None
    if recipe.mapping.kind == "deep":
        return make_head(**options, fitting=Fitting(**recipe.training.model_dump()))
    return make_head(**options, seed=recipe.training.seed)
