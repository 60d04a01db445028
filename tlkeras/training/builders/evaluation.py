"""From a recipe to what the evaluation of its run needs."""

from __future__ import annotations

from tlkeras.config.recipe import Recipe
from tlkeras.heads.linear import LinearHead


def data_source(recipe: Recipe) -> str:
    """The source of the images, as in `data.source`."""
    return recipe.data.source


def feature_engine(recipe: Recipe) -> str:
    """The engine that computes features, as in `features.engine`."""
    return recipe.features.engine


def make_linear_head(recipe: Recipe, C: float | None) -> LinearHead:
    """An unfitted linear head with the recipe's class weights and inverse strength of regularization, else 0.01."""
    class_weight = recipe.head.model_dump().get("class_weight")
    return LinearHead(C=C or 0.01, class_weight=None if class_weight == "none" else class_weight)
