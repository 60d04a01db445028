"""The images, cached features and model of a finished run, and what is needed to make it again."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe, recipe_to_yaml
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, Rendering, to_printable
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError, TlkerasError
from tlkeras.features.handcrafted.layer import copy_codebooks
from tlkeras.heads.folds import cross_val_predict
from tlkeras.heads.heads import order_outputs
from tlkeras.heads.linear import LinearHead
from tlkeras.inference.predict import load_model
from tlkeras.results import Result
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, has_predictions, load_predictions, read_tasks
from tlkeras.training import builders

_FOLDS = 5


@dataclass(frozen=True)
class FeatureSplit:
    """Images of one split with their frozen features, n of them."""

    keys: np.ndarray  # names, str [n]
    X: np.ndarray  # float [n, d]
    targets: dict[str, np.ndarray]  # per task name, as the task has them
    weights: np.ndarray  # float [n]
    groups: np.ndarray  # str [n]

    def take(self, rows: np.ndarray) -> FeatureSplit:
        """Some of the images."""
        arrays = {name: values[rows] for name, values in vars(self).items() if name != "targets"}
        return FeatureSplit(targets={name: values[rows] for name, values in self.targets.items()}, **arrays)


@dataclass(frozen=True)
class Reproducibility(Result):
    """The recipe, command, data, environment and cost of a run."""

    created: str  # UTC
    finished: str
    resumed: int
    command: str
    recipe: str
    source: str
    examples: dict[str, int]
    rejected: int
    fingerprint: str  # SHA-256 of contents, labels and splits
    parameters: int | None
    phases: dict[str, float]  # seconds
    memory: dict[str, int]  # its peak by phase, MiB
    features: dict[str, Any]
    head: dict[str, Any]
    finetuning: dict[str, Any] | None
    history: list[dict[str, float | int | str]]  # a row per epoch, or per strength of regularization
    environment: dict[str, Any]
    data: dict[str, str]
    licences: dict[str, str]


def read_csv(run: Run, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of a run, by column; RunError if it has none."""
    text = run.read_bytes(name).decode("utf-8", "replace")
    return list(csv.DictReader(io.StringIO(text, newline="")))


class RunData:
    """Lazily loaded data of a finished run; features come from the cache."""

    def __init__(self, run: Run):
        self.run = run
        self.recipe: Recipe = load_recipe(run.require("recipe.yaml"))
        self.images_error = ""  # why the images cannot be read any more

    @cached_property
    def model(self) -> keras.Model:
        """The model from uint8 images to probabilities, one output per task."""
        return order_outputs(load_model(self.run), [task.name for task in read_tasks(self.run)])

    @cached_property
    def dataset(self) -> Dataset | None:
        """The run's images with their labels; None where the source is missing, then `images_error` says why."""
        try:
            recipe = builders.locate_source(self.recipe, self.run.manifest.get("cwd", ""))
            dataset = replace(builders.read_dataset(recipe), rendering=Rendering.of(self.run.manifest["image"]))
            return validate_images(dataset)
        except TlkerasError as error:
            self.images_error = str(error)
            return None

    @cached_property
    def paths(self) -> dict[str, str]:
        """Files of the images that still exist, by name."""
        if self.dataset is None:
            return {}
        return dict(zip(map(to_printable, self.dataset.keys.tolist()), self.dataset.paths.tolist(), strict=True))

    def decode(self, key: str) -> np.ndarray | None:
        """An image as the model sees it, uint8 [height, width, 3]; None where it is missing."""
        config = self.run.manifest["image"]
        try:
            return decode_file(self.paths[key], config["size"], Rendering.of(config))
        except (KeyError, ImageError):
            return None

    @cached_property
    def features(self) -> dict[str, FeatureSplit]:
        """Frozen features of the splits "train" and "test"; empty where the images are missing."""
        if self.dataset is None:
            return {}
        dataset = self.dataset
        experiment = builders.Experiment(self.recipe, dataset, builders.build_feature_extractor(self.recipe))
        if builders.list_handcrafted_kinds(self.recipe):
            copy_codebooks(load_model(self.run), experiment.extractor.pooled)
        with builders.extract_features(experiment) as found:
            rows, X = found.kept, np.asarray(found.outputs[0], np.float32)
        keys = np.array([to_printable(key) for key in dataset.keys[rows]])
        targets = {task.name: dataset.targets[task.name][rows] for task in dataset.tasks}
        every = FeatureSplit(keys, X, targets, dataset.weights[rows], dataset.groups[rows])
        splits = {row["image"]: row["split"] for row in read_csv(self.run, "splits.csv")}
        split = np.array([splits.get(key, "") for key in keys.tolist()])
        return {name: every.take(split == name) for name in ("train", "test")}

    def make_linear_head(self, task: str) -> LinearHead:
        """An unfitted linear head with the strength that the run chose for a task, where its head is linear."""
        manifest = self.run.manifest
        C = manifest.get("heads", {}).get(task, manifest.get("head", {})).get("C")
        return builders.make_linear_head(self.recipe, C)

    def find_unseen(self, task: Task) -> tuple[Predictions | None, str]:
        """Predictions on images that the model was neither fitted nor evaluated on, and the split of these images.

        Those of the "validation" split if there is one; else, of a linear head on frozen features, out-of-fold
        predictions of the "training" images.
        """
        if has_predictions(self.run, "validation"):
            of_task = (one for one in load_predictions(self.run, "validation") if one.task.name == task.name)
            return next(of_task), "validation"
        manifest = self.run.manifest
        if manifest.get("finetuning") or manifest.get("head", {}).get("kind") != "linear":
            return None, ""
        predictions = self.predict_out_of_fold(task)
        return predictions, "training" if predictions is not None else ""

    def predict_out_of_fold(self, task: Task) -> Predictions | None:
        """Predictions of training images by linear heads that were not fitted on them; None where there are few."""
        train = self.features.get("train")
        if train is None:
            return None
        train = train.take(task.is_labelled(train.targets[task.name]))
        if len(train.keys) < 2 * _FOLDS:
            return None
        groups = train.groups if (train.groups != "").any() else None
        y, make_head = train.targets[task.name], partial(self.make_linear_head, task.name)
        try:
            predicted = cross_val_predict(make_head, train.X, y, train.weights, folds=_FOLDS, groups=groups, seed=0)
        except ValueError:  # a class has too few images
            return None
        prior = next(one.prior for one in load_predictions(self.run) if one.task.name == task.name)
        return Predictions(task, train.keys, y, predicted, train.weights, prior, {})


def read_reproducibility(data: RunData) -> Reproducibility:
    """What is needed to make a run again, from its manifest and files."""
    run, recipe, manifest = data.run, data.recipe, data.run.manifest
    facts = {name: manifest.get(name, {}) for name in ("examples", "phases", "memory", "features", "head", "data")}
    return Reproducibility(
        created=manifest.get("created", ""),
        finished=manifest.get("finished", ""),
        resumed=len(manifest.get("resumed", [])),
        command=f"tlkeras train {run.path / 'recipe.yaml'}",
        recipe=recipe_to_yaml(recipe),
        source=builders.describe_origin(recipe)["source"],
        rejected=manifest.get("rejected", 0),
        fingerprint=manifest.get("fingerprint", ""),
        parameters=manifest.get("parameters"),
        finetuning=manifest.get("finetuning"),
        history=_read_history(run),
        environment=run.read_json("environment.json"),
        licences=builders.list_licences(recipe, facts["data"]),
        **facts,
    )


def _read_history(run: Run) -> list[dict[str, float | int | str]]:
    try:
        return run.history.to_rows()
    except RunError:
        return []
