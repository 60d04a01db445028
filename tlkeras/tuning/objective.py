"""How good a trial is on the validation split; the test split is neither read nor measured here."""

from __future__ import annotations

import gc
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError
from tlkeras.finetuning.metrics import measure, measure_number
from tlkeras.heads.heads import Head
from tlkeras.training import builders
from tlkeras.training.builders.fit_heads import SplitFeatures, fit_heads
from tlkeras.training.finetune import open_trainer
from tlkeras.training.frozen import read_split
from tlkeras.tuning.model_pool import CompiledModelCache

_KEPT = 4  # sets of features in memory at once
_SMALLEST = 1e-7  # probability, as Keras clips it


@dataclass(frozen=True)
class SharedFeatures:
    """Frozen features that all trials with the same images and the same frozen network share.

    Attributes:
        dataset: The images that have features, none of them for testing.
        parts: Features by split.
        computed: Images that had to be run through the network.
        seconds: Time that it took to have them.
    """

    dataset: Dataset
    parts: dict[str, SplitFeatures]
    computed: int
    seconds: float


class TrialRunner:
    """Carries out trials in this process, one after the other; what is frozen is computed by the first and shared.

    Attributes:
        pool: The compiled heads.
    """

    def __init__(self) -> None:
        self.pool = CompiledModelCache()
        self._datasets: dict[str, Dataset] = {}
        self._frozen: OrderedDict[str, SharedFeatures] = OrderedDict()

    def prepare(self, recipe: Recipe, corners: Iterable[Recipe]) -> int:
        """Compute what is frozen in all trials, in one pass over the images; return how many were computed.

        Args:
            recipe: Any trial's.
            corners: Recipes that need, among them, all frozen work that any trial needs.
        """
        computed = self.open(recipe).computed
        groups: dict[str, tuple[Recipe, dict[str, None]]] = {}
        for corner in corners:
            if corner.finetuning is None:
                computed += self.open(corner).computed
                continue
            taps = builders.activations_needed(self._plan(corner))
            _, known = groups.setdefault(_frozen_key(corner), (corner, {}))
            known |= dict.fromkeys(taps)
        for corner, known in groups.values():
            if len(known) > 1:
                computed += self._extract_all(corner, list(known))
            _forget()
        return computed

    def score(self, recipe: Recipe) -> dict[str, float]:
        """Train by a recipe and return loss, accuracy and ROC AUC on its validation split, and `seconds`.

        Raises:
            TlkerasError: What is in the way.
        """
        start = time.perf_counter()
        frozen = self.open(recipe)
        make = builders.adapt_heads(recipe, lambda: self._make_head(recipe))
        heads = fit_heads(make, frozen.dataset, frozen.parts)
        figures = self._refine(recipe, frozen, heads) if recipe.finetuning else _measure(frozen, heads)
        return {**figures, "seconds": round(time.perf_counter() - start, 3)}

    def open(self, recipe: Recipe) -> SharedFeatures:
        """Return features of both splits, from memory, from the cache, or computed."""
        key = _frozen_key(recipe)
        if key not in self._frozen:
            self._frozen[key] = self._read(recipe)
        self._frozen.move_to_end(key)
        while len(self._frozen) > _KEPT:
            self._frozen.popitem(last=False)
        return self._frozen[key]

    def _plan(self, recipe: Recipe) -> builders.Experiment:
        """The experiment of a trial; image files are read once for all trials with the same data."""
        key = recipe.data.model_dump_json(exclude={"validation"})
        if key not in self._datasets:
            self._datasets[key] = validate_images(builders.read_dataset(recipe))
        experiment = builders.plan(recipe, self._datasets[key], builders.build_feature_extractor(recipe))
        if not len(experiment.dataset.rows("validation")):
            raise DataError("A search needs images to validate on.", "none", "Raise data.validation.")
        return experiment

    def _read(self, recipe: Recipe) -> SharedFeatures:
        start = time.perf_counter()
        experiment = self._plan(recipe)
        builders.fit_recipe_codebooks(experiment)
        part = experiment.take(experiment.dataset.split != "test")
        with builders.extract_features(part) as features:
            part = part.take(features.kept)
            names = ("train", "validation", builders.TARGET)
            parts = {name: read_split(part, features, name) for name in names}
            return SharedFeatures(part.dataset, parts, features.computed, round(time.perf_counter() - start, 3))

    def _extract_all(self, recipe: Recipe, taps: list[str]) -> int:
        experiment = self._plan(recipe)
        with builders.extract_features(experiment.take(experiment.dataset.split != "test"), taps) as features:
            return features.computed

    def _make_head(self, recipe: Recipe) -> Head:
        head = builders.make_recipe_head(recipe)
        self.pool.adopt(head)
        return head

    def _refine(self, recipe: Recipe, frozen: SharedFeatures, heads: Mapping[str, Head]) -> dict[str, float]:
        """Return what the fine-tuned network reaches, at the epoch whose weights a run would keep."""
        try:
            experiment = replace(self._plan(recipe), dataset=frozen.dataset)
            network = builders.make_network(experiment, heads)
            with open_trainer(experiment, network) as trainer:
                history = trainer.run(None, lambda row: None)
                best = trainer.best_epoch
            if best is not None and best < 1:  # nothing was better than the start: the heads on frozen features
                return _measure(frozen, heads)
            return _rename(history[-1 if best is None else best - 1])
        finally:
            _forget()


def _measure(frozen: SharedFeatures, heads: Mapping[str, Head]) -> dict[str, float]:
    """Return the mean over the tasks of what their heads reach on the validation split."""
    figures, dataset = [], frozen.dataset
    for task in dataset.tasks:
        _, (X, targets, weights) = frozen.parts["validation"].take(dataset, task)
        head: Any = heads[task.name]
        if not task.has_classes:
            units = head.scale_, head.offset_
            standard = (head.predict_proba(X) - head.offset_) / head.scale_
            figures.append(measure_number(targets[:, None], standard, weights, units))
            continue
        odds = np.clip(head.predict_proba(X).astype(np.float64), _SMALLEST, 1 - _SMALLEST)
        logits = np.log(odds) - np.log1p(-odds) if task.is_multilabel else np.log(odds)
        figures.append(measure(task.to_dense_targets(targets), logits, weights, several=task.is_multilabel))
    names = figures[0]  # those of the first task, which is of classes or labels
    return _rename({name: float(np.mean([of[name] for of in figures if name in of])) for name in names})


def _forget() -> None:
    """Let go of a network that was trained: Keras keeps names and graphs of all that were ever made."""
    keras.backend.clear_session()
    gc.collect()


def _rename(figures: dict[str, Any]) -> dict[str, float]:
    names: tuple[str, ...] = ("loss", "accuracy", "roc_auc")
    return {name: float(figures[f"val_{name}"]) for name in names if f"val_{name}" in figures}


def _frozen_key(recipe: Recipe) -> str:
    """Return what features depend on; heads that eat maps need them before pooling."""
    parts = [recipe.data, recipe.backbone, recipe.features, recipe.cache, recipe.domain_adaptation]
    return json.dumps(
        [recipe.head.kind in FEATURE_MAP_HEADS, *(part and part.model_dump(mode="json") for part in parts)]
    )
