"""From a recipe to the pretrained half and what it says of images."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cut, find_cuts
from tlkeras.backbones.builder import build_backbone, build_pretrained_classifier
from tlkeras.backbones.test_time_augmentation import add_test_time_augmentation, check_map
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS
from tlkeras.data.augmentation.views import IDENTITY_VIEW, AugmentedView, number_views
from tlkeras.data.inspection import ValidatedDataset
from tlkeras.data.sources.folders import Dataset
from tlkeras.errors import RecipeError
from tlkeras.features import extraction, fusion
from tlkeras.features.extraction import Activations, extract_activations
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS, FeatureExtractor
from tlkeras.features.fusion import add_layers, concatenate_backbones, extract_taps, find_taps
from tlkeras.features.handcrafted import codebooks
from tlkeras.features.handcrafted.layer import HandcraftedFeatures, make_layers
from tlkeras.features.pooling import pool
from tlkeras.finetuning.caching_plan import CachingPlan
from tlkeras.training.builders.adaptation import training_mask
from tlkeras.training.builders.data import image_size, make_recipe_policy, open_cache, select_images
from tlkeras.training.builders.schedule import plan_recipe

CACHE_DTYPE = "float16"
"""Of activations to train from: half the bytes of float32, and what rounds is far below what batches scatter."""

PLAIN_VIEWS: tuple[AugmentedView, ...] = (IDENTITY_VIEW,)


def build_feature_extractor(recipe: Recipe) -> FeatureExtractor:
    """Return the pretrained half, with its weights; codebooks of handcrafted features are still to be learned.

    Raises:
        TlkerasError: There is no such backbone, depth or weights, or no map for `augmentation.test_time` to average.
    """
    extractor = _build_prefix(recipe)
    _choose_orientations(recipe, extractor)
    return extractor


def _build_prefix(recipe: Recipe) -> FeatureExtractor:
    keras.utils.set_random_seed(recipe.training.seed)  # for what has no pretrained weights
    if recipe.backbone.name == NO_BACKBONE:
        size = image_size(recipe)
        images = keras.Input((size, size, 3), dtype="uint8", name="images")
        alone = add_layers(images, [], _make_handcrafted(recipe), "handcrafted")
        return FeatureExtractor(alone, alone)
    whole = build_backbone(recipe.backbone.name, size=image_size(recipe), weights=recipe.backbone.weights)
    cut = find_cut(whole, recipe.features.cut)
    backbone = keras.Model(whole.input, cut.tensor, name=whole.name)
    pooled = _fuse_features(recipe, whole, cut)
    if recipe.finetuning is None:
        return FeatureExtractor(backbone, pooled)
    distils = recipe.finetuning.regularizer.kind == "lwf"
    source_head = build_pretrained_classifier(recipe.backbone.name, whole, recipe.backbone.weights) if distils else None
    return FeatureExtractor(backbone, pooled, tuple(find_blocks(backbone)), source_head)


def _fuse_features(recipe: Recipe, whole: keras.Model, cut: CutPoint) -> keras.Model:
    """Return the model from images to what heads eat."""
    options = recipe.features
    pooling = "none" if recipe.head.kind in FEATURE_MAP_HEADS else options.pooling
    first = extract_taps(whole, find_taps(whole, options.taps) if options.taps else [cut], pooling)
    others = [build_backbone(other.name, size=image_size(recipe), weights=other.weights) for other in options.backbones]
    layers = _make_handcrafted(recipe)
    return (
        concatenate_backbones(first, [pool(other, pooling) for other in others], layers) if others or layers else first
    )


def _choose_orientations(recipe: Recipe, extractor: FeatureExtractor) -> int:
    """Return in how many orientations the finished network looks at each image; 1 if only as it is.

    Raises:
        RecipeError: The recipe's policy has no numbered orientations.
        BackboneError: The backbone has no map to average.
    """
    if not recipe.augmentation.test_time:
        return 1
    count = make_recipe_policy(recipe).size or 1
    if count == 1:
        raise RecipeError(
            "augmentation.test_time averages over numbered orientations.",
            f"policy {recipe.augmentation.policy!r}",
            "Set augmentation.policy to flip or dihedral.",
        )
    check_map(find_cuts(extractor.backbone)[-1])
    return count


def add_test_time_views(recipe: Recipe, extractor: FeatureExtractor, model: keras.Model) -> keras.Model:
    """Return the network that is kept: what was trained, in all orientations if the recipe wants that."""
    count = _choose_orientations(recipe, extractor)
    return model if count == 1 else add_test_time_augmentation(model, find_cuts(extractor.backbone)[-1].name, count)


def fused_widths(recipe: Recipe, extractor: FeatureExtractor) -> list[int]:
    """Return the widths of the parts that features are fused from; [] where there is one part alone."""
    options = recipe.features
    own = recipe.backbone.name != NO_BACKBONE
    several = len(options.taps) > 1 or len(options.backbones) + len(options.handcrafted) + own > 1
    return fusion.part_widths(extractor.pooled) if several else []


def _make_handcrafted(recipe: Recipe) -> list[HandcraftedFeatures]:
    return make_layers([one.model_dump(mode="json") for one in recipe.features.handcrafted], image_size(recipe))


def fit_recipe_codebooks(
    recipe: Recipe, extractor: FeatureExtractor, inspection: ValidatedDataset, splits: np.ndarray
) -> int:
    """Learn what handcrafted features need of training images, or read it from the cache; return how much was new.

    Raises:
        DataError: The training images say too little.
        ResourceError: The cache cannot be written.
    """
    if not recipe.features.handcrafted:
        return 0
    images = select_images(recipe, inspection, np.flatnonzero(splits == "train"))
    return codebooks.fit_codebooks(extractor.pooled, images, open_cache(recipe), seed=recipe.training.seed)


def extract_features(
    recipe: Recipe,
    extractor: FeatureExtractor,
    inspection: ValidatedDataset,
    taps: Sequence[str] = (POOLED,),
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
    rows: np.ndarray | None = None,
) -> Activations:
    """Return what images are at each tap, FEATURES, SOURCE or the name of a cut; what the cache lacks is computed.

    Args:
        rows: Which of the inspected images, int64 (n,); None: all.
    """
    return extract_activations(
        extractor.join(taps),
        select_images(recipe, inspection, rows),
        extractor.describe(taps, recipe.backbone.name),
        views=views,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=_choose_precisions(recipe, taps),
    )


def _choose_precisions(recipe: Recipe, taps: Sequence[str]) -> list[str]:
    known = {POOLED: recipe.features.precision, SOURCE_LOGITS: "float32"}
    return [known.get(tap, CACHE_DTYPE) for tap in taps]


def activations_needed(
    recipe: Recipe, extractor: FeatureExtractor, dataset: Dataset, splits: np.ndarray
) -> tuple[str, ...]:
    """Return what is extracted of every image as it is, in one pass: features, and what fine-tuning keeps of it.

    Raises:
        RecipeError: The fine-tuning does not suit the backbone or the data.
    """
    if recipe.finetuning is None:
        return (POOLED,)
    _, plan, _ = plan_recipe(recipe, extractor, dataset, splits)
    (first,) = number_views(make_recipe_policy(recipe), 1)
    return (POOLED,) if first.facts() else tuple(dict.fromkeys((POOLED, *list_kept(extractor, plan))))


def list_kept(extractor: FeatureExtractor, plan: CachingPlan) -> tuple[str, ...]:
    """Return the taps whose values are kept for the views that a network trains on."""
    return (*plan.kept, SOURCE_LOGITS) if plan.kept and extractor.source_head is not None else plan.kept


def count_lacking(
    recipe: Recipe, extractor: FeatureExtractor, inspection: ValidatedDataset, splits: np.ndarray
) -> tuple[int, int]:
    """Return how many views of the inspected images the cache lacks, and how many a training needs.

    Raises:
        RecipeError: The fine-tuning does not suit the backbone or the data.
        ResourceError: They would not fit the cache's budget or the disk.
    """
    cache, lacking, needed = open_cache(recipe), 0, 0
    for taps, views, rows in _list_passes(recipe, extractor, inspection.dataset, splits):
        needed += len(rows) * len(views)
        if cache is not None:
            images, facts = select_images(recipe, inspection, rows), extractor.describe(taps, recipe.backbone.name)
            precisions = _choose_precisions(recipe, taps)
            lacking += extraction.count_cache_misses(
                extractor.join(taps), images, facts, cache, precisions, views=views
            )
    return (needed, needed) if cache is None else (lacking, needed)


def count_features(recipe: Recipe, extractor: FeatureExtractor, inspection: ValidatedDataset) -> int:
    """Return of how many images the cache lacks the features.

    Raises:
        ResourceError: They would not fit the cache's budget or the disk.
    """
    cache, taps = open_cache(recipe), (POOLED,)
    if cache is None:
        return len(inspection.dataset)
    images, facts = select_images(recipe, inspection), extractor.describe(taps, recipe.backbone.name)
    return extraction.count_cache_misses(extractor.join(taps), images, facts, cache, _choose_precisions(recipe, taps))


def _list_passes(
    recipe: Recipe, extractor: FeatureExtractor, dataset: Dataset, splits: np.ndarray
) -> list[tuple[tuple[str, ...], Sequence[AugmentedView], np.ndarray]]:
    """Return the taps, views and rows of what a training extracts, nothing twice."""
    passes: list[tuple[tuple[str, ...], Sequence[AugmentedView], np.ndarray]] = []
    passes.append((activations_needed(recipe, extractor, dataset, splits), PLAIN_VIEWS, np.arange(len(dataset))))
    if recipe.finetuning:
        _, plan, _ = plan_recipe(recipe, extractor, dataset, splits)
        kept = list_kept(extractor, plan)
        views = number_views(make_recipe_policy(recipe), plan.views or 1, recipe.training.seed)
        drawn = [view for view in views if view.facts()]
        passes.append((kept, drawn, np.flatnonzero(training_mask(splits))))
        if len(drawn) == len(views):
            passes.append((plan.kept, PLAIN_VIEWS, np.flatnonzero(splits == "validation")))
    return [(taps, views, rows) for taps, views, rows in passes if taps and views and len(rows)]
