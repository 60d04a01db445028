"""From a recipe to its fine-tuning, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.adaptation.domain_head import ADAPTATIONS
from tlkeras.adaptation.penalties import WEIGHTS, DomainAdaptationLoss, DomainDiscrepancy
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema import FineTuningConfig
from tlkeras.data.augmentation.layer import choose_augmentation_device
from tlkeras.data.augmentation.views import choose_views, digest_to_seed
from tlkeras.data.inspection import ValidatedDataset
from tlkeras.data.sources.folders import Dataset
from tlkeras.data.tasks import Task
from tlkeras.features.extraction import CachedActivations
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.finetuning.caching_plan import CachingPlan
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import ActivationSource, BatchSource, DistillationSource, ImageSource
from tlkeras.finetuning.losses import SquaredErrorLoss, make_loss
from tlkeras.finetuning.metrics import TaskSlice
from tlkeras.finetuning.mixup import make_mixup_cutmix
from tlkeras.finetuning.muon import ConvMuon
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.optimizers import ScaledOptimizer, scale_learning_rates
from tlkeras.finetuning.precision import choose_precision
from tlkeras.finetuning.regularization import make_regularizer
from tlkeras.finetuning.schedule import Schedule
from tlkeras.finetuning.tensorboard import TensorBoardLogger
from tlkeras.finetuning.train_step import Objective
from tlkeras.finetuning.trainer import DataSplit, FitHeads, HistoryRow, Trainer, TrainerConfig
from tlkeras.heads.base import LinearClassifierHead
from tlkeras.heads.class_weights import compute_sample_weights
from tlkeras.heads.heads import list_layers
from tlkeras.heads.multitask import MultiTaskLoss, UncertaintyWeighting, pcgrad
from tlkeras.training.builders.data import image_size, make_recipe_policy, select_images
from tlkeras.training.builders.fit_heads import SplitFeatures, fit_heads
from tlkeras.training.builders.heads import make_recipe_head
from tlkeras.training.builders.schedule import require_finetuning


def make_trainer(
    recipe: Recipe,
    dataset: Dataset,
    network: Network,
    schedule: Schedule,
    plan: CachingPlan,
    parts: tuple[DataSplit, DataSplit | None],
    distribution: Strategy = ONE_DEVICE,
) -> Trainer:
    """Return the fine-tuning, ready to run, of a network that was placed on the devices."""
    options, tasks = require_finetuning(recipe), dataset.tasks
    kept = options.regularizer.model_dump()
    regularizer = make_regularizer(**kept)
    regularizer.build(network.backbone.layers, network.head)
    with distribution.scope():
        optimizer = make_optimizer(options)
        transfer = _make_transfer(recipe, tasks, network, schedule, parts[0], optimizer)
    objective = Objective(
        _make_loss(options, tasks, network),
        [*([] if kept["kind"] == "none" else [regularizer]), *([] if transfer is None else [transfer])],
        make_mixup_cutmix(recipe.augmentation.mixup, recipe.augmentation.cutmix),
        pcgrad if options.weighting == "pcgrad" and len(tasks) > 1 else None,
        [] if transfer is None else transfer.variables,
    )
    settings = TrainerConfig(
        batch_size=options.batch_size,
        seed=recipe.training.seed,
        ema=options.ema,
        balanced_sampling=options.balanced_sampling,
        monitor=f"val_{options.monitor}",
        tasks=tuple(
            TaskSlice(task.name, len(task.class_names), task.is_multilabel, _find_units(network, task))
            for task in tasks
        ),
        precision=choose_precision(options.precision),
        distribution=distribution,
        fit_heads=_make_fit(recipe, dataset, parts[0]),
    )
    return Trainer(network, schedule, plan.cuts, optimizer, objective, parts, settings)


def _make_fit(recipe: Recipe, dataset: Dataset, part: DataSplit) -> FitHeads | None:
    """Return what fits the recipe's heads on other features of the same images; None if they are no linear maps.

    What takes epochs to train, chooses features or leads to another domain goes on with what it has.
    """
    make, rows = partial(make_recipe_head, recipe), part.rows
    if rows is None or recipe.domain_adaptation is not None or not isinstance(make(), LinearClassifierHead):
        return None
    return lambda positions, X: list_layers(fit_heads(make, dataset, {"train": SplitFeatures(rows[positions], X)}))


def make_weighting(recipe: Recipe, tasks: Sequence[Task]) -> UncertaintyWeighting | None:
    """Return what learns how much each task counts, if the recipe asks for it."""
    learned = require_finetuning(recipe).weighting == "uncertainty" and len(tasks) > 1
    return UncertaintyWeighting(len(tasks), name="uncertainty") if learned else None


def _make_loss(options: FineTuningConfig, tasks: Sequence[Task], network: Network) -> Callable[..., tf.Tensor]:
    """Return the loss of all tasks: the recipe's of classes, sigmoids of labels, the squared error of numbers."""
    make: dict[str, Callable[[Task], Any]] = {
        "multiclass": lambda task: make_loss(**options.loss.model_dump()),
        "multilabel": lambda task: make_loss("sigmoid", smoothing=options.loss.smoothing),
        "regression": lambda task: SquaredErrorLoss(*(_find_units(network, task) or ())),
    }
    losses = [make[task.kind](task) for task in tasks]
    if len(losses) == 1:
        return losses[0]
    weights = options.task_weights or {}
    widths, shares = [len(task.class_names) for task in tasks], [weights.get(task.name, 1.0) for task in tasks]
    uncertainty: Any = network.weighting
    return MultiTaskLoss(losses, widths, shares, uncertainty)


def _find_units(network: Network, task: Task) -> tuple[float, float] | None:
    """Return scale and offset of a number, which its head's last layer puts back; None of other tasks."""
    if task.has_classes:
        return None
    last: Any = network.heads[task.name][-1]
    return float(last.scale), float(last.offset)


def _make_transfer(
    recipe: Recipe, tasks: Sequence[Task], network: Network, schedule: Schedule, part: DataSplit, optimizer: Any
) -> DomainAdaptationLoss | None:
    """Return what brings the domains of a batch together, ramped up over the whole schedule; None within one domain."""
    adaptation = recipe.domain_adaptation
    if adaptation is None or part.of_target is None or adaptation.method == "none":
        return None
    method, seed = ADAPTATIONS[adaptation.method], recipe.training.seed
    width, classes = network.features.shape[-1], len(tasks[0].class_names)
    seeds = iter(range(seed * 100 + 50, seed * 100 + 100))
    discrepancy = DomainDiscrepancy(method, width, classes, seeds=seeds, seed=seed)  # type: ignore[arg-type]
    drawn = 2 * max(int(part.of_target.sum()), int((~part.of_target).sum()))
    batches = max(1, drawn // require_finetuning(recipe).batch_size)
    total = batches * sum(stage.epochs or stage.max_epochs for stage in schedule.stages)
    weight = WEIGHTS[method] if adaptation.weight is None else adaptation.weight
    return DomainAdaptationLoss(discrepancy, weight, lambda: tf.cast(optimizer.iterations, tf.float32) / total)


def make_tensorboard_logger(recipe: Recipe, folder: Path) -> Callable[[HistoryRow], None]:
    """Return what is told each row of the history; it writes them into a folder for TensorBoard, if at all."""
    return TensorBoardLogger(folder).add if require_finetuning(recipe).tensorboard else lambda row: None


def make_image_source(
    recipe: Recipe, extractor: FeatureExtractor, inspection: ValidatedDataset, rows: np.ndarray, augmented: bool
) -> BatchSource:
    """Return images that are decoded anew in every epoch."""
    images = select_images(recipe, inspection, rows)
    policy = make_recipe_policy(recipe) if augmented else None
    size, place = image_size(recipe), recipe.augmentation.device
    if policy is not None and place == "auto":
        place = choose_augmentation_device(policy, size, require_finetuning(recipe).batch_size)
    supply = ImageSource(
        images.paths,
        images.digests,
        size,
        images.fit,
        policy,
        recipe.training.seed,
        place == "graph",
        recipe.training.data_service,
    )
    if not augmented or extractor.source_head is None:
        return supply
    teacher = extractor.copy_teacher()
    return DistillationSource(supply, tf.function(lambda images: teacher(images, training=False), jit_compile=False))


def make_activation_source(
    recipe: Recipe,
    inspection: ValidatedDataset,
    rows: np.ndarray,
    views: Sequence[CachedActivations],
    recorded: Sequence[CachedActivations] | None = None,
) -> ActivationSource:
    """Return activations of images in several views, each epoch showing one of them."""
    keys, policy = digest_to_seed([inspection.digests[row] for row in rows.tolist()]), make_recipe_policy(recipe)
    seed, count = recipe.training.seed, len(views)

    def choose(positions: np.ndarray, epoch: int) -> np.ndarray:
        return choose_views(policy, count, keys[positions], epoch, seed)

    return ActivationSource(views, choose, recorded)


def balance_class_weights(recipe: Recipe, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights of training examples with those of their classes in, float32 (n,), 1 on average."""
    balanced = require_finetuning(recipe).class_weight == "balanced"
    weighed = compute_sample_weights(classes, weights, "balanced" if balanced else None)
    return (weighed / weighed.mean()).astype(np.float32)


def make_optimizer(options: FineTuningConfig) -> ScaledOptimizer:
    """Return the optimizer of a recipe, not yet built."""
    name, decay = options.optimizer, options.weight_decay
    config: dict[str, Any] = {"global_clipnorm": options.global_clipnorm}
    if options.gradient_accumulation_steps > 1:
        config["gradient_accumulation_steps"] = options.gradient_accumulation_steps
    if name in ("sgd", "rmsprop"):
        config["momentum"] = 0.9
    if decay or name in ("adamw", "muon"):  # these two decay unless they are told not to
        config["weight_decay"] = decay
    if name == "muon":
        optimizer = ConvMuon(adam_weight_decay=decay, **config)
    else:
        optimizer = keras.optimizers.get({"class_name": name, "config": config})
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "log_variances"])
    return scale_learning_rates(optimizer)
