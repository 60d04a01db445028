"""Recipes made from a recipe, and the parts of one that results depend on."""

import json
import os
from collections.abc import Mapping
from typing import Any

import yaml

from tlkeras.config.frames import Frame, is_frame
from tlkeras.config.recipe import Recipe, load_recipe, validate_values
from tlkeras.config.schema import FineTuningConfig
from tlkeras.config.schema.features import NO_BACKBONE, BackboneConfig
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS
from tlkeras.training.builders.data import image_size

_FEATURES_KEPT = ("precision", "engine", "cache")
_BEYOND_FEATURES = ("head", "finetuning", "domain_adaptation", "tuning")
_DECISIVE = ("cut", "taps", "backbones", "handcrafted", "pooling", "precision", "engine")


def find_recipe_backbone(recipe: Recipe) -> BackboneConfig | None:
    """The recipe's backbone with the size of its images; None where handcrafted features stand alone."""
    if recipe.backbone.name == NO_BACKBONE:
        return None
    return recipe.backbone.model_copy(update={"size": image_size(recipe)})


def finetuning_batch_size(recipe: Recipe) -> int:
    """Images per step of the recipe's fine-tuning, or of a default one."""
    return (recipe.finetuning or FineTuningConfig()).batch_size


def fine_tunes(recipe: Recipe) -> bool:
    """Whether a recipe fine-tunes its backbone."""
    return recipe.finetuning is not None


def has_search_space(recipe: Recipe) -> bool:
    """Whether the recipe has a section `tuning`."""
    return recipe.tuning is not None


def dataset_key(recipe: Recipe) -> str:
    """Everything that the images of a recipe depend on: equal keys, equal images, however they are validated on."""
    return recipe.data.model_dump_json(exclude={"validation"})


def features_key(recipe: Recipe) -> str:
    """Everything that frozen features and their splits depend on; heads on feature maps need them before pooling."""
    parts = [recipe.data, recipe.backbone, recipe.features, recipe.cache, recipe.domain_adaptation]
    plain = (part and part.model_dump(mode="json") for part in parts)
    return json.dumps([recipe.head.kind in FEATURE_MAP_HEADS, *plain])


def keep_feature_fields(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe, as JSON values, that features depend on: equal parts, equal features."""
    sections = recipe.model_dump(mode="json")
    return {
        "name": "features",
        "data": {key: sections["data"][key] for key in ("source", "resize", "background", "max_pixels", "depth_range")},
        "backbone": sections["backbone"],
        "features": {key: sections["features"][key] for key in _DECISIVE},
        "training": {"seed": sections["training"]["seed"]},
    }


def name_source(recipe: Recipe, source: str | Frame) -> tuple[Recipe, str]:
    """A recipe to read another source with, and the name of that; a table in memory becomes a file."""
    if not is_frame(source):
        return recipe, str(source)
    resolved = load_recipe(recipe, {"data.source": source, "data.root": "."})
    return resolved, resolved.data.source


def merge_labels(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The recipe that gives labels other names, besides those that it gives already."""
    labels = {old: names.get(new, new) for old, new in (recipe.data.labels or {}).items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"labels": {**names, **labels}})})


def locate_source(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with a relative source as seen from the folder in which a run was made."""
    exists = os.path.exists(recipe.data.source) and os.path.isdir(recipe.data.root or ".")
    return recipe if exists else _see_source_from(folder, recipe)


def make_source_absolute(recipe: Recipe) -> Recipe:
    """The recipe with the absolute path of its source, for processes in other folders."""
    return _see_source_from(os.getcwd(), recipe)


def _see_source_from(folder: str, recipe: Recipe) -> Recipe:
    there = os.path.join(folder, os.path.expanduser(recipe.data.source))
    if not os.path.exists(there):
        return recipe
    update = {"source": there}
    if recipe.data.root and os.path.isdir(root := os.path.join(folder, os.path.expanduser(recipe.data.root))):
        update["root"] = root
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def make_probe_recipe(recipe: Recipe, backbone: BackboneConfig) -> Recipe:
    """The recipe with another backbone, read at its end, under a linear head."""
    values = _replace_backbone(recipe, backbone)
    return validate_values({key: values[key] for key in values if key not in _BEYOND_FEATURES}, recipe.name)


def write_recommended(recipe: Recipe, backbone: BackboneConfig, *, finetune: bool, validated: bool) -> str:
    """The recipe with another backbone, frozen or fine-tuned, as YAML; it has been validated.

    Where the source gives no validation images (`validated`), fine-tuning takes some of the training images.
    RecipeError if the recipe's other values do not suit the backbone.
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
