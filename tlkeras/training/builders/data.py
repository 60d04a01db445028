"""From a recipe to its images, their splits, and the cache that all commands share."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.backbones.catalog import find_backbone
from tlkeras.config.image_size import ImageSize
from tlkeras.config.recipe import Recipe
from tlkeras.data.augmentation.policies import AugmentationPolicy, make_policy
from tlkeras.data.decoding import decode_file
from tlkeras.data.depth import choose_depth_range, measure_dataset
from tlkeras.data.headers import InvalidImage, Rendering
from tlkeras.data.pipeline import check_data_service
from tlkeras.data.sources.folders import iter_image_files, read_table
from tlkeras.data.sources.manifests import SourceOptions
from tlkeras.data.splits import assign_splits, check_splits, subsample
from tlkeras.data.tables import (
    TARGET,
    Dataset,
    ImageTable,
    build_dataset,
    build_dataset_for_tasks,
    drop_unlabelled,
    rename_columns,
    rename_labels,
)
from tlkeras.data.tasks import Task
from tlkeras.errors import BackboneError, DataError, list_some, suggest
from tlkeras.features.cache import ActivationCache
from tlkeras.files import cache_folder


def read_source(recipe: Recipe) -> ImageTable:
    """All that the recipe's source says of its images, the labels as the recipe renames them or leaves them out."""
    return _read_table(recipe, recipe.data.source, recipe.data.min_images_per_class or 0)


def list_cleaned_overrides(recipe: Recipe, path: str) -> Mapping[str, Any]:
    """Values by dotted key that read a cleaned manifest of a recipe's images, which holds renamed labels and paths."""
    read = {"source", "root", "path", "links", "folders", "labels", "min_images_per_class"}
    given = recipe.data.model_dump(exclude_unset=True, exclude=read)
    return {**{f"data.{key}": value for key, value in given.items()}, "data.source": path}


def max_pixels(recipe: Recipe) -> int:
    """The most pixels in memory of an image that is used."""
    return recipe.data.max_pixels


def list_cells(recipe: Recipe, table: ImageTable) -> list[str]:
    """The label of each image of a table, several in one text; of several tasks that of the first."""
    tasks = [task.column or name for name, task in (recipe.data.tasks or {}).items()]
    column = [*tasks, recipe.data.label or table.defaults.get("label", "label")][0]
    return table.columns.get(column, [""] * len(table))


def count_labels(recipe: Recipe, table: ImageTable) -> dict[str, int]:
    """The number of images of each class or label, by name, in their order."""
    cells, separator = list_cells(recipe, table), recipe.data.separator
    names = (name for cell in cells for name in (cell.split(separator) if separator else [cell]) if name)
    return dict(sorted(Counter(names).items()))


def _read_table(recipe: Recipe, source: str, least: int = 0) -> ImageTable:
    data = recipe.data
    tasks = {task.column or name: task for name, task in (data.tasks or {}).items()}
    separators = {name: task.separator for name, task in tasks.items() if task.kind == "multilabel"}
    separators |= {data.label or "": data.separator} if data.separator else {}
    used = (*tasks, *filter(None, (data.label, data.weight, data.group, data.domain)), *(data.stratify or ()))
    options = SourceOptions(data.root, data.path, data.links, data.folders, used, separators)
    table = read_table(source, store=cache_root(recipe) / "images", options=options)
    label = data.label or table.defaults.get("label", "label")
    columns = [name for name, task in tasks.items() if task.kind != "regression"] or [label]
    marks = {name or label: separator for name, separator in separators.items()}
    return rename_labels(table, {name: marks.get(name) for name in columns}, data.labels or {}, least)


def list_source_images(recipe: Recipe) -> tuple[str, Callable[[list[InvalidImage]], Iterable[str]]]:
    """The folder of a source's images, and a function that yields their paths; folders are walked through lazily.

    The function appends the source's other files to the list that it is called with.
    """
    folder = os.path.realpath(os.path.expanduser(recipe.data.source))
    if os.path.isdir(folder):
        return folder, partial(iter_image_files, folder, follow=recipe.data.links == "follow")
    table = read_source(recipe)

    def list_paths(rejected: list[InvalidImage]) -> list[str]:
        rejected += table.rejected
        return table.paths

    return str(table.root), list_paths


def read_dataset(recipe: Recipe) -> Dataset:
    """The recipe's images with their labels, at most `data.limit` of them."""
    data, table = recipe.data, _name_tasks(recipe, read_source(recipe))
    columns = list(data.tasks) if data.tasks else [data.label] if data.label else []
    roles = data.model_dump(include={"weight", "group", "domain", "stratify"})
    dataset = keep_domains(recipe, build_dataset(table, columns, separator=_list_kinds(recipe), **roles))
    dataset = replace(drop_unlabelled(dataset, is_target(recipe, dataset)), rendering=make_rendering(recipe))
    return subsample(dataset, data.limit, data.seed) if data.limit else dataset


def read_other_dataset(recipe: Recipe, source: str, tasks: Sequence[Task]) -> Dataset:
    """Labelled images of another source, to evaluate a run on: its test split where the source has splits.

    DataError if the source cannot be read, or its labels are not those of the tasks.
    """
    data = recipe.data
    try:
        read = _read_table(recipe, source)
    except DataError:
        if data.root is None:
            raise
        beside = recipe.model_copy(update={"data": data.model_copy(update={"root": None})})
        read = _read_table(beside, source)  # a table that lies with its images, unlike that of the run
    table = _name_tasks(recipe, read)
    roles = data.model_dump(include={"weight", "group", "domain"})
    dataset = replace(drop_unlabelled(build_dataset_for_tasks(table, tasks, roles)), rendering=make_rendering(recipe))
    tested = dataset.given_splits == "test"
    return dataset.take(np.flatnonzero(tested)) if tested.any() else dataset


def keep_domains(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The images of the recipe's domains; all where it has none.

    DataError if there are no images of a domain, or one is both source and target.
    """
    adaptation = recipe.domain_adaptation
    if adaptation is None:
        return dataset
    known = sorted({str(name) for name in dataset.domains} - {""})
    problems = [
        f"there are no images of the domain {name!r}; {', '.join(list_some(known)) or 'data.domain names no column'}."
        f" {suggest(name, known)}"
        for name in (*adaptation.source, *adaptation.target)
        if name not in known
    ]
    problems += [f"{name!r} is both source and target" for name in sorted({*adaptation.source} & {*adaptation.target})]
    if problems:
        raise DataError.from_problems("Domains are values of data.domain:", problems)
    return dataset.take(np.isin(dataset.domains.astype(str), [*adaptation.source, *adaptation.target]))


def is_target(recipe: Recipe, dataset: Dataset) -> np.ndarray:
    """Mask of the images of the target domain, bool (n,)."""
    targets = [] if recipe.domain_adaptation is None else [*recipe.domain_adaptation.target]
    return np.isin(dataset.domains.astype(str), targets)


def _name_tasks(recipe: Recipe, table: ImageTable) -> ImageTable:
    """The table with the columns of the recipe's tasks under the names of these."""
    return rename_columns(table, {name: task.column or name for name, task in (recipe.data.tasks or {}).items()})


def _list_kinds(recipe: Recipe) -> str | dict[str, dict[str, str]] | None:
    """The separator of labels, or by task the options of its column."""
    if recipe.data.tasks is None:
        return recipe.data.separator
    facts = {"classes": {}, "regression": {"kind": "regression"}}
    return {
        name: {"separator": task.separator} if task.kind == "multilabel" else facts[task.kind]
        for name, task in recipe.data.tasks.items()
    }


def split_dataset(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The images with the split of each: "train", "validation" or "test", and `TARGET` across domains.

    DataError if a class has nothing to learn from, or there is nothing to measure on.
    """
    data = recipe.data
    splits = assign_splits(dataset, data.validation, data.test, data.seed, data.split_tolerance)
    divided = replace(dataset, split=_split_domains(recipe, dataset, splits))
    check_splits(divided)
    return find_depth_range(recipe, divided)


def find_depth_range(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The dataset with the range of values of its training images of 16 bits, where the recipe leaves the range open.

    Of images that are validated; all count where none is in a split yet.
    """
    if recipe.data.depth_range is not None:
        return dataset
    found = choose_depth_range(measure_dataset(dataset, ("train", TARGET, "")))
    return replace(dataset, rendering=replace(dataset.rendering, depth_range=found))


def _split_domains(recipe: Recipe, dataset: Dataset, splits: np.ndarray) -> np.ndarray:
    """Split of each image across domains, str (n,); without a section `domain_adaptation` they stay as they are. Target
    images of the test split are measured if they have a label. All others are `TARGET`: learned from without it. Source
    images validate or train: nothing is measured on them.
    """
    if recipe.domain_adaptation is None:
        return splits
    target = is_target(recipe, dataset)
    labelled = np.any([task.is_labelled(dataset.targets[task.name]) for task in dataset.tasks], axis=0)
    of_source = np.where(splits == "validation", "validation", "train")
    of_target = np.where((splits == "test") & labelled, "test", TARGET)
    return np.where(target, of_target, of_source).astype(object)


def evaluated_splits(recipe: Recipe, dataset: Dataset) -> list[str]:
    """The splits whose predictions are stored: test only across domains, whose validation images are of the source."""
    splits = ("test",) if recipe.domain_adaptation is not None else ("test", "validation")
    return [split for split in splits if len(dataset.rows(split))]


def check_recipe_data_service(recipe: Recipe, dataset: Dataset) -> None:
    """Make sure that a recipe's data service, if it has one, can read the images.

    DataError if they are packed; RunError if nobody listens.
    """
    if recipe.training.data_service is not None:
        check_data_service(recipe.training.data_service, dataset.paths.tolist())


def image_size(recipe: Recipe) -> ImageSize:
    """The size in pixels of the images that the backbone takes."""
    return recipe.backbone.size or find_backbone(recipe.backbone.name).default_size


def make_rendering(recipe: Recipe) -> Rendering:
    """How the recipe's images become RGB of one size."""
    data = recipe.data
    return Rendering(data.resize, data.background, data.max_pixels, data.depth_range)


def preprocessing_config(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Size and rendering that turn an image file into the model's input; prediction and export need the same."""
    return {"size": image_size(recipe), **dataset.rendering.to_config()}


def describe_origin(recipe: Recipe) -> dict[str, str]:
    """Backbone, weights and data source that a run starts from, by these words."""
    return {"backbone": recipe.backbone.name, "weights": recipe.backbone.weights, "source": recipe.data.source}


def list_licences(recipe: Recipe, facts: Mapping[str, str]) -> dict[str, str]:
    """Licences of the images, of which the source says `facts`, and of the weights that a run starts from."""
    try:
        weights = find_backbone(recipe.backbone.name).licence if recipe.backbone.weights != "none" else "none needed"
    except BackboneError:
        weights = "unknown"
    return {"images": facts.get("licence") or "not recorded", "weights that it started from": weights}


def data_seed(recipe: Recipe) -> int:
    """The seed that images are drawn and split by."""
    return recipe.data.seed


def decode_recipe_image(recipe: Recipe, path: str, rendering: Rendering) -> np.ndarray:
    """One image at the backbone's input size, uint8 [height, width, 3]; ImageError if the file cannot be decoded."""
    return decode_file(path, image_size(recipe), rendering)


def mixup_cutmix_alphas(recipe: Recipe) -> tuple[float, float]:
    """Alphas of MixUp and CutMix; 0 for none."""
    return recipe.augmentation.mixup, recipe.augmentation.cutmix


def make_recipe_policy(recipe: Recipe) -> AugmentationPolicy:
    """The augmentation of the images that the backbone is fine-tuned on."""
    policy = make_policy(recipe.augmentation.policy)
    return policy if isinstance(image_size(recipe), int) else policy.without_quarter_turns()


def open_cache(recipe: Recipe) -> ActivationCache | None:
    """The cache of activations, or None where the recipe turns it off."""
    if not recipe.features.cache:
        return None
    return ActivationCache(cache_root(recipe), budget_bytes=int(recipe.cache.budget_gb * 1e9))


def cache_root(recipe: Recipe) -> Path:
    """The folder of the cache that all commands share."""
    return Path(os.path.expanduser(recipe.cache.root)) if recipe.cache.root else cache_folder()
