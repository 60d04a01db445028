"""The second half of a run that fine-tunes: from a fitted head to a network trained stage by stage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.data.augmentation.views import number_views
from tlkeras.data.inspection import ValidatedDataset
from tlkeras.features.extraction import ImageFiles, extract_activations
from tlkeras.features.extractor import SOURCE_LOGITS, FeatureExtractor
from tlkeras.finetuning.caching_plan import CachingPlan
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import BatchSource
from tlkeras.finetuning.network import IMAGES, Network
from tlkeras.finetuning.schedule import Schedule
from tlkeras.finetuning.trainer import DataSplit, HistoryRow, Trainer
from tlkeras.heads.heads import Head, list_layers, order_outputs
from tlkeras.plotting.charts import plot_history
from tlkeras.runs.directory import Run
from tlkeras.training import builders

CHECKPOINTS = "checkpoints"
_LEAST = 1e-12


def fine_tune(
    recipe: Recipe,
    run: Run,
    inspection: ValidatedDataset,
    extractor: FeatureExtractor,
    heads: Mapping[str, Head],
    rows: Mapping[str, np.ndarray],
    distribution: Strategy = ONE_DEVICE,
) -> tuple[keras.Model, dict[str, dict[str, np.ndarray]], dict[str, list[Any]], dict[str, Any]]:
    """Train head and backbone by the recipe's stages, from the run's newest checkpoint if there is one.

    Args:
        heads: By task, fitted on frozen features: what the network starts from (LP-FT, Kumar et al., 2022).
        rows: Of the images of each split, int64 (n,).
        distribution: The devices to train on.

    Returns:
        The trained model; its probabilities of the images of each split but the training, by task, float32
        (n, k); the history as columns; facts for the manifest.
    """
    network = make_network(recipe, inspection, extractor, heads)
    with open_trainer(recipe, inspection, extractor, network, rows, run.phase, distribution) as trainer:
        with run.phase("fine-tune"):
            observe = builders.make_tensorboard_logger(recipe, run.path / "tensorboard")
            history = trainer.run(Checkpoints(run.path / CHECKPOINTS), observe)
        distribution.fetch(trainer.network, network)
    schedule, plan, choices = builders.plan_recipe(
        recipe, extractor, inspection.dataset, _name_splits(inspection, rows)
    )
    model = builders.add_test_time_views(recipe, extractor, network.model)
    with run.phase("measure"):
        asked = builders.evaluated_splits(recipe, rows)
        probabilities = {split: predict_split(recipe, model, inspection, rows[split]) for split in asked}
    with run.replacing("history.png") as aside:
        plot_history([{**row, "best": row["epoch"] == trainer.best_epoch} for row in history], aside)
    facts = {
        "stages": [stage.__dict__ for stage in plan.stages],
        "views": plan.views,
        "trained_parameters": _count_trained(network, schedule),
        "baseline": trainer.baseline,
        "best_epoch": trainer.best_epoch,
        "precision": trainer.settings.precision,
        "workers": distribution.workers,
        "devices": distribution.devices,
        "weights": _digest(network.model),
        "reasons": [list(choice) for choice in choices],
    }
    return model, probabilities, _as_columns(history), facts


def _digest(model: keras.Model) -> str:
    """Return the SHA-256 of all weights."""
    return hashlib.sha256(b"".join(np.array(weight).tobytes() for weight in model.weights)).hexdigest()


def _count_trained(network: Network, schedule: Schedule) -> int:
    """Return how many weights some stage trains; the network is left as a plain one."""
    count = sum(math.prod(variable.shape) for variable in network.list_trainable(schedule.stages))
    network.release()
    return count


def make_network(
    recipe: Recipe, inspection: ValidatedDataset, extractor: FeatureExtractor, heads: Mapping[str, Head]
) -> Network:
    """Return the prefix's backbone with fitted heads, to be trained as one."""
    weighting = builders.make_weighting(recipe, inspection.dataset.tasks)
    return Network(
        extractor.backbone, extractor.pooled, list_layers(heads), recipe.name, extractor.source_head, weighting
    )


@contextmanager
def open_trainer(
    recipe: Recipe,
    inspection: ValidatedDataset,
    extractor: FeatureExtractor,
    network: Network,
    rows: Mapping[str, np.ndarray],
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    distribution: Strategy = ONE_DEVICE,
) -> Iterator[Trainer]:
    """Yield the fine-tuning, ready to run; activations that the cache lacks are computed.

    Args:
        network: The prefix's backbone with heads that were fitted on frozen features.
        rows: Of the images of each split, int64 (n,).
        phase: Measures the extraction.
        distribution: The devices to train on.
    """
    schedule, plan, _ = builders.plan_recipe(recipe, extractor, inspection.dataset, _name_splits(inspection, rows))
    with ExitStack() as stack:
        with phase("extract activations"):
            suppliers = _make_suppliers(recipe, extractor, plan, inspection, rows, stack)
        parts = [make_split(recipe, inspection, _take(rows, split), suppliers[split], split) for split in suppliers]
        splits = (parts[0], parts[1] if len(parts) > 1 else None)
        placed = distribution.place(network)
        yield builders.make_trainer(recipe, inspection.dataset, placed, schedule, plan, splits, distribution)


def _take(rows: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    """Return the images that are read of a split: for training, those of a target domain too."""
    unlabelled = rows.get(builders.TARGET, rows[split][:0]) if split == "train" else rows[split][:0]
    return np.concatenate([rows[split], unlabelled])


def _name_splits(inspection: ValidatedDataset, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    splits = np.full(len(inspection.dataset), "", dtype="U10")
    for name, of_split in rows.items():
        splits[of_split] = name
    return splits


def _make_suppliers(
    recipe: Recipe,
    extractor: FeatureExtractor,
    plan: CachingPlan,
    inspection: ValidatedDataset,
    rows: Mapping[str, np.ndarray],
    stack: ExitStack,
) -> dict[str, dict[str, BatchSource]]:
    """Return, per split and cut, what the loop reads; activations that the cache lacks are computed."""
    suppliers: dict[str, dict[str, BatchSource]] = {}
    for split in ("train", "validation"):
        if not len(rows[split]):
            continue
        augmented, of_split = split == "train", _take(rows, split)
        images = builders.make_image_source(recipe, extractor, inspection, of_split, augmented)
        found: dict[str, BatchSource] = {IMAGES: images}
        taps = builders.list_kept(extractor, plan) if augmented else plan.kept
        if taps:
            views = builders.PLAIN_VIEWS
            if augmented:
                views = number_views(builders.make_recipe_policy(recipe), plan.views or 1, recipe.training.seed)
            features = stack.enter_context(
                builders.extract_features(recipe, extractor, inspection, taps, views, of_split)
            )
            of_tap = dict(zip(taps, zip(*features.views, strict=True), strict=True))
            recorded = of_tap.pop(SOURCE_LOGITS, None)
            for cut, of_views in of_tap.items():
                found[cut] = builders.make_activation_source(recipe, inspection, of_split, of_views, recorded)
        suppliers[split] = found
    return suppliers


def make_split(
    recipe: Recipe, inspection: ValidatedDataset, rows: np.ndarray, supplies: Mapping[str, BatchSource], split: str
) -> DataSplit:
    """Return one split's targets and weights, and what is read at each cut."""
    dataset = inspection.dataset
    targets, weights = {name: column[rows] for name, column in dataset.targets.items()}, dataset.weights[rows]
    of_target = builders.is_target(recipe, dataset)[rows] if split == "train" else np.zeros(len(rows), bool)
    if split == "train":
        known, first = ~of_target, targets[dataset.tasks[0].name]
        weighed = builders.balance_class_weights(recipe, first[known], weights[known])
        weights = np.zeros(len(rows), np.float32)
        # of a batch of both domains, half has labels; whose weight is 0 is of the target
        weights[known] = 2 * np.maximum(weighed, _LEAST) if of_target.any() else weighed
    dense = np.concatenate([task.to_dense_targets(targets[task.name]) for task in dataset.tasks], axis=1)
    dense[of_target] = 0.0
    return DataSplit(
        dense,
        weights.astype(np.float32),
        supplies.__getitem__,
        of_target if of_target.any() else None,
        rows,
    )


def predict_split(
    recipe: Recipe, model: keras.Model, inspection: ValidatedDataset, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the probabilities of images by task, from their files, as whoever serves the model will get them."""
    paths = [str(inspection.dataset.paths[row]) for row in rows.tolist()]
    digests = [inspection.digests[row] for row in rows.tolist()]
    images = ImageFiles(paths, digests, recipe.data.resize)
    names = [task.name for task in inspection.dataset.tasks]
    facts = [{"model": "trained", "task": name} for name in names]
    with extract_activations(
        order_outputs(model, names), images, facts, engine=recipe.features.engine, dtype="float32"
    ) as predictions:
        return {name: np.asarray(output) for name, output in zip(names, predictions.outputs, strict=True)}


def _as_columns(history: Sequence[HistoryRow]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in history] for name in history[0]}
