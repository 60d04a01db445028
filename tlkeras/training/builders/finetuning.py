"""From a recipe to its fine-tuning, ready to run."""

from collections.abc import Callable, Mapping, Sequence
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
from tlkeras.config.schema.finetuning import SigmoidConfig
from tlkeras.data.augmentation.views import choose_augmentation_device, choose_views, digest_to_seed
from tlkeras.data.tasks import Task
from tlkeras.features.extraction import CachedActivations
from tlkeras.finetuning.callbacks import TensorBoardLogger
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import ActivationSource, BatchSource, DataSplit, DistillationSource, ImageSource
from tlkeras.finetuning.losses import SigmoidLoss, SquaredErrorLoss, make_loss, make_mixup_cutmix
from tlkeras.finetuning.metrics import TaskSlice
from tlkeras.finetuning.network import Network, choose_precision
from tlkeras.finetuning.optimizers import ConvMuon, ScaledOptimizer, scale_learning_rates
from tlkeras.finetuning.regularization import make_regularizer
from tlkeras.finetuning.schedule import Schedule
from tlkeras.finetuning.stage_runner import Objective
from tlkeras.finetuning.trainer import FitHeads, Trainer, TrainerConfig
from tlkeras.heads.base import LinearClassifierHead
from tlkeras.heads.folds import compute_class_factors, compute_sample_weights
from tlkeras.heads.heads import Head, list_layers
from tlkeras.heads.multitask import MultiTaskLoss, UncertaintyWeighting, pcgrad
from tlkeras.training.builders.data import image_size, is_target, make_recipe_policy
from tlkeras.training.builders.experiment import Experiment, require_finetuning, require_plan
from tlkeras.training.builders.heads import SplitFeatures, fit_heads, make_recipe_head

_LEAST = 1e-12  # weight of a labelled image beside images of a target domain, which have 0


def make_trainer(
    experiment: Experiment, network: Network, parts: tuple[DataSplit, DataSplit | None], strategy: Strategy = ONE_DEVICE
) -> Trainer:
    """The trainer, ready to run, of a network from `make_network` that was placed on the devices.

    Parts are what is trained on, and what is validated on, if anything.
    """
    recipe, plan, tasks = experiment.recipe, require_plan(experiment), experiment.dataset.tasks
    options = require_finetuning(recipe)
    regularizer = make_regularizer(options.regularizer)
    if regularizer is not None:
        regularizer.build(network.backbone.layers, network.head)
    with strategy.scope():
        optimizer = make_optimizer(options)
        transfer = _make_transfer(recipe, tasks, network, plan.schedule, parts[0], optimizer)
    objective = Objective(
        _make_loss(options, tasks, network),
        [penalty for penalty in (regularizer, transfer) if penalty is not None],
        make_mixup_cutmix(recipe.augmentation.mixup, recipe.augmentation.cutmix),
        pcgrad if options.weighting == "pcgrad" and len(tasks) > 1 else None,
        [] if transfer is None else transfer.variables,
    )
    slices = [TaskSlice(one.name, len(one.class_names), one.is_multilabel, _find_units(network, one)) for one in tasks]
    settings = TrainerConfig(
        **options.model_dump(include={"batch_size", "ema", "balanced_sampling"}),
        seed=recipe.training.seed,
        monitor=f"val_{options.monitor}",
        tasks=tuple(slices),
        precision=choose_precision(options.precision),
        distribution=strategy,
        fit_heads=_make_fit(experiment),
    )
    return Trainer(network, plan.schedule, plan.caching.cuts, optimizer, objective, parts, settings)


def _make_fit(experiment: Experiment) -> FitHeads | None:
    """A function that fits the recipe's heads on other features of the training images; None if they are not linear.
    Heads that take epochs to train, select features or lead to another domain stay as they were fitted.
    """
    recipe, dataset = experiment.recipe, experiment.dataset
    make, training = partial(make_recipe_head, recipe), dataset.take(dataset.rows("train"))
    if recipe.domain_adaptation is not None or not isinstance(make(), LinearClassifierHead):
        return None
    return lambda positions, X: list_layers(fit_heads(make, training, {"train": SplitFeatures(positions, X)}))


def make_network(experiment: Experiment, heads: Mapping[str, Head]) -> Network:
    """The extractor's backbone with fitted heads by task, to be trained as one."""
    extractor, tasks = experiment.extractor, experiment.dataset.tasks
    learned = require_finetuning(experiment.recipe).weighting == "uncertainty" and len(tasks) > 1
    weighting = UncertaintyWeighting(len(tasks), name="uncertainty") if learned else None
    name = experiment.recipe.name
    return Network(extractor.backbone, extractor.pooled, list_layers(heads), name, extractor.source_head, weighting)


def _make_loss(options: FineTuningConfig, tasks: Sequence[Task], network: Network) -> Callable[..., tf.Tensor]:
    """The loss of all tasks: the recipe's of classes, sigmoids of labels, the squared error of numbers."""
    make: dict[str, Callable[[Task], Any]] = {
        "multiclass": lambda task: make_loss(options.loss),
        "multilabel": lambda task: SigmoidLoss(SigmoidConfig(smoothing=options.loss.smoothing)),
        "regression": lambda task: SquaredErrorLoss(*(_find_units(network, task) or ())),
    }
    losses = [make[task.kind](task) for task in tasks]
    if len(losses) == 1:
        return losses[0]
    widths = [len(task.class_names) for task in tasks]
    shares = [(options.task_weights or {}).get(task.name, 1.0) for task in tasks]
    uncertainty: Any = network.weighting
    return MultiTaskLoss(losses, widths, shares, uncertainty)


def _find_units(network: Network, task: Task) -> tuple[float, float] | None:
    """Scale and offset of a number, which its head's last layer undoes; None of other tasks."""
    if task.has_classes:
        return None
    last: Any = network.heads[task.name][-1]
    return float(last.scale), float(last.offset)


def _make_transfer(
    recipe: Recipe, tasks: Sequence[Task], network: Network, schedule: Schedule, part: DataSplit, optimizer: Any
) -> DomainAdaptationLoss | None:
    """The penalty on the difference between domains, ramped up over the schedule; None within one domain."""
    adaptation = recipe.domain_adaptation
    if adaptation is None or part.of_target is None or adaptation.method == "none":
        return None
    method, seed = ADAPTATIONS[adaptation.method], recipe.training.seed
    width, classes = network.features.shape[-1], len(tasks[0].class_names)
    seeds = iter(range(seed * 100 + 50, seed * 100 + 100))
    discrepancy = DomainDiscrepancy(method, width, classes, seeds=seeds, seed=seed)
    drawn = 2 * max(int(part.of_target.sum()), int((~part.of_target).sum()))
    batches = max(1, drawn // require_finetuning(recipe).batch_size)
    total = batches * sum(stage.epochs or stage.max_epochs for stage in schedule.stages)
    weight = WEIGHTS[method] if adaptation.weight is None else adaptation.weight
    # `iterations` counts updates, fewer than batches where gradients are accumulated
    return DomainAdaptationLoss(discrepancy, weight, lambda: tf.cast(optimizer._iterations, tf.float32) / total)


def make_callbacks(recipe: Recipe, run: Path) -> list[keras.callbacks.Callback]:
    """The Keras callbacks of a run, by its folder: a log for TensorBoard, if the recipe has one."""
    return [TensorBoardLogger(run / "tensorboard")] if require_finetuning(recipe).tensorboard else []


def make_image_source(experiment: Experiment, *, augmented: bool) -> BatchSource:
    """The experiment's images, decoded again in every epoch."""
    recipe, dataset = experiment.recipe, experiment.dataset
    policy = make_recipe_policy(recipe) if augmented else None
    size, device = image_size(recipe), recipe.augmentation.device
    if policy is not None and device == "auto":
        device = choose_augmentation_device(policy, size, require_finetuning(recipe).batch_size)
    paths, digests, training = dataset.paths.tolist(), dataset.digests.tolist(), recipe.training
    shown = (size, dataset.rendering, policy, training.seed, device == "graph")
    source = ImageSource(paths, digests, *shown, training.data_service)
    if not augmented or experiment.extractor.source_head is None:
        return source
    teacher = experiment.extractor.copy_teacher()
    return DistillationSource(source, tf.function(lambda images: teacher(images, training=False), jit_compile=False))


def make_activation_source(
    experiment: Experiment, views: Sequence[CachedActivations], recorded: Sequence[CachedActivations] | None = None
) -> ActivationSource:
    """Activations of the experiment's images at a cut in several views, one of which each epoch shows.

    `recorded` are, per view, the log-probabilities of the pretrained classifier, if it is distilled.
    """
    policy, seed = make_recipe_policy(experiment.recipe), experiment.recipe.training.seed
    keys, count = digest_to_seed(experiment.dataset.digests.tolist()), len(views)

    def choose(positions: np.ndarray, epoch: int) -> np.ndarray:
        return choose_views(policy, count, keys[positions], epoch, seed)

    return ActivationSource(views, choose, recorded)


def make_split(
    experiment: Experiment,
    sources: Mapping[str, BatchSource],
    *,
    training: bool,
    class_factors: Mapping[int, float] | None = None,
) -> DataSplit:
    """Targets and weights of the experiment's images, all of one split, and what is read of them at each cut.

    Where images of a target domain are among those to train on, half of a batch has labels: the others weigh nothing.
    Validation images are weighed by `class_factors`, from `find_class_factors`.
    """
    recipe, dataset, weights = experiment.recipe, experiment.dataset, experiment.dataset.weights
    classes = dataset.targets[dataset.tasks[0].name]
    if class_factors:
        weights = weights * np.array([class_factors.get(one, 1.0) for one in classes.tolist()], np.float32)
    of_target = is_target(recipe, dataset) if training else np.zeros(len(dataset), bool)
    if training:
        known = ~of_target
        balance = require_finetuning(recipe).class_weight
        weighed = compute_sample_weights(classes[known], weights[known], "balanced" if balance == "balanced" else None)
        weighed = (weighed / weighed.mean()).astype(np.float32)
        weights = np.zeros(len(dataset), np.float32)
        weights[known] = 2 * np.maximum(weighed, _LEAST) if of_target.any() else weighed
    dense = np.concatenate([task.to_dense_targets(dataset.targets[task.name]) for task in dataset.tasks], axis=1)
    dense[of_target] = 0.0
    return DataSplit(dense, weights.astype(np.float32), sources.__getitem__, of_target if of_target.any() else None)


def find_class_factors(experiment: Experiment) -> dict[int, float]:
    """Factor by class with which validation images count, so that what is monitored is what is minimised.

    Balanced classes have equal weight among the training images; {} where neither weights nor draws balance them.
    """
    options, dataset = require_finetuning(experiment.recipe), experiment.dataset
    if options.class_weight != "balanced" and not options.balanced_sampling:
        return {}
    rows = dataset.rows("train")
    classes = dataset.targets[dataset.tasks[0].name][rows]
    factors = compute_class_factors(classes, dataset.weights[rows], "balanced")
    return dict(zip(np.unique(classes).tolist(), factors.tolist(), strict=True))


def make_optimizer(options: FineTuningConfig) -> ScaledOptimizer:
    """The optimizer of a recipe, not yet built."""
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
