"""The only interpreter of a recipe: from its sections to the objects of the other rooms."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones.blocks import Block, find_blocks, find_cut
from tlkeras.backbones.building import build
from tlkeras.backbones.catalog import find_backbone
from tlkeras.backbones.weights import fingerprint
from tlkeras.data.augmentation import PLAIN, View, choose_views, derive_keys
from tlkeras.data.checks import Inspection
from tlkeras.data.policies import Policy, make_policy
from tlkeras.data.sources import Examples, choose_examples, leave_out_unlabelled, read_table
from tlkeras.data.splits import assign_sides, check_sides, thin
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.features import extraction
from tlkeras.features.cache import ActivationCache, default_root
from tlkeras.features.extraction import Features, Pictures, Rows, extract, pool
from tlkeras.finetuning.loop import Loop, Part, Settings
from tlkeras.finetuning.measures import MEASURES
from tlkeras.finetuning.network import FEATURES, Network
from tlkeras.finetuning.objectives import make_objective, mix_examples
from tlkeras.finetuning.optimizers import ScaledOptimizer, scale_learning_rates
from tlkeras.finetuning.plan import Plan, plan_stages
from tlkeras.finetuning.regularization import make_regularizer
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.steps import Criterion
from tlkeras.finetuning.suggestion import Choice, suggest_stages
from tlkeras.finetuning.supply import CachedSupply, PictureSupply
from tlkeras.mapping.deep import Fitting
from tlkeras.mapping.heads import Head, make_head
from tlkeras.mapping.weighting import weigh_examples
from tlkeras.recipe import Recipe
from tlkeras.sections import Finetuning


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


PLAIN_VIEWS: tuple[View, ...] = (PLAIN,)


@dataclass(frozen=True)
class Prefix:
    """The pretrained half.

    Attributes:
        backbone: uint8 pictures (n, size, size, 3) to the map at the recipe's cut, weights loaded.
        pooled: The same graph with the pooling behind it, to features (n, d).
        blocks: Of the backbone; none unless the recipe fine-tunes.
    """

    backbone: keras.Model
    pooled: keras.Model
    blocks: tuple[Block, ...] = ()


def build_prefix(recipe: Recipe) -> Prefix:
    """Return the pretrained half, with its weights."""
    keras.utils.set_random_seed(recipe.training.seed)  # for what has no pretrained weights
    whole = build(recipe.backbone.name, size=picture_size(recipe), weights=recipe.backbone.weights)
    cut = find_cut(whole, recipe.features.cut)
    backbone = keras.Model(whole.input, cut.tensor, name=whole.name)
    blocks = tuple(find_blocks(backbone)) if recipe.finetuning else ()
    return Prefix(backbone, pool(backbone, recipe.features.pooling), blocks)


def extract_features(
    recipe: Recipe,
    prefix: Prefix,
    inspection: Inspection,
    taps: Sequence[str] = (FEATURES,),
    views: Sequence[View] = (PLAIN,),
    rows: np.ndarray | None = None,
) -> Features:
    """Return what pictures are at each tap, FEATURES or the name of a cut; what the cache lacks is computed.

    Args:
        rows: Which of the inspected pictures, int64 (n,); None: all.
    """
    models = [_tap(prefix, tap) for tap in taps]
    outputs = [model.output for model in models]
    joined = models[0] if len(models) == 1 else keras.Model(prefix.backbone.input, outputs, name=prefix.backbone.name)
    return extract(
        joined,
        _as_pictures(recipe, inspection, rows),
        [_name_output(recipe, model) for model in models],
        views=views,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=[recipe.features.precision if tap == FEATURES else "float16" for tap in taps],
    )


def _tap(prefix: Prefix, tap: str) -> keras.Model:
    if tap == FEATURES:
        return prefix.pooled
    return keras.Model(prefix.backbone.input, find_cut(prefix.backbone, tap).tensor, name=prefix.backbone.name)


def count_lacking(recipe: Recipe, prefix: Prefix, inspection: Inspection) -> int:
    """Return how many of the inspected pictures have no features in the cache yet.

    Raises:
        ResourceError: Their features would not fit the cache's budget or the disk.
    """
    pictures, cache = _as_pictures(recipe, inspection), open_cache(recipe)
    if cache is None:
        return len(pictures)
    facts = [_name_output(recipe, prefix.pooled)]
    return extraction.count_lacking(prefix.pooled, pictures, facts, cache, dtype=recipe.features.precision)


def _as_pictures(recipe: Recipe, inspection: Inspection, rows: np.ndarray | None = None) -> Pictures:
    chosen = range(len(inspection.examples)) if rows is None else rows.tolist()
    paths, digests = inspection.examples.paths, inspection.digests
    return Pictures([paths[row] for row in chosen], [digests[row] for row in chosen], recipe.data.resize)


def _name_output(recipe: Recipe, model: keras.Model) -> dict[str, Any]:
    """Return the facts that name a model's output in the cache; the fingerprint is what tells them apart."""
    return {"backbone": recipe.backbone.name, "model": fingerprint(model)}


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


def make_schedule(recipe: Recipe, prefix: Prefix, pictures: int, classes: int) -> tuple[Schedule, tuple[Choice, ...]]:
    """Return the stages of a recipe that fine-tunes, and the reasons for those that were chosen for it.

    Raises:
        RecipeError: A stage does not suit the backbone or the data.
    """
    options = _finetuning(recipe)
    validated = recipe.data.validation > 0
    if options.stages is None:
        suggestion = suggest_stages(
            pictures=pictures,
            classes=classes,
            blocks=len(prefix.blocks),
            batch_size=options.batch_size,
            validated=validated,
            probed=True,
        )
        stages, keep, choices = suggestion.stages, suggestion.keep, suggestion.choices
    else:
        stages, keep, choices = tuple(Stage(**stage.model_dump()) for stage in options.stages), options.keep, ()
    problems = []
    for stage in stages:
        if stage.until and not validated:
            problems.append(
                f"stage {stage.name!r} ends at a plateau, which only a validation set shows: set data.validation."
            )
        problems += _list_problems(partial(stage.count_blocks, len(prefix.blocks)))
    problems += _list_problems(lambda: make_recipe_policy(recipe))
    if problems:
        raise RecipeError.from_problems("The fine-tuning cannot be carried out:", problems)
    return Schedule(stages, minimise=MEASURES[f"val_{options.monitor}"], keep=keep), choices


def _list_problems(attempt: Callable[[], Any]) -> list[str]:
    try:
        attempt()
    except TlkerasError as error:
        return [str(error)]
    return []


def plan_recipe(
    recipe: Recipe, prefix: Prefix, examples: Examples, sides: np.ndarray
) -> tuple[Schedule, Plan, tuple[Choice, ...]]:
    """Return how a recipe fine-tunes these examples: its stages, what is kept for each, and why.

    Raises:
        RecipeError: A stage does not suit the backbone or the data.
    """
    (task,) = examples.tasks
    pictures = int((sides == "train").sum())
    schedule, choices = make_schedule(recipe, prefix, pictures, len(task.class_names))
    return schedule, plan_finetuning(recipe, prefix, schedule, pictures), choices


def plan_finetuning(recipe: Recipe, prefix: Prefix, schedule: Schedule, pictures: int) -> Plan:
    """Return which activations are kept for which stage, and in how many views."""
    policy = make_recipe_policy(recipe)
    off = not recipe.features.cache or _finetuning(recipe).cache == "off"
    return plan_stages(
        schedule,
        prefix.blocks,
        prefix.pooled.output_shape[1],
        pictures=pictures,
        views=recipe.augmentation.views,
        most_views=policy.size,
        # not what is free at the moment: a resumed run must come to the same plan
        budget_bytes=None if off else int(recipe.cache.budget_gb * 1e9),
    )


def make_recipe_policy(recipe: Recipe) -> Policy:
    """Return what is done to the pictures that the backbone is fine-tuned on."""
    return make_policy(recipe.augmentation.policy)


def make_loop(
    recipe: Recipe, network: Network, schedule: Schedule, plan: Plan, parts: tuple[Part, Part | None]
) -> Loop:
    """Return the fine-tuning, ready to run."""
    options = _finetuning(recipe)
    kept = options.keep_source.model_dump()
    regularizer = make_regularizer(**kept)
    regularizer.build(network.backbone.layers, network.head)
    mixup = recipe.augmentation.mixup
    criterion = Criterion(
        make_objective(**options.loss.model_dump()),
        [] if kept["kind"] == "none" else [regularizer],
        partial(mix_examples, alpha=mixup) if mixup else None,
    )
    settings = Settings(
        batch_size=options.batch_size,
        seed=recipe.training.seed,
        average=options.average,
        balanced=options.balanced,
        monitor=f"val_{options.monitor}",
    )
    return Loop(network, schedule, plan.cuts, _make_optimizer(options), criterion, parts, settings)


def supply_pictures(recipe: Recipe, inspection: Inspection, rows: np.ndarray, augmented: bool) -> PictureSupply:
    """Return pictures that are decoded anew in every epoch."""
    pictures = _as_pictures(recipe, inspection, rows)
    policy = make_recipe_policy(recipe) if augmented else None
    return PictureSupply(
        pictures.paths, pictures.digests, picture_size(recipe), pictures.fit, policy, recipe.training.seed
    )


def supply_rows(recipe: Recipe, inspection: Inspection, rows: np.ndarray, views: Sequence[Rows]) -> CachedSupply:
    """Return activations of pictures in several views, each epoch showing one of them."""
    keys, policy = derive_keys([inspection.digests[row] for row in rows.tolist()]), make_recipe_policy(recipe)
    seed, count = recipe.training.seed, len(views)
    return CachedSupply(views, lambda positions, epoch: choose_views(policy, count, keys[positions], epoch, seed))


def weigh_sides(recipe: Recipe, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights of training examples with those of their classes in, float32 (n,), 1 on average."""
    balanced = _finetuning(recipe).class_weight == "balanced"
    weighed = weigh_examples(classes, weights, "balanced" if balanced else None)
    return (weighed / weighed.mean()).astype(np.float32)


def _finetuning(recipe: Recipe) -> Finetuning:
    if recipe.finetuning is None:
        raise RecipeError("The recipe must have a section `finetuning`.", recipe.name, "Add `finetuning: {}`.")
    return recipe.finetuning


def _make_optimizer(options: Finetuning) -> ScaledOptimizer:
    config = {
        "weight_decay": options.weight_decay or None,
        "global_clipnorm": options.clip_norm,
        "gradient_accumulation_steps": options.accumulate if options.accumulate > 1 else None,
        **({"momentum": 0.9} if options.optimizer in ("sgd", "rmsprop") else {}),
    }
    config = {key: value for key, value in config.items() if value is not None}
    optimizer = keras.optimizers.get({"class_name": options.optimizer, "config": config})
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return scale_learning_rates(optimizer)
