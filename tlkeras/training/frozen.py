"""The first half of every run: heads fitted on frozen features, and what they are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tlkeras import progress
from tlkeras.features.extraction import Activations
from tlkeras.features.store import check_memory
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.heads import Head
from tlkeras.heads.late_fusion import fit_late_fusion
from tlkeras.heads.linear import LinearHead, RidgeRegressionHead
from tlkeras.training import builders
from tlkeras.training.builders.experiment import Experiment
from tlkeras.training.builders.heads import SplitFeatures, find_groups, fit_heads

TaskProbabilities = dict[str, np.ndarray]
"""By task, float32 [n, k]."""


@dataclass(frozen=True)
class FittedHeads:
    """Heads on frozen features, and their predictions."""

    heads: dict[str, Head]  # by task
    predictions: dict[str, TaskProbabilities]  # of the evaluated splits, by split
    probe: TaskProbabilities | None  # of linear heads for the test images; None where the run's own heads are these
    fused: dict[str, dict[str, np.ndarray]] | None  # of heads on each part, by task and rule; None without parts


def extract(experiment: Experiment) -> Activations:
    """The activations that the experiment needs of its images as they are, from the cache or computed.

    ResourceError if a head could not be fitted on the features in the memory that is free.
    """
    check_memory(len(experiment.dataset), experiment.extractor.pooled.output_shape[1:])
    builders.fit_recipe_codebooks(experiment)
    return builders.extract_features(experiment, builders.activations_needed(experiment))


def fit(experiment: Experiment, features: Activations) -> FittedHeads:
    """Heads of all tasks, fitted on the features of the experiment's images, with their predictions."""
    recipe, dataset = experiment.recipe, experiment.dataset
    parts = {name: read_split(experiment, features, name) for name in ("train", "validation", "test", builders.TARGET)}
    make = builders.adapt_heads(recipe, partial(builders.make_recipe_head, recipe))
    heads = fit_heads(make, dataset, parts)
    evaluated = builders.evaluated_splits(recipe, dataset)
    return FittedHeads(
        heads,
        {split: predict_features(heads, parts[split]) for split in evaluated},
        _fit_probe(experiment, parts, heads),
        _fuse_late(experiment, parts),
    )


def read_split(experiment: Experiment, features: Activations, split: str) -> SplitFeatures:
    """The features of one split, read from the cache; they are of exactly the experiment's images."""
    rows = experiment.dataset.rows(split)
    return SplitFeatures(rows, features.outputs[0][rows])


def predict_features(heads: Mapping[str, Head], part: SplitFeatures) -> TaskProbabilities:
    """Probabilities from features, by task, float32 [n, k]."""
    return {name: head.predict_proba(part.X).astype(np.float32) for name, head in heads.items()}


def _fit_probe(
    experiment: Experiment, parts: Mapping[str, SplitFeatures], heads: Mapping[str, Head]
) -> TaskProbabilities | None:
    """Test predictions of linear heads on the same features, where the run's final model is another. Where the recipe's
    own head is linear, across domains, it is that head on the source alone: what `method: none` is.
    """
    bare = [getattr(head, "unadapted", head) for head in heads.values()]
    linear = all(isinstance(head, (LinearHead, RidgeRegressionHead)) for head in bare)
    if linear and experiment.plan is None:
        return None
    plain = {name: parts[name].as_vectors() for name in ("train", "validation", "test")}
    if linear:
        return predict_features(heads, plain["test"])
    own = partial(builders.make_recipe_head, experiment.recipe)
    learned = {name: plain[name] for name in ("train", "validation")}
    probes = fit_heads(own if isinstance(own(), LinearHead) else LinearHead, experiment.dataset, learned)
    return predict_features(probes, plain["test"])


def _fuse_late(experiment: Experiment, parts: Mapping[str, SplitFeatures]) -> dict[str, dict[str, np.ndarray]] | None:
    """Test predictions of heads on each part of fused features, joined afterwards, by task and rule. Heads that take
    epochs to train are replaced by linear ones: each part is fitted six times.
    """
    recipe, dataset, widths = experiment.recipe, experiment.dataset, builders.fused_widths(experiment)
    if not widths:
        return None
    make: Callable[[], Any] = partial(builders.make_recipe_head, recipe)
    if isinstance(make(), KerasHead):
        make = LinearHead
    make, seed = builders.adapt_heads(recipe, make, on_parts=True), builders.training_seed(recipe)
    target = parts[builders.TARGET].X if builders.adapts_domains(recipe) else None
    fused: dict[str, dict[str, np.ndarray]] = {task.name: {} for task in dataset.tasks}
    classifying = [task for task in dataset.tasks if task.has_classes]
    with progress.progress_bar("Fusing late", len(classifying), "tasks") as advance, progress.hide():
        for task in classifying:
            rows, (X, y, weights) = parts["train"].take(dataset, task)
            groups = find_groups(dataset, rows)
            learned = {"X": X, "y": y, "sample_weight": weights, "groups": groups, "target": target}
            fused[task.name] = fit_late_fusion(make, widths, learned, parts["test"].X, seed)
            advance(1)
    return fused
