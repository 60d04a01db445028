"""From a recipe to its head."""

from __future__ import annotations

from tlkeras.config.recipe import Recipe
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.feature_selection import FeatureSelectingHead
from tlkeras.heads.heads import HEADS, Head, make_head


def make_recipe_head(recipe: Recipe) -> Head:
    """The unfitted head, behind the selection of features if there is one."""
    head, selection = _make_bare_head(recipe), recipe.features.selection
    if selection is None:
        return head
    return FeatureSelectingHead(head, **selection.model_dump(), seed=recipe.training.seed)


def _make_bare_head(recipe: Recipe) -> Head:
    options = recipe.head.model_dump()
    if options["class_weight"] == "none":
        options["class_weight"] = None
    if issubclass(HEADS[recipe.head.kind], KerasHead):
        return make_head(**options, fitting=recipe.training)
    return make_head(**options, seed=recipe.training.seed)


def training_seed(recipe: Recipe) -> int:
    """The seed of all that is drawn while heads and networks are trained."""
    return recipe.training.seed
