"""From the recipe of a trial to what it shares with other trials."""

from __future__ import annotations

import json

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS


def dataset_key(recipe: Recipe) -> str:
    """Everything that the images of a recipe depend on: equal keys, equal images, however they are validated on."""
    return recipe.data.model_dump_json(exclude={"validation"})


def features_key(recipe: Recipe) -> str:
    """Everything that frozen features and their splits depend on; heads on feature maps need them before pooling."""
    parts = [recipe.data, recipe.backbone, recipe.features, recipe.cache, recipe.domain_adaptation]
    return json.dumps(
        [recipe.head.kind in FEATURE_MAP_HEADS, *(part and part.model_dump(mode="json") for part in parts)]
    )


def fine_tunes(recipe: Recipe) -> bool:
    """Whether a recipe fine-tunes its backbone."""
    return recipe.finetuning is not None
