"""Plots of a recipe's features before anything is fitted: projections, accuracy by depth, feature maps."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cuts
from tlkeras.config.recipe import Recipe
from tlkeras.data.inspection import validate_images
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics.augmentation import check_target, choose_images, write_plot
from tlkeras.errors import DataError, MissingExtraError, RecipeError, suggest
from tlkeras.features.extraction import POOLED
from tlkeras.heads.folds import make_folds
from tlkeras.plotting.charts import plot_contact_sheet, plot_features
from tlkeras.progress import progress_bar
from tlkeras.results import Result
from tlkeras.training import builders
from tlkeras.training.builders.data import data_seed
from tlkeras.training.builders.variants import find_recipe_backbone

METHODS = ("tsne", "umap")
_NAMES = {"tsne": "t-SNE", "umap": "UMAP"}
_COMPONENTS, _NEIGHBOURS, _FOLDS = 50, 5, 5
_CHANNELS, _MAP_PIXELS = 6, 128


@dataclass(frozen=True)
class FeaturePlotResult(Result):
    """Plots of features, and what they show."""

    name: str
    images: int
    separations: dict[str, float]  # share of images with the class of their nearest neighbours in other folds, by depth
    chance: float  # share of the most common class
    layer: str | None  # the cut whose maps were drawn, if any
    path: str  # the PNG file of projections and accuracies
    maps: str | None  # the PNG file of the layer's maps, if any


def show_features(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str = "tsne",
    layer: str | None = None,
    images: int = 2000,
    to: str | Path | None = None,
) -> FeaturePlotResult:
    """Plot how well a recipe's features separate the classes before anything is fitted; test images are left out.

    RecipeError if there is no such method or layer, DataError if too few images have a label, MissingExtraError if UMAP
    is not installed, ResourceError if another file has the name or the file cannot be written.

    Args:
        method: Of the second projection: tsne or umap; the first is of principal components.
        layer: A block or cut of the backbone whose maps are drawn too, into FILE-maps.png.
        images: Maximum number of images that are projected.
        to: The PNG file; NAME-features.png in the current folder by default.
    """
    resolved = load_recipe_or_source(recipe, overrides)[0]
    path = Path(to) if to else Path(f"{resolved.name}-features.png")
    maps = path.with_name(f"{path.stem}-maps.png") if layer is not None else None
    if method not in METHODS:
        raise RecipeError("Unknown projection.", repr(method), suggest(method, METHODS))
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise MissingExtraError("UMAP", "umap")
    if layer is not None and find_recipe_backbone(resolved) is None:
        raise RecipeError("A recipe without a backbone has no layers to draw.", repr(layer), "Leave the layer out.")
    for file in filter(None, (path, maps)):
        check_target(file)
    dataset = builders.split_dataset(resolved, validate_images(builders.read_dataset(resolved)))
    seed = data_seed(resolved)
    experiment = builders.Experiment(resolved, dataset, builders.build_feature_extractor(resolved))
    cut = None if layer is None else _find_map_cut(experiment.extractor.backbone, layer)
    builders.fit_recipe_codebooks(experiment)
    part = experiment.take(draw_rows(dataset, images, seed))
    depths, kept = builders.extract_depths(part)
    shown = part.dataset.take(kept)
    folds = divide_classes(shown, seed)
    separations = knn_accuracy_per_block(folds, depths)
    chance = float(np.bincount(folds.codes).max() / len(folds.codes))
    points = _project(depths[POOLED], method, seed)
    write_plot(partial(plot_features, points, _list_colourings(shown), separations, chance), path)
    if cut is not None and maps is not None:
        _draw_maps(experiment, cut, maps)
    name, drawn = (None, None) if cut is None else (cut.name, str(maps))
    return FeaturePlotResult(resolved.name, len(shown), separations, chance, name, str(path), drawn)


def _find_map_cut(backbone: keras.Model, name: str) -> CutPoint:
    known = {cut.name: cut for cut in find_cuts(backbone)} | {block.name: block.cut for block in find_blocks(backbone)}
    maps = {name: cut for name, cut in known.items() if len(cut.shape) == 3}
    if name not in maps:
        rule = f"{backbone.name} has no block or cut of this name with feature maps."
        raise RecipeError(rule, repr(name), suggest(name, maps))
    return maps[name]


def draw_rows(dataset: Dataset, most: int, seed: int) -> np.ndarray:
    """Positions of at most `most` images that are not of the test split, drawn from the seed, ascending."""
    rows = np.flatnonzero(dataset.split != "test")
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def _list_colourings(dataset: Dataset) -> dict[str, np.ndarray]:
    """The classes of images by the first task, and their domains where there are several, str (n,)."""
    task = dataset.tasks[0]
    targets = dataset.targets[task.name]
    labels = np.array(task.format_targets(targets), dtype=object)
    colourings = {"class": np.where(task.is_labelled(targets), labels, "").astype(str)}
    domains = dataset.domains.astype(str)
    return colourings | ({"domain": domains} if len(np.unique(domains)) > 1 else {})


FoldIndices = list[tuple[np.ndarray, np.ndarray]]  # positions to fit on, and positions held out


@dataclass(frozen=True)
class LabelledFolds:
    """Images of known class, divided into folds."""

    known: np.ndarray  # mask of them among all images, bool (n,)
    codes: np.ndarray  # their classes by the first task, int (m,), from 0
    folds: FoldIndices  # no group is in both parts
    groups: np.ndarray | None = None  # their groups, (m,); None where there are none


def divide_classes(dataset: Dataset, seed: int) -> LabelledFolds:
    """The folds of all images whose class another image has, too; DataError if there are no two such classes."""
    task = dataset.tasks[0]
    targets = dataset.targets[task.name]
    known = task.is_labelled(targets)
    strata = task.strata(targets)
    values, counts = np.unique(strata[known], return_counts=True)
    known &= np.isin(strata, values[counts > 1])  # an image alone in its class has no neighbour of it
    _, codes = np.unique(strata[known], return_inverse=True)
    groups = dataset.groups[known]
    parted = groups if (groups != "").any() else None
    few = len(np.unique(codes)) < 2
    folds = [] if few else make_folds(codes, _FOLDS, seed, parted)
    covered = np.sort(np.concatenate([held for _, held in folds])) if folds else np.empty(0)
    if not np.array_equal(covered, np.arange(len(codes))):
        raise DataError("Depths are compared on two classes with two images or more each.", f"{len(codes)} images")
    return LabelledFolds(known, codes, folds, parted)


def knn_accuracy_per_block(labelled: LabelledFolds, depths: dict[str, np.ndarray]) -> dict[str, float]:
    """Cross-validated accuracy of nearest neighbours by cosine at each depth, whose vectors are float (n, d)."""
    known, codes, folds = labelled.known, labelled.codes, labelled.folds
    separations = {}
    with progress_bar("Comparing depths", len(depths), "depths") as advance:
        for name, X in depths.items():
            unit = X[known] / np.maximum(np.linalg.norm(X[known], axis=1, keepdims=True), 1e-12)
            nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(codes) - len(folds[0][1])))
            separations[name] = float(np.mean(cross_val_predict(nearest, unit, codes, cv=folds) == codes))
            advance(1)
    return separations


def _project(X: np.ndarray, method: str, seed: int) -> dict[str, np.ndarray]:
    """Two principal components, and the other projection made from the first 50, float (n, 2) each, by name."""
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


def _draw_maps(experiment: builders.Experiment, cut: CutPoint, path: Path) -> None:
    """Draw images next to the mean of a layer's channels and the channels that differ most between images."""
    labels, images, _ = choose_images(experiment.recipe, experiment.dataset, _CHANNELS)
    model = keras.Model(experiment.extractor.backbone.input, cut.tensor)
    maps = np.asarray(model(images, training=False), np.float32)
    spread = maps.mean(axis=(1, 2)).std(axis=0)
    channels = np.argsort(-spread, kind="stable")[:_CHANNELS]
    columns = [maps.mean(axis=-1), *(maps[..., channel] for channel in channels)]
    coloured = [_apply_colormap(column) for column in columns]
    rows = [[image, *(column[index] for column in coloured)] for index, image in enumerate(map(_resize, images))]
    titles = ["image", "mean of all", *(f"channel {channel}" for channel in channels)]
    write_plot(partial(plot_contact_sheet, rows, labels, titles), path)


def _apply_colormap(maps: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    low, high = float(maps.min()), float(maps.max())
    shares = (maps - low) / max(high - low, 1e-12)
    colours = np.rint(colormaps["viridis"](shares)[..., :3] * 255).astype(np.uint8)
    return np.stack([_resize(image) for image in colours])


def _resize(pixels: np.ndarray) -> np.ndarray:
    """An image at the size of a cell of the sheet; enlarged pixels stay sharp."""
    from PIL import Image

    smooth = max(pixels.shape[:2]) > _MAP_PIXELS
    filtering = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((_MAP_PIXELS, _MAP_PIXELS), filtering))
