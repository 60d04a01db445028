"""From a recipe to examples, their splits, and the store that all commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.backbones.catalog import find_backbone
from tlkeras.config.recipe import Recipe
from tlkeras.data.augmentation.policies import AugmentationPolicy, make_policy
from tlkeras.data.data_service import check_data_service
from tlkeras.data.inspection import ValidatedDataset
from tlkeras.data.sources.folders import Dataset, ImageTable, build_dataset, drop_unlabelled, read_table
from tlkeras.data.splits import assign_splits, check_splits, subsample
from tlkeras.data.tables import build_dataset_for_tasks, rename_columns
from tlkeras.data.tasks import Task
from tlkeras.errors import BackboneError
from tlkeras.features.cache import ActivationCache, default_root
from tlkeras.features.extraction import ImageFiles
from tlkeras.training.builders.adaptation import is_target, keep_domains, split_domains


def read_source(recipe: Recipe) -> ImageTable:
    """Return all that the recipe's source says of its images."""
    return read_table(recipe.data.source, store=cache_root(recipe) / "images")


def locate_source(recipe: Recipe, folder: str) -> Recipe:
    """Return the recipe with a relative source as seen from the folder in which a run was made."""
    source = recipe.data.source
    there = os.path.join(folder, os.path.expanduser(source))
    if os.path.exists(source) or not os.path.exists(there):
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": there})})


def read_dataset(recipe: Recipe) -> Dataset:
    """Return the recipe's images with their labels, at most `data.limit` of them."""
    data, table = recipe.data, _name_tasks(recipe, read_source(recipe))
    dataset = build_dataset(
        table,
        list(data.tasks) if data.tasks else [data.label] if data.label else [],
        weight=data.weight,
        group=data.group,
        domain=data.domain,
        stratify=data.stratify,
        separator=_list_kinds(recipe),
    )
    dataset = keep_domains(recipe, dataset)
    target = is_target(recipe, dataset)
    dataset = drop_unlabelled(dataset, target)
    return subsample(dataset, data.limit, data.seed) if data.limit else dataset


def read_other_dataset(recipe: Recipe, source: str, tasks: Sequence[Task]) -> Dataset:
    """Return labelled images that a run is measured on beside its own: the test split where the source has splits.

    Raises:
        DataError: The source cannot be read, or its labels are not those of the tasks.
    """
    data = recipe.data
    table = _name_tasks(recipe, read_table(source, store=cache_root(recipe) / "images"))
    roles = {"weight": data.weight, "group": data.group, "domain": data.domain}
    dataset = drop_unlabelled(build_dataset_for_tasks(table, tasks, roles))
    tested = dataset.splits == "test"
    return dataset.take(np.flatnonzero(tested)) if tested.any() else dataset


def _name_tasks(recipe: Recipe, table: ImageTable) -> ImageTable:
    """Return the table with the columns of the recipe's tasks under the names of these."""
    return rename_columns(table, {name: task.column or name for name, task in (recipe.data.tasks or {}).items()})


def _list_kinds(recipe: Recipe) -> str | dict[str, dict[str, str]] | None:
    """Return the separator of labels, or by task what kind of column it is learned from."""
    if recipe.data.tasks is None:
        return recipe.data.separator
    facts = {"classes": {}, "regression": {"kind": "regression"}}
    return {
        name: {"separator": task.separator} if task.kind == "multilabel" else facts[task.kind]
        for name, task in recipe.data.tasks.items()
    }


def split_dataset(recipe: Recipe, dataset: Dataset) -> np.ndarray:
    """Return the split of each image: "train", "validation" or "test", shape (n,).

    Raises:
        DataError: A class has nothing to learn from, or there is nothing to measure on.
    """
    data = recipe.data
    splits = assign_splits(dataset, data.validation, data.test, data.seed, data.split_tolerance)
    splits = split_domains(recipe, dataset, splits)
    check_splits(dataset, splits)
    return splits


def check_recipe_feed(recipe: Recipe, dataset: Dataset) -> None:
    """Make sure that the recipe's data service, if it has one, is there and can read the images.

    Raises:
        DataError: The images are packed.
        RunError: Nobody listens.
    """
    if recipe.training.data_service is not None:
        check_data_service(recipe.training.data_service, dataset.paths.tolist())


def image_size(recipe: Recipe) -> int:
    """Return the side length of the images that the backbone sees."""
    return recipe.backbone.size or find_backbone(recipe.backbone.name).default_size


def preprocessing_config(recipe: Recipe) -> dict[str, Any]:
    """Return how bytes become the model's input; prediction and export need the same."""
    return {"size": image_size(recipe), "resize": recipe.data.resize}


def list_licences(recipe: Recipe, facts: Mapping[str, str]) -> dict[str, str]:
    """Return under which licences the images and the weights are that a run starts from.

    Args:
        facts: What the source says of its images.
    """
    try:
        weights = find_backbone(recipe.backbone.name).licence if recipe.backbone.weights != "none" else "none needed"
    except BackboneError:
        weights = "unknown"
    images = facts.get("licence") or "yours: tlkeras knows nothing of it"
    return {"images": images, "weights that it started from": weights}


def make_recipe_policy(recipe: Recipe) -> AugmentationPolicy:
    """Return what is done to the images that the backbone is fine-tuned on."""
    return make_policy(recipe.augmentation.policy)


def open_cache(recipe: Recipe) -> ActivationCache | None:
    """Return the store of activations, or None where the recipe wants none."""
    if not recipe.features.cache:
        return None
    return ActivationCache(cache_root(recipe), budget_bytes=int(recipe.cache.budget_gb * 1e9))


def cache_root(recipe: Recipe) -> Path:
    """Return the folder that all commands share."""
    return Path(os.path.expanduser(recipe.cache.root)) if recipe.cache.root else default_root()


def select_images(recipe: Recipe, inspection: ValidatedDataset, rows: np.ndarray | None = None) -> ImageFiles:
    """Return inspected images as extraction takes them, of some rows or all."""
    chosen = range(len(inspection.dataset)) if rows is None else rows.tolist()
    paths, digests = inspection.dataset.paths, inspection.digests
    return ImageFiles([paths[row] for row in chosen], [digests[row] for row in chosen], recipe.data.resize)
