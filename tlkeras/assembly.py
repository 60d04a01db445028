"""The only interpreter of a recipe: from its sections to the objects of the other rooms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones.blocks import find_cut
from tlkeras.backbones.building import build
from tlkeras.backbones.catalog import find_backbone
from tlkeras.backbones.weights import fingerprint
from tlkeras.data.checks import Inspection
from tlkeras.data.sources import Examples, choose_examples, leave_out_unlabelled, read_table
from tlkeras.data.splits import assign_sides, check_sides, thin
from tlkeras.features import extraction
from tlkeras.features.cache import ActivationCache, default_root
from tlkeras.features.extraction import Features, Pictures, extract, pool
from tlkeras.mapping.deep import Fitting
from tlkeras.mapping.heads import Head, make_head
from tlkeras.recipe import Recipe


def read_examples(recipe: Recipe) -> Examples:
    """Return the recipe's pictures with their labels, at most `data.limit` of them."""
    data = recipe.data
    table = read_table(data.source, store=cache_root(recipe) / "pictures")
    examples = choose_examples(
        table,
        [data.label] if data.label else [],
        weight=data.weight,
        group=data.group,
        domain=data.domain,
        stratify=data.stratify,
    )
    examples = leave_out_unlabelled(examples)
    return thin(examples, data.limit, data.seed) if data.limit else examples


def divide(recipe: Recipe, examples: Examples) -> np.ndarray:
    """Return the side of each picture: "train", "validation" or "test", shape (n,).

    Raises:
        DataError: A class has nothing to learn from, or there is nothing to measure on.
    """
    data = recipe.data
    sides = assign_sides(examples, data.validation, data.test, data.seed, data.tolerance)
    check_sides(examples, sides)
    return sides


def picture_size(recipe: Recipe) -> int:
    """Return the side length of the pictures that the backbone sees."""
    return recipe.backbone.size or find_backbone(recipe.backbone.name).default_size


def build_prefix(recipe: Recipe) -> keras.Model:
    """Return the frozen model, uint8 pictures (n, size, size, 3) to features (n, d), weights loaded."""
    keras.utils.set_random_seed(recipe.training.seed)  # for what has no pretrained weights
    backbone = build(recipe.backbone.name, size=picture_size(recipe), weights=recipe.backbone.weights)
    cut = find_cut(backbone, recipe.features.cut)
    return pool(keras.Model(backbone.input, cut.tensor, name=backbone.name), recipe.features.pooling)


def extract_features(recipe: Recipe, prefix: keras.Model, inspection: Inspection) -> Features:
    """Return the features of all inspected pictures; what the cache lacks is computed."""
    return extract(
        prefix,
        _as_pictures(recipe, inspection),
        _name_outputs(recipe, prefix),
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=recipe.features.precision,
    )


def count_lacking(recipe: Recipe, prefix: keras.Model, inspection: Inspection) -> int:
    """Return how many of the inspected pictures have no features in the cache yet.

    Raises:
        ResourceError: Their features would not fit the cache's budget or the disk.
    """
    pictures, cache = _as_pictures(recipe, inspection), open_cache(recipe)
    if cache is None:
        return len(pictures)
    return extraction.count_lacking(prefix, pictures, _name_outputs(recipe, prefix), cache, recipe.features.precision)


def _as_pictures(recipe: Recipe, inspection: Inspection) -> Pictures:
    return Pictures(list(inspection.examples.paths), inspection.digests, recipe.data.resize)


def _name_outputs(recipe: Recipe, prefix: keras.Model) -> list[dict[str, Any]]:
    """Return the facts that name each output of the prefix in the cache; the fingerprint is what tells them apart."""
    return [{"backbone": recipe.backbone.name, "model": fingerprint(prefix)}]


def make_recipe_head(recipe: Recipe) -> Head:
    """Return the unfitted head."""
    options = recipe.mapping.model_dump()
    if options["class_weight"] == "none":
        options["class_weight"] = None
    if recipe.mapping.kind == "deep":
        return make_head(**options, fitting=Fitting(**recipe.training.model_dump()))
    return make_head(**options, seed=recipe.training.seed)


def open_cache(recipe: Recipe) -> ActivationCache | None:
    """Return the store of activations, or None where the recipe wants none."""
    if not recipe.features.cache:
        return None
    return ActivationCache(cache_root(recipe), budget_bytes=int(recipe.cache.budget_gb * 1e9))


def cache_root(recipe: Recipe) -> Path:
    """Return the folder that all commands share."""
    return Path(os.path.expanduser(recipe.cache.root)) if recipe.cache.root else default_root()


def picture_facts(recipe: Recipe) -> dict[str, Any]:
    """Return how bytes become the model's input; prediction and export need the same."""
    return {"size": picture_size(recipe), "resize": recipe.data.resize}
