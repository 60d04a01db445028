"""The objective of a trial: its figures on the validation split, for our search and for any of KerasTuner's tuners."""

import gc
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import keras_tuner
import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.trials import apply_values
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError
from tlkeras.finetuning.metrics import METRICS, measure, measure_number
from tlkeras.heads.heads import Head
from tlkeras.training import builders
from tlkeras.training.builders.heads import SplitFeatures, fit_heads
from tlkeras.training.builders.variants import dataset_key, features_key, fine_tunes
from tlkeras.training.finetune import open_trainer
from tlkeras.training.frozen import read_split
from tlkeras.tuning.model_pool import CompiledModelCache
from tlkeras.tuning.space import check_space, declare, read_values
from tlkeras.tuning.trials import name_figures

_KEPT = 4  # sets of features in memory at once
_SMALLEST = 1e-7  # probability, as Keras clips it


class RecipeHyperModel(keras_tuner.HyperModel):
    """Trials of a recipe for any tuner of KerasTuner, which share frozen features that are computed once.

    A trial is measured on the validation split and gives `val_loss`, `val_accuracy`, `val_roc_auc` and `seconds`; the
    test split is neither read nor measured. `fit` trains the whole trial: heads that Keras does not train, and stages
    of fine-tuning, are more than the one model that `build` could return. So the tuner keeps no models; train the best
    recipe instead. Errors of the space as `check_space`. docs/tuning.md has an example.
    """

    def __init__(self, recipe: Recipe | str):
        super().__init__()
        self.recipe = load_recipe(recipe)
        self._tuning = check_space(self.recipe)
        self._runner = TrialRunner()

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A model without weights, because KerasTuner needs one; the space is declared in `hp`."""
        declare(self._tuning, hp)
        return keras.Sequential([keras.Input((1,)), keras.layers.Identity()])

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **options: Any) -> dict[str, float]:
        """Loss, accuracy and ROC AUC on the validation split, and seconds; TlkerasError if the trial cannot be run."""
        return name_figures(self._runner.score(self.make_recipe(hp)))

    def make_recipe(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """The recipe of a trial, ready to train; RecipeError if the values do not go together."""
        return apply_values(self.recipe, read_values(self._tuning, hp.values))


@dataclass(frozen=True)
class SharedFeatures:
    """Frozen features that all trials with the same images and the same frozen network share."""

    dataset: Dataset  # the images that have features, none of them for testing
    parts: dict[str, SplitFeatures]  # features by split
    computed: int  # images that had to be run through the network
    seconds: float  # time that it took to have them


class TrialRunner:
    """Runs trials in this process, one after the other; frozen features are computed by the first and shared."""

    def __init__(self) -> None:
        self.pool = CompiledModelCache()
        self._datasets: dict[str, Dataset] = {}
        self._frozen: OrderedDict[str, SharedFeatures] = OrderedDict()

    def prepare(self, recipe: Recipe, boundaries: Iterable[Recipe]) -> int:
        """Compute the frozen work of all trials, which the boundary recipes need among them; the images computed."""
        computed = self.open(recipe).computed
        groups: dict[str, tuple[Recipe, dict[str, None]]] = {}
        for boundary in boundaries:
            if not fine_tunes(boundary):
                computed += self.open(boundary).computed
                continue
            taps = builders.activations_needed(self._plan(boundary))
            _, known = groups.setdefault(features_key(boundary), (boundary, {}))
            known |= dict.fromkeys(taps)
        for boundary, known in groups.values():
            if len(known) > 1:
                experiment = self._plan(boundary)
                part = experiment.take(experiment.dataset.split != "test")
                with builders.extract_features(part, list(known)) as features:
                    computed += features.computed
            _clear_session()
        return computed

    def score(self, recipe: Recipe) -> dict[str, float]:
        """Loss, accuracy and ROC AUC of a trained recipe on its validation split, and its `seconds`."""
        start = time.perf_counter()
        frozen = self.open(recipe)
        make = builders.adapt_heads(recipe, lambda: self.pool.attach(builders.make_recipe_head(recipe)))
        heads = fit_heads(make, frozen.dataset, frozen.parts)
        figures = self._fine_tune(recipe, frozen, heads) if fine_tunes(recipe) else _measure(frozen, heads)
        return {**figures, "seconds": round(time.perf_counter() - start, 3)}

    def open(self, recipe: Recipe) -> SharedFeatures:
        """Frozen features of both splits, from memory, from the cache, or computed."""
        key = features_key(recipe)
        if key not in self._frozen:
            self._frozen[key] = self._read(recipe)
        self._frozen.move_to_end(key)
        while len(self._frozen) > _KEPT:
            self._frozen.popitem(last=False)
        return self._frozen[key]

    def _plan(self, recipe: Recipe) -> builders.Experiment:
        """The experiment of a trial; image files are read once for all trials with the same data."""
        key = dataset_key(recipe)
        if key not in self._datasets:
            self._datasets[key] = validate_images(builders.read_dataset(recipe))
        experiment = builders.plan(recipe, self._datasets[key], builders.build_feature_extractor(recipe))
        if not len(experiment.dataset.rows("validation")):
            raise DataError("No image is left to validate on, which a search needs.", None, "Raise data.validation.")
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

    def _fine_tune(self, recipe: Recipe, frozen: SharedFeatures, heads: Mapping[str, Head]) -> dict[str, float]:
        """Figures of the fine-tuned network, at the epoch whose weights a run would keep."""
        try:
            experiment = replace(self._plan(recipe), dataset=frozen.dataset)
            network = builders.make_network(experiment, heads)
            with open_trainer(experiment, network) as trainer:
                history = trainer.run()
                best = trainer.best_epoch
            if best is not None and best < 1:  # nothing was better than the start: the heads on frozen features
                return _measure(frozen, heads)
            return _rename(history[-1 if best is None else best - 1])
        finally:
            _clear_session()


def _measure(frozen: SharedFeatures, heads: Mapping[str, Head]) -> dict[str, float]:
    """Figures of the heads on the validation split, each the mean over the tasks."""
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


def _clear_session() -> None:
    """Free the memory of a trained network: Keras keeps names and graphs of all that were ever made."""
    keras.backend.clear_session()
    gc.collect()


def _rename(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("val_"): float(figures[name]) for name in METRICS if name in figures}
