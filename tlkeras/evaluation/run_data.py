"""What a finished run can be asked again: its images, their cached features, its model."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property, partial

import keras
import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, to_printable
from tlkeras.data.inspection import ValidatedDataset, validate_images
from tlkeras.data.tasks import Task
from tlkeras.errors import TlkerasError
from tlkeras.features.handcrafted.layer import copy_codebooks
from tlkeras.heads.cross_validation import cross_val_predict
from tlkeras.heads.heads import order_outputs
from tlkeras.heads.linear import LinearHead
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, has_predictions, load_predictions, read_tasks
from tlkeras.training import builders

_FOLDS = 5


@dataclass(frozen=True)
class FeatureSplit:
    """Images of one split with their frozen features.

    Attributes:
        keys: Names, str [n].
        paths: Files, str [n].
        X: float [n, d].
        targets: Per task name, as the task has them.
        weights: float [n].
        groups: str [n].
    """

    keys: np.ndarray
    paths: np.ndarray
    X: np.ndarray
    targets: dict[str, np.ndarray]
    weights: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> FeatureSplit:
        """Return some of the images."""
        targets = {name: values[rows] for name, values in self.targets.items()}
        return FeatureSplit(
            self.keys[rows], self.paths[rows], self.X[rows], targets, self.weights[rows], self.groups[rows]
        )


class RunData:
    """A run opened again. Everything is read when it is first asked for; features come from the cache.

    Attributes:
        gone: Why images cannot be looked at again; "" where they can.
    """

    def __init__(self, run: Run):
        self.run = run
        self.recipe: Recipe = load_recipe(str(run.path / "recipe.yaml"))
        self.gone = ""

    @cached_property
    def tasks(self) -> list[Task]:
        """What the run predicts."""
        return read_tasks(self.run)

    @cached_property
    def model(self) -> keras.Model:
        """From uint8 images to probabilities, one output per task, in their order."""
        return order_outputs(load_model(self.run), [task.name for task in self.tasks])

    @cached_property
    def inspection(self) -> ValidatedDataset | None:
        """The run's images with their labels; None where the source is gone, and `gone` says why."""
        try:
            recipe = builders.locate_source(self.recipe, self.run.manifest.get("cwd", ""))
            return validate_images(builders.read_dataset(recipe))
        except TlkerasError as error:
            self.gone = str(error)
            return None

    @cached_property
    def paths(self) -> dict[str, str]:
        """The file of each image by its name, of those that are still there."""
        if self.inspection is None:
            return {}
        dataset = self.inspection.dataset
        return {
            to_printable(key): path for key, path in zip(dataset.keys.tolist(), dataset.paths.tolist(), strict=True)
        }

    @cached_property
    def splits(self) -> dict[str, str]:
        """On which split each image was, by its name."""
        text = self.run.read_bytes("splits.csv").decode("utf-8", "replace")
        return {row["image"]: row["split"] for row in csv.DictReader(io.StringIO(text, newline=""))}

    def decode(self, key: str) -> np.ndarray | None:
        """Return an image as the model sees it, uint8 [size, size, 3]; None where it is gone."""
        facts = self.run.manifest["image"]
        try:
            return decode_file(self.paths[key], facts["size"], facts["resize"])
        except (KeyError, ImageError):
            return None

    @cached_property
    def features(self) -> dict[str, FeatureSplit]:
        """The frozen features of "train" and "test"; none where the images are gone."""
        if self.inspection is None:
            return {}
        dataset = self.inspection.dataset
        extractor = builders.build_feature_extractor(self.recipe)
        if self.recipe.features.handcrafted:
            copy_codebooks(load_model(self.run), extractor.pooled)
        with builders.extract_features(self.recipe, extractor, self.inspection) as found:
            rows, X = found.kept, np.asarray(found.outputs[0], np.float32)
        keys = np.array([to_printable(key) for key in dataset.keys[rows]])
        of_row = np.array([self.splits.get(key, "") for key in keys.tolist()])
        return {
            split: FeatureSplit(
                keys[of_row == split],
                dataset.paths[rows[of_row == split]],
                X[of_row == split],
                {task.name: dataset.targets[task.name][rows[of_row == split]] for task in dataset.tasks},
                dataset.weights[rows[of_row == split]],
                dataset.groups[rows[of_row == split]],
            )
            for split in ("train", "test")
        }

    def make_linear_head(self, task: str = "") -> LinearHead:
        """Return an unfitted linear head of the strength that the run chose for a task, where its head is linear."""
        facts = self.run.manifest
        strength = facts.get("heads", {}).get(task, facts.get("head", {})).get("C")
        options = self.recipe.head.model_dump()
        weight = options.get("class_weight")
        return LinearHead(C=strength or 0.01, class_weight=None if weight == "none" else weight)

    def find_unseen(self, task: Task) -> tuple[Predictions | None, str]:
        """Return answers on images that the model was neither fitted nor measured on, and of which split they are.

        Those on the "validation" split if there is one; else, of a linear head on frozen features, those on "training"
        images by heads that were fitted without them.
        """
        if has_predictions(self.run, "validation"):
            of_task = (one for one in load_predictions(self.run, "validation") if one.task.name == task.name)
            return next(of_task), "validation"
        facts = self.run.manifest
        if facts.get("finetuning") or facts.get("head", {}).get("kind") != "linear":
            return None, ""
        found = self.predict_training(task)
        return found, "training" if found is not None else ""

    def predict_training(self, task: Task) -> Predictions | None:
        """Return what linear heads say of training images that they were not fitted on; None where there are few.

        These stand in for answers on a validation split in a run whose own head is linear on frozen features.
        """
        train = self.features.get("train")
        if train is None:
            return None
        train = train.take(task.is_labelled(train.targets[task.name]))
        if len(train.keys) < 2 * _FOLDS:
            return None
        grouped = train.groups if (train.groups != "").any() else None
        y = train.targets[task.name]
        try:
            predicted = cross_val_predict(
                partial(self.make_linear_head, task.name),
                train.X,
                y,
                train.weights,
                folds=_FOLDS,
                groups=grouped,
                seed=0,
            )
        except ValueError:  # a class has too few images
            return None
        prior = next(one.prior for one in load_predictions(self.run) if one.task.name == task.name)
        return Predictions(task, train.keys, y, predicted, train.weights, prior, {})
