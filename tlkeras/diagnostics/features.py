"""What a recipe's features separate, before anything is fitted: projections, depths, maps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cuts
from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.data.inspection import ValidatedDataset, validate_images
from tlkeras.diagnostics.augmentation import check_target, choose_images
from tlkeras.errors import DataError, MissingExtraError, RecipeError, ResourceError, suggest
from tlkeras.features.extractor import POOLED
from tlkeras.heads.base import make_folds
from tlkeras.plotting.charts import draw_contact_sheet, draw_features
from tlkeras.progress import progress_bar
from tlkeras.training import builders

METHODS = ("tsne", "umap")
_NAMES = {"tsne": "t-SNE", "umap": "UMAP"}
_COMPONENTS = 50
_NEIGHBOURS = 5
_FOLDS = 5
_CHANNELS = 6
_MAP_PIXELS = 128


@dataclass(frozen=True)
class FeaturePlotOptions:
    """What is looked at.

    Attributes:
        path: The PNG file of projections and depths.
        method: Of the second projection, "tsne" or "umap"; the first is of principal components.
        layer: The block or cut whose maps are drawn beside; None draws none.
        maps: The PNG file of these maps.
        images: How many images are projected at most.
    """

    path: Path
    method: str = "tsne"
    layer: str | None = None
    maps: Path | None = None
    images: int = 2000


def show_features(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str = "tsne",
    layer: str | None = None,
    images: int = 2000,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """What a recipe's features separate before anything is fitted, drawn; test images are left out.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a `Recipe`.
        overrides: Values by dotted key.
        method: Of the second projection: tsne or umap; the first is of principal components.
        layer: A block or cut of the backbone whose maps are drawn too, into FILE-maps.png.
        images: How many are projected at most.
        to: The PNG file; NAME-features.png in the current folder if not given.

    Returns:
        `name`; `images` looked at; `separations`, by depth the share of images whose class their nearest neighbours
        in other folds have; `chance`, the share of the most common class; `path`; `maps`, or None; `layer`.

    Raises:
        RecipeError: There is no such method or layer.
        DataError: There are too few images with a label.
        MissingExtraError: UMAP is not installed.
        ResourceError: A file is in the way, or cannot be written.
    """
    resolved = load_recipe(recipe, overrides)
    path = Path(to) if to else Path(f"{resolved.name}-features.png")
    options = FeaturePlotOptions(path, method, layer, path.with_name(f"{path.stem}-maps.png"), images)
    return _show(resolved, options)


def _show(recipe: Recipe, options: FeaturePlotOptions) -> dict[str, Any]:
    _check(recipe, options)
    inspection = validate_images(builders.read_dataset(recipe))
    splits = builders.split_dataset(recipe, inspection.dataset)
    extractor = builders.build_feature_extractor(recipe)
    cut = None if options.layer is None else _find_maps(extractor.backbone, options.layer)
    builders.fit_recipe_codebooks(recipe, extractor, inspection, splits)
    depths, rows = builders.extract_depths(recipe, extractor, inspection, draw_rows(recipe, splits, options.images))
    classed = divide_classes(recipe, inspection, rows)
    separations, chance = (
        knn_accuracy_per_block(classed, depths),
        float(np.bincount(classed.codes).max() / len(classed.codes)),
    )
    points = _project(depths[POOLED], options.method, recipe.data.seed)
    _write(
        options.path, lambda: draw_features(points, _name_colours(inspection, rows), separations, chance, options.path)
    )
    if cut is not None and options.maps is not None:
        _draw_maps(recipe, inspection, keras.Model(extractor.backbone.input, cut.tensor), cut.name, options.maps)
    return {
        "name": recipe.name,
        "images": len(rows),
        "separations": separations,
        "chance": chance,
        "layer": cut and cut.name,
        "path": str(options.path),
        "maps": str(options.maps) if cut is not None else None,
    }


def _check(recipe: Recipe, options: FeaturePlotOptions) -> None:
    if options.method not in METHODS:
        raise RecipeError(
            f"A projection is one of {', '.join(METHODS)}.", repr(options.method), suggest(options.method, METHODS)
        )
    if options.method == "umap" and importlib.util.find_spec("umap") is None:
        raise MissingExtraError("UMAP", "umap")
    if options.layer is not None and recipe.backbone.name == NO_BACKBONE:
        raise RecipeError("Only a backbone has layers to look at.", repr(options.layer), "Leave the layer out.")
    for path in filter(None, (options.path, options.maps if options.layer else None)):
        check_target(path)


def _find_maps(backbone: keras.Model, name: str) -> CutPoint:
    known = {cut.name: cut for cut in find_cuts(backbone)} | {block.name: block.cut for block in find_blocks(backbone)}
    maps = {name: cut for name, cut in known.items() if len(cut.shape) == 3}
    if name not in maps:
        rule = f"A layer to look at is a block or cut of {backbone.name} that has maps."
        raise RecipeError(rule, repr(name), suggest(name, maps))
    return maps[name]


def draw_rows(recipe: Recipe, splits: np.ndarray, most: int) -> np.ndarray:
    """Return rows that nothing is measured on, at most so many, drawn from the recipe's seed."""
    rows = np.flatnonzero(splits != "test")
    return np.sort(np.random.default_rng(recipe.data.seed).permutation(rows)[:most])


def _name_colours(inspection: ValidatedDataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the labels of images by the first task, and their domains where there are several."""
    dataset, task = inspection.dataset, inspection.dataset.tasks[0]
    targets = dataset.targets[task.name][rows]
    labels = np.array(task.format_targets(targets), dtype=object)
    colours = {"class": np.where(task.is_labelled(targets), labels, "").astype(str)}
    domains = dataset.domains[rows].astype(str)
    return colours | ({"domain": domains} if len(np.unique(domains)) > 1 else {})


@dataclass(frozen=True)
class LabelledFolds:
    """Images of known class, divided into folds.

    Attributes:
        known: Which of the images looked at they are, bool (n,).
        codes: Their classes by the first task, int (m,), from 0.
        folds: Places among them to fit on and places held out; groups stay on one split.
    """

    known: np.ndarray
    codes: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]


def divide_classes(recipe: Recipe, inspection: ValidatedDataset, rows: np.ndarray) -> LabelledFolds:
    """Return the folds of images, int64 (n,) of the inspected ones, in which every class can be told.

    Raises:
        DataError: There are no two classes of two images.
    """
    dataset, task = inspection.dataset, inspection.dataset.tasks[0]
    targets = dataset.targets[task.name][rows]
    known = task.is_labelled(targets)
    strata = task.strata(targets)
    values, counts = np.unique(strata[known], return_counts=True)
    known &= np.isin(strata, values[counts > 1])  # an image alone in its class has no neighbour of it
    _, codes = np.unique(strata[known], return_inverse=True)
    groups = dataset.groups[rows][known]
    few = len(np.unique(codes)) < 2
    folds = [] if few else make_folds(codes, _FOLDS, recipe.data.seed, groups if (groups != "").any() else None)
    covered = np.sort(np.concatenate([held for _, held in folds])) if folds else np.empty(0)
    if not np.array_equal(covered, np.arange(len(codes))):
        raise DataError("Depths are compared on two images or more of each of two classes.", f"{len(codes)} images")
    return LabelledFolds(known, codes, folds)


def knn_accuracy_per_block(classed: LabelledFolds, depths: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracy of nearest neighbours at each depth, by cross-validation.

    Neighbours are those of the least angle: norms differ from depth to depth.
    """
    known, codes, folds = classed.known, classed.codes, classed.folds
    separations = {}
    with progress_bar("Comparing depths", len(depths), "depths") as advance:
        for name, X in depths.items():
            unit = X[known] / np.maximum(np.linalg.norm(X[known], axis=1, keepdims=True), 1e-12)
            nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(codes) - len(folds[0][1])))
            separations[name] = float(np.mean(cross_val_predict(nearest, unit, codes, cv=folds) == codes))
            advance(1)
    return separations


def _project(X: np.ndarray, method: str, seed: int) -> dict[str, np.ndarray]:
    """Return two principal components, and a map of neighbourhoods made from the first 50, float (n, 2) each."""
    components = PCA(min(_COMPONENTS, *X.shape), random_state=seed).fit(X)
    reduced = components.transform(X)
    shares = components.explained_variance_ratio_[:2].sum()
    plane = np.hstack([reduced, np.zeros((len(X), 1))])[:, :2]
    if method == "umap":
        import umap

        mapped = umap.UMAP(random_state=seed, n_neighbors=min(15, len(X) - 1)).fit_transform(reduced)
    else:
        mapped = TSNE(random_state=seed, perplexity=min(30.0, (len(X) - 1) / 3), init="pca").fit_transform(reduced)
    return {f"PCA ({shares:.0%} of the variance)": plane, _NAMES[method]: mapped}


def _draw_maps(recipe: Recipe, inspection: ValidatedDataset, model: keras.Model, layer: str, path: Path) -> None:
    """Draw images beside the mean of all channels of a layer, and its channels that differ most between images."""
    labels, images, _ = choose_images(recipe, inspection.dataset, _CHANNELS)
    maps = np.asarray(model(images, training=False), np.float32)
    spread = maps.mean(axis=(1, 2)).std(axis=0)
    channels = np.argsort(-spread, kind="stable")[: min(_CHANNELS, maps.shape[-1])]
    columns = [maps.mean(axis=-1), *(maps[..., channel] for channel in channels)]
    coloured = [_colour(column) for column in columns]
    rows = [[image, *(column[index] for column in coloured)] for index, image in enumerate(map(_enlarge, images))]
    tops = ["image", "mean of all", *(f"channel {channel}" for channel in channels)]
    _write(path, lambda: draw_contact_sheet(rows, labels, tops, path))


def _colour(maps: np.ndarray) -> np.ndarray:
    """Return maps (n, h, w) in colours of one scale, uint8 (n, 128, 128, 3)."""
    from matplotlib import colormaps

    low, high = float(maps.min()), float(maps.max())
    shares = (maps - low) / max(high - low, 1e-12)
    colours = np.rint(colormaps["viridis"](shares)[..., :3] * 255).astype(np.uint8)
    return np.stack([_enlarge(image) for image in colours])


def _enlarge(pixels: np.ndarray) -> np.ndarray:
    """Return an image at the size of a cell, its pixels as they are."""
    from PIL import Image

    split = (_MAP_PIXELS, _MAP_PIXELS)
    smooth = max(pixels.shape[:2]) > _MAP_PIXELS
    way = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(split, way))


def _write(path: Path, draw: Callable[[], None]) -> None:
    try:
        draw()
    except OSError as error:
        raise ResourceError("The image must be writable.", f"{path} ({error.strerror})") from None
