"""From a recipe to the frozen network and its activations of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cut, find_cuts
from tlkeras.backbones.builder import build_backbone, build_pretrained_classifier
from tlkeras.backbones.test_time_augmentation import add_test_time_augmentation, check_map
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.image_size import ImageSize, height_and_width
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS
from tlkeras.data.augmentation.views import IDENTITY_VIEW, AugmentedView, number_views
from tlkeras.data.headers import Rendering
from tlkeras.data.tables import TARGET, Dataset
from tlkeras.errors import RecipeError
from tlkeras.features import extraction
from tlkeras.features.engines import Engine, make_engine
from tlkeras.features.extraction import (
    POOLED,
    SOURCE_LOGITS,
    Activations,
    FeatureExtractor,
    average_positions,
    extract_activations,
    source_log_probabilities,
)
from tlkeras.features.handcrafted import codebooks
from tlkeras.features.handcrafted.layer import HandcraftedFeatures, list_handcrafted, make_layers
from tlkeras.features.pooling import (
    add_layers,
    concatenate_backbones,
    extract_taps,
    find_taps,
    part_widths,
    pool,
    pool_tensor,
)
from tlkeras.heads.heads import order_outputs
from tlkeras.training.builders.data import image_size, make_recipe_policy, make_rendering, open_cache
from tlkeras.training.builders.experiment import Experiment

CACHE_DTYPE = "float16"
"""Of activations to train from: half the bytes of float32, and what rounds is far below what batches scatter."""

PLAIN_VIEWS: tuple[AugmentedView, ...] = (IDENTITY_VIEW,)


def build_feature_extractor(recipe: Recipe) -> FeatureExtractor:
    """The frozen network, with its weights; codebooks of handcrafted features are still to be learned.

    TlkerasError if there is no such backbone, depth or weights, or no map for `augmentation.test_time` to average.
    """
    extractor = _build_prefix(recipe)
    _choose_orientations(recipe, extractor)
    return extractor


def _build_prefix(recipe: Recipe) -> FeatureExtractor:
    keras.utils.set_random_seed(recipe.training.seed)  # for what has no pretrained weights
    if recipe.backbone.name == NO_BACKBONE:
        images = keras.Input((*height_and_width(image_size(recipe)), 3), dtype="uint8", name="images")
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
    """The model from images to the features that heads are fitted on."""
    options = recipe.features
    pooling = "none" if recipe.head.kind in FEATURE_MAP_HEADS else options.pooling
    first = extract_taps(whole, find_taps(whole, options.taps) if options.taps else [cut], pooling)
    others = [build_backbone(other.name, size=image_size(recipe), weights=other.weights) for other in options.backbones]
    layers = _make_handcrafted(recipe)
    if not others and not layers:
        return first
    return concatenate_backbones(first, [pool(other, pooling) for other in others], layers)


def _choose_orientations(recipe: Recipe, extractor: FeatureExtractor) -> int:
    """The number of orientations that the finished network averages; 1 if an image is taken as it is. RecipeError if
    the recipe's policy has no numbered orientations; BackboneError if there is no map to average.
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
    check_map(find_cuts(extractor.backbone)[-1], count)
    return count


def add_test_time_views(experiment: Experiment, model: keras.Model) -> keras.Model:
    """The network that is kept: the trained one, averaging orientations if the recipe asks for it."""
    return add_orientations(experiment.recipe, experiment.extractor, model)


def add_orientations(recipe: Recipe, extractor: FeatureExtractor, model: keras.Model) -> keras.Model:
    """A model that begins with the extractor, averaging orientations if the recipe asks for it."""
    count = _choose_orientations(recipe, extractor)
    cuts = find_cuts(extractor.backbone)
    return model if count == 1 else add_test_time_augmentation(model, cuts[-1].name, count)


def orientation_views(recipe: Recipe) -> tuple[AugmentedView, ...]:
    """The orientations whose features `augmentation.test_time` averages, or the image as it is."""
    policy = make_recipe_policy(recipe)
    return number_views(policy, policy.size or 1) if recipe.augmentation.test_time else PLAIN_VIEWS


def fused_widths(experiment: Experiment) -> list[int]:
    """Widths of the parts that features are fused from; [] where there is one part alone."""
    options = experiment.recipe.features
    own = experiment.recipe.backbone.name != NO_BACKBONE
    several = len(options.taps) > 1 or len(options.backbones) + len(options.handcrafted) + own > 1
    return part_widths(experiment.extractor.pooled) if several else []


def _make_handcrafted(recipe: Recipe) -> list[HandcraftedFeatures]:
    return make_layers([one.model_dump(mode="json") for one in recipe.features.handcrafted], image_size(recipe))


def fit_recipe_codebooks(experiment: Experiment) -> int:
    """Fit the codebooks of handcrafted features on training images, or read them from the cache; the number fitted.

    DataError if the training images have too few descriptors; ResourceError if the cache cannot be written.
    """
    recipe, dataset = experiment.recipe, experiment.dataset
    if not recipe.features.handcrafted:
        return 0
    training, seed = dataset.take(dataset.rows("train")), recipe.training.seed
    return codebooks.fit_codebooks(experiment.extractor.pooled, training, open_cache(recipe), seed=seed)


def extract_features(
    experiment: Experiment, taps: Sequence[str] = (POOLED,), views: Sequence[AugmentedView] = (IDENTITY_VIEW,)
) -> Activations:
    """Activations at each tap (`POOLED`, `SOURCE_LOGITS` or the name of a cut); what the cache lacks is computed."""
    recipe, extractor = experiment.recipe, experiment.extractor
    return extract_activations(
        extractor.join(taps),
        experiment.dataset,
        extractor.describe(taps, recipe.backbone.name),
        views=views,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=_choose_precisions(recipe, taps),
    )


def _choose_precisions(recipe: Recipe, taps: Sequence[str]) -> list[str]:
    known = {POOLED: recipe.features.precision, SOURCE_LOGITS: "float32"}
    return [known.get(tap, CACHE_DTYPE) for tap in taps]


def activations_needed(experiment: Experiment) -> tuple[str, ...]:
    """The taps that are extracted of every image as it is, in one pass: features, and what fine-tuning keeps."""
    if experiment.plan is None:
        return (POOLED,)
    (first,) = number_views(make_recipe_policy(experiment.recipe), 1)
    return (POOLED,) if first.facts() else tuple(dict.fromkeys((POOLED, *list_kept(experiment))))


def list_kept(experiment: Experiment) -> tuple[str, ...]:
    """The taps whose values are kept for the views that a network trains on."""
    kept = experiment.plan.caching.kept if experiment.plan is not None else ()
    return (*kept, SOURCE_LOGITS) if kept and experiment.extractor.source_head is not None else kept


def training_views(experiment: Experiment) -> tuple[AugmentedView, ...]:
    """The numbered views in which training images are kept."""
    count = (experiment.plan.caching.views if experiment.plan is not None else None) or 1
    return tuple(number_views(make_recipe_policy(experiment.recipe), count, experiment.recipe.training.seed))


def count_cache_misses(experiment: Experiment) -> tuple[int, int]:
    """The number of images, each view counted, that the cache lacks, and the number that a training needs.

    ResourceError if they would not fit the cache's budget or the disk.
    """
    missing, needed = 0, 0
    for taps, views, part in _list_passes(experiment):
        needed += len(part.dataset) * len(views)
        missing += _count_misses(part, taps, views)
    return missing, needed


def count_missing_features(experiment: Experiment) -> int:
    """The number of images whose features the cache lacks; ResourceError as of `count_cache_misses`."""
    return _count_misses(experiment, (POOLED,), PLAIN_VIEWS)


def _count_misses(experiment: Experiment, taps: Sequence[str], views: Sequence[AugmentedView]) -> int:
    recipe, extractor = experiment.recipe, experiment.extractor
    cache = open_cache(recipe)
    if cache is None:
        return len(experiment.dataset) * len(views)
    facts, dtypes = extractor.describe(taps, recipe.backbone.name), _choose_precisions(recipe, taps)
    return extraction.count_cache_misses(extractor.join(taps), experiment.dataset, facts, cache, dtypes, views=views)


def _list_passes(experiment: Experiment) -> list[tuple[tuple[str, ...], Sequence[AugmentedView], Experiment]]:
    """Taps, views and images of all that a training extracts, nothing twice."""
    passes: list[tuple[tuple[str, ...], Sequence[AugmentedView], Experiment]]
    passes = [(activations_needed(experiment), PLAIN_VIEWS, experiment)]
    if experiment.plan is not None:
        views = training_views(experiment)
        drawn = [view for view in views if view.facts()]
        trained = np.isin(experiment.dataset.split, ("train", TARGET))  # with their labels or without
        passes.append((list_kept(experiment), drawn, experiment.take(trained)))
        if len(drawn) == len(views):
            held_out = experiment.take(experiment.dataset.rows("validation"))
            passes.append((experiment.plan.caching.kept, PLAIN_VIEWS, held_out))
    return [(taps, views, part) for taps, views, part in passes if taps and views and len(part.dataset)]


def list_handcrafted_kinds(recipe: Recipe) -> list[str]:
    """The kinds of handcrafted features that a recipe has, such as "hog"."""
    return [one.kind for one in recipe.features.handcrafted]


def averages_views(recipe: Recipe) -> bool:
    """Whether the finished network averages the orientations of an image."""
    return recipe.augmentation.test_time


def predict_images(recipe: Recipe, dataset: Dataset, model: keras.Model) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probabilities by task, float32 [n, k], from files as a server computes them, and the readable rows, int64 [m]."""
    names = [task.name for task in dataset.tasks]
    facts = [{"model": "trained", "task": name} for name in names]
    with extract_activations(
        order_outputs(model, names), dataset, facts, engine=recipe.features.engine, dtype="float32"
    ) as predictions:
        outputs = [np.asarray(output) for output in predictions.outputs]
        return dict(zip(names, outputs, strict=True)), predictions.kept


def extract_depths(experiment: Experiment) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of the experiment's images at each depth, float32 (n, d), in one pass, and the readable positions.

    Depths are the blocks of the backbone up to where the recipe cuts it, averaged over positions, then handcrafted
    features, whose codebooks were learned before, then `POOLED`, the features that heads are fitted on. Where the
    extractor has a source head, `SOURCE_LOGITS` are the logarithms of its probabilities.
    """
    recipe, extractor = experiment.recipe, experiment.extractor
    blocks = [] if recipe.backbone.name == NO_BACKBONE else find_blocks(extractor.backbone)
    tensors = {block.name: pool_tensor(block.cut.tensor, "average") for block in blocks}
    tensors |= {layer.name.removeprefix("handcrafted_"): layer.output for layer in list_handcrafted(extractor.pooled)}
    tensors[POOLED] = extractor.pooled.output
    if extractor.source_head is not None:
        tensors[SOURCE_LOGITS] = source_log_probabilities(extractor.backbone, extractor.source_head)
    entry = extractor.pooled.input
    models = [keras.Model(entry, tensor) for tensor in tensors.values()]
    with extract_activations(
        keras.Model(entry, list(tensors.values()), name=extractor.pooled.name),
        experiment.dataset,
        [{"backbone": recipe.backbone.name, "model": fingerprint(model)} for model in models],
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=[recipe.features.precision if name == POOLED else "float32" for name in tensors],
    ) as found:
        matrices = [average_positions(np.asarray(output, np.float32)) for output in found.outputs]
        return dict(zip(tensors, matrices, strict=True)), found.kept


def feature_precision(recipe: Recipe) -> str:
    """The dtype in which features are cached and heads read them."""
    return recipe.features.precision


def feature_engine(recipe: Recipe) -> str:
    """The engine that computes features, as in `features.engine`."""
    return recipe.features.engine


@dataclass(frozen=True)
class BulkExtraction:
    """The computation of features of image files."""

    model: keras.Model  # from images to one vector each, [n, d]
    engine: Engine  # runs the model
    size: ImageSize  # of the images in pixels
    rendering: Rendering  # how an image becomes RGB of that size
    dtype: str  # of the features: "float16" or "float32"


def make_bulk_extraction(recipe: Recipe) -> BulkExtraction:
    """The computation of the features that a recipe fits heads on."""
    model = build_feature_extractor(recipe).pooled
    engine = make_engine(model, recipe.features.engine)
    return BulkExtraction(model, engine, image_size(recipe), make_rendering(recipe), recipe.features.precision)


def check_needs_no_training(recipe: Recipe) -> None:
    """Make sure that features need no training images; RecipeError if they have a codebook, which is fitted on some."""
    if any(one.kind == "sift" for one in recipe.features.handcrafted):
        raise RecipeError(
            "These features need a codebook that is fitted on training images.",
            "sift in features.handcrafted",
            "Leave it out, or `tlkeras train` the recipe.",
        )
