"""The only interpreter of a recipe: from its sections to the objects of the other rooms."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.backbones.blocks import find_blocks, find_cut
from tlkeras.backbones.building import build, build_source_head
from tlkeras.backbones.catalog import find_backbone
from tlkeras.data.augmentation import PLAIN, View, choose_views, derive_keys, number_views
from tlkeras.data.checks import Inspection
from tlkeras.data.policies import Policy, make_policy
from tlkeras.data.sources import Examples, choose_examples, leave_out_unlabelled, read_table
from tlkeras.data.splits import assign_sides, check_sides, thin
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.events import EventLog
from tlkeras.features import extraction
from tlkeras.features.cache import ActivationCache, default_root
from tlkeras.features.extraction import Features, Pictures, Rows, extract, pool
from tlkeras.features.prefix import FEATURES, SOURCE, Prefix
from tlkeras.finetuning.loop import Loop, Part, Row, Settings
from tlkeras.finetuning.measures import MEASURES
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.objectives import make_objective, mix_examples
from tlkeras.finetuning.optimizers import ScaledOptimizer, scale_learning_rates
from tlkeras.finetuning.plan import Plan, plan_stages
from tlkeras.finetuning.precision import choose_precision
from tlkeras.finetuning.regularization import make_regularizer
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.steps import Criterion
from tlkeras.finetuning.suggestion import Choice, suggest_stages
from tlkeras.finetuning.supply import CachedSupply, PictureSupply, RecordingSupply, Supply
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
        separator=data.separator,
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


def build_prefix(recipe: Recipe) -> Prefix:
    """Return the pretrained half, with its weights."""
    keras.utils.set_random_seed(recipe.training.seed)  # for what has no pretrained weights
    whole = build(recipe.backbone.name, size=picture_size(recipe), weights=recipe.backbone.weights)
    cut = find_cut(whole, recipe.features.cut)
    backbone = keras.Model(whole.input, cut.tensor, name=whole.name)
    pooled = pool(backbone, recipe.features.pooling)
    if recipe.finetuning is None:
        return Prefix(backbone, pooled)
    distils = recipe.finetuning.keep_source.kind == "lwf"
    source_head = build_source_head(whole, recipe.backbone.weights) if distils else None
    return Prefix(backbone, pooled, tuple(find_blocks(backbone)), source_head)


def extract_features(
    recipe: Recipe,
    prefix: Prefix,
    inspection: Inspection,
    taps: Sequence[str] = (FEATURES,),
    views: Sequence[View] = (PLAIN,),
    rows: np.ndarray | None = None,
) -> Features:
    """Return what pictures are at each tap, FEATURES, SOURCE or the name of a cut; what the cache lacks is computed.

    Args:
        rows: Which of the inspected pictures, int64 (n,); None: all.
    """
    return extract(
        prefix.join(taps),
        _as_pictures(recipe, inspection, rows),
        prefix.describe(taps, recipe.backbone.name),
        views=views,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=_choose_precisions(recipe, taps),
    )


def _choose_precisions(recipe: Recipe, taps: Sequence[str]) -> list[str]:
    known = {FEATURES: recipe.features.precision, SOURCE: "float32"}
    return [known.get(tap, "float16") for tap in taps]


def choose_taps(recipe: Recipe, prefix: Prefix, examples: Examples, sides: np.ndarray) -> tuple[str, ...]:
    """Return what is extracted of every picture as it is, in one pass: features, and what fine-tuning keeps of it.

    Raises:
        RecipeError: The fine-tuning does not suit the backbone or the data.
    """
    if recipe.finetuning is None:
        return (FEATURES,)
    _, plan, _ = plan_recipe(recipe, prefix, examples, sides)
    (first,) = number_views(make_recipe_policy(recipe), 1)
    return (FEATURES,) if first.facts() else tuple(dict.fromkeys((FEATURES, *list_kept(prefix, plan))))


def list_kept(prefix: Prefix, plan: Plan) -> tuple[str, ...]:
    """Return the taps whose values are kept for the views that a network trains on."""
    return (*plan.kept, SOURCE) if plan.kept and prefix.source_head is not None else plan.kept


def count_lacking(recipe: Recipe, prefix: Prefix, inspection: Inspection, sides: np.ndarray) -> tuple[int, int]:
    """Return how many views of the inspected pictures the cache lacks, and how many a training needs.

    Raises:
        RecipeError: The fine-tuning does not suit the backbone or the data.
        ResourceError: They would not fit the cache's budget or the disk.
    """
    cache, lacking, needed = open_cache(recipe), 0, 0
    for taps, views, rows in _list_passes(recipe, prefix, inspection.examples, sides):
        needed += len(rows) * len(views)
        if cache is not None:
            pictures, facts = _as_pictures(recipe, inspection, rows), prefix.describe(taps, recipe.backbone.name)
            precisions = _choose_precisions(recipe, taps)
            lacking += extraction.count_lacking(prefix.join(taps), pictures, facts, cache, precisions, views=views)
    return (needed, needed) if cache is None else (lacking, needed)


def _list_passes(
    recipe: Recipe, prefix: Prefix, examples: Examples, sides: np.ndarray
) -> list[tuple[tuple[str, ...], Sequence[View], np.ndarray]]:
    """Return the taps, views and rows of what a training extracts, nothing twice."""
    passes: list[tuple[tuple[str, ...], Sequence[View], np.ndarray]] = []
    passes.append((choose_taps(recipe, prefix, examples, sides), PLAIN_VIEWS, np.arange(len(examples))))
    if recipe.finetuning:
        _, plan, _ = plan_recipe(recipe, prefix, examples, sides)
        kept = list_kept(prefix, plan)
        views = number_views(make_recipe_policy(recipe), plan.views or 1, recipe.training.seed)
        drawn = [view for view in views if view.facts()]
        passes.append((kept, drawn, np.flatnonzero(sides == "train")))
        if len(drawn) == len(views):
            passes.append((plan.kept, PLAIN_VIEWS, np.flatnonzero(sides == "validation")))
    return [(taps, views, rows) for taps, views, rows in passes if taps and views and len(rows)]


def _as_pictures(recipe: Recipe, inspection: Inspection, rows: np.ndarray | None = None) -> Pictures:
    chosen = range(len(inspection.examples)) if rows is None else rows.tolist()
    paths, digests = inspection.examples.paths, inspection.digests
    return Pictures([paths[row] for row in chosen], [digests[row] for row in chosen], recipe.data.resize)


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
    problems += [*_list_problems(lambda: make_recipe_policy(recipe)), *_list_conflicts(recipe)]
    if problems:
        raise RecipeError.from_problems("The fine-tuning cannot be carried out:", problems)
    return Schedule(stages, minimise=MEASURES[f"val_{options.monitor}"], keep=keep), choices


def _list_conflicts(recipe: Recipe) -> list[str]:
    """Say why a recipe cannot distil from the source, if it is to."""
    if _finetuning(recipe).keep_source.kind != "lwf":
        return []
    reasons = {
        "what the source says of blended pictures was never recorded: set augmentation.mixup to 0": bool(
            recipe.augmentation.mixup
        ),
        "the source's classifier follows the last map: leave features.cut out": recipe.features.cut != "last",
        "random weights know nothing to keep: choose others in backbone.weights": recipe.backbone.weights == "none",
    }
    return [f"keep_source lwf: {reason}." for reason, holds in reasons.items() if holds]


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
        several=recipe.data.separator is not None,
        precision=choose_precision(options.precision),
    )
    return Loop(network, schedule, plan.cuts, _make_optimizer(options), criterion, parts, settings)


def make_observer(recipe: Recipe, folder: Path) -> Callable[[Row], None]:
    """Return what is told each row of the history; it writes them into a folder for TensorBoard, if at all."""
    return EventLog(folder).add if _finetuning(recipe).tensorboard else lambda row: None


def supply_pictures(
    recipe: Recipe, prefix: Prefix, inspection: Inspection, rows: np.ndarray, augmented: bool
) -> Supply:
    """Return pictures that are decoded anew in every epoch."""
    pictures = _as_pictures(recipe, inspection, rows)
    policy = make_recipe_policy(recipe) if augmented else None
    supply = PictureSupply(
        pictures.paths, pictures.digests, picture_size(recipe), pictures.fit, policy, recipe.training.seed
    )
    if not augmented or prefix.source_head is None:
        return supply
    teacher = prefix.copy_teacher()
    return RecordingSupply(supply, tf.function(lambda pictures: teacher(pictures, training=False), jit_compile=False))


def supply_rows(
    recipe: Recipe,
    inspection: Inspection,
    rows: np.ndarray,
    views: Sequence[Rows],
    recorded: Sequence[Rows] | None = None,
) -> CachedSupply:
    """Return activations of pictures in several views, each epoch showing one of them."""
    keys, policy = derive_keys([inspection.digests[row] for row in rows.tolist()]), make_recipe_policy(recipe)
    seed, count = recipe.training.seed, len(views)

    def choose(positions: np.ndarray, epoch: int) -> np.ndarray:
        return choose_views(policy, count, keys[positions], epoch, seed)

    return CachedSupply(views, choose, recorded)


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
