"""Recipes made from a recipe: with another backbone, reduced to a linear head, or as `recommend` advises."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tlkeras.config.recipe import Recipe, validate_values
from tlkeras.config.schema import FineTuningConfig
from tlkeras.config.schema.features import NO_BACKBONE, BackboneConfig
from tlkeras.training.builders.data import image_size

_FEATURES_KEPT = ("precision", "engine", "cache")
_BEYOND_FEATURES = ("head", "finetuning", "domain_adaptation", "tuning")


def find_recipe_backbone(recipe: Recipe) -> BackboneConfig | None:
    """The recipe's backbone with the size of its images; None where handcrafted features stand alone."""
    if recipe.backbone.name == NO_BACKBONE:
        return None
    return recipe.backbone.model_copy(update={"size": image_size(recipe)})


def finetuning_batch_size(recipe: Recipe) -> int:
    """Images per step of the recipe's fine-tuning, or of a default one."""
    return (recipe.finetuning or FineTuningConfig()).batch_size


def has_search_space(recipe: Recipe) -> bool:
    """Whether the recipe has a section `tuning`."""
    return recipe.tuning is not None


def make_probe_recipe(recipe: Recipe, backbone: BackboneConfig) -> Recipe:
    """The recipe with another backbone, read at its end, under a linear head."""
    values = _replace_backbone(recipe, backbone)
    return validate_values({key: values[key] for key in values if key not in _BEYOND_FEATURES}, recipe.name)


def write_recommended(recipe: Recipe, backbone: BackboneConfig, *, finetune: bool, validated: bool) -> str:
    """The recipe with another backbone, frozen or fine-tuned, as YAML; it has been validated.

    Args:
        validated: Whether the source gives validation images; if not, fine-tuning takes some of the training images.

    Raises:
        RecipeError: The recipe's other values do not suit the backbone.
    """
    values = _replace_backbone(recipe, backbone)
    values.pop("tuning", None)
    if not finetune:
        values.pop("finetuning", None)
    elif "finetuning" not in values:
        values["finetuning"] = {"stages": "auto"}
        if not validated:
            values["data"].setdefault("validation", 0.15)
    values = {key: value for key, value in values.items() if value != {}}
    validate_values(values, recipe.name)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _replace_backbone(recipe: Recipe, backbone: BackboneConfig) -> dict[str, Any]:
    values = json.loads(recipe.model_dump_json(exclude_defaults=True))
    values["backbone"] = {"name": backbone.name, "weights": backbone.weights, "size": backbone.size}
    features = {key: value for key, value in values.get("features", {}).items() if key in _FEATURES_KEPT}
    return {**values, "features": features}
