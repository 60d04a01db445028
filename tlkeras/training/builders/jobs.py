"""From a recipe to the features of all images of its source, whatever their labels and splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.config.recipe import Recipe
from tlkeras.data.sources.folders import iter_image_files
from tlkeras.errors import RecipeError
from tlkeras.features.engines import Engine, make_engine
from tlkeras.training.builders.data import image_size, read_source
from tlkeras.training.builders.features import build_feature_extractor

_DECISIVE = ("cut", "taps", "backbones", "handcrafted", "pooling", "precision", "engine")


@dataclass(frozen=True)
class BulkExtraction:
    """The computation of features of image files.

    Attributes:
        model: From images to one vector each, [n, d].
        engine: Runs the model.
        size: Side of the images in pixels.
        resize: How an image becomes a square.
        dtype: Of the features: "float16" or "float32".
    """

    model: keras.Model
    engine: Engine
    size: int
    resize: str
    dtype: str


def make_bulk_extraction(recipe: Recipe) -> BulkExtraction:
    """The computation of the features that a recipe fits heads on."""
    model = build_feature_extractor(recipe).pooled
    engine = make_engine(model, recipe.features.engine)
    return BulkExtraction(model, engine, image_size(recipe), recipe.data.resize, recipe.features.precision)


def check_needs_no_training(recipe: Recipe) -> None:
    """Make sure that a recipe's features can be computed without training images.

    Raises:
        RecipeError: They have a codebook, which is fitted on training images.
    """
    if any(one.kind == "sift" for one in recipe.features.handcrafted):
        raise RecipeError(
            "These features need a codebook that is fitted on training images.",
            "sift in features.handcrafted",
            "Leave it out, or `tlkeras train` the recipe.",
        )


def keep_feature_fields(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe, as JSON values, that features depend on: equal parts, equal features."""
    sections = recipe.model_dump(mode="json")
    return {
        "name": "features",
        "data": {key: sections["data"][key] for key in ("source", "resize")},
        "backbone": sections["backbone"],
        "features": {key: sections["features"][key] for key in _DECISIVE},
        "training": {"seed": sections["training"]["seed"]},
    }


def list_source_images(recipe: Recipe) -> tuple[str, Callable[[], Iterable[str]]]:
    """The folder of a source's images, and a function that lists their paths; folders are walked through lazily."""
    folder = os.path.realpath(os.path.expanduser(recipe.data.source))
    if os.path.isdir(folder):
        return folder, lambda: iter_image_files(folder, [])
    table = read_source(recipe)
    return str(table.root), lambda: table.paths


def make_source_absolute(recipe: Recipe) -> Recipe:
    """The recipe with the absolute path of its source, for processes in other folders."""
    there = os.path.join(os.getcwd(), os.path.expanduser(recipe.data.source))
    if not os.path.exists(there):
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": there})})
