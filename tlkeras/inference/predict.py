"""Predictions of a run's model for images."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras import progress
from tlkeras.backbones import kerashub, test_time_augmentation  # noqa: F401 (its layers register with Keras)
from tlkeras.backbones.graph import max_batch_size
from tlkeras.backbones.keras_files import check_archive
from tlkeras.data.decoding import decode
from tlkeras.data.headers import Header, ImageError, InvalidImage, Rendering, check_header, read_image, to_printable
from tlkeras.data.issues import describe_warnings
from tlkeras.data.pipeline import count_cores
from tlkeras.data.tasks import Task
from tlkeras.data.transcoding import to_decodable
from tlkeras.errors import BackboneError, DataError, RunError
from tlkeras.features import pooling  # noqa: F401
from tlkeras.features.handcrafted import layer  # noqa: F401
from tlkeras.heads import layers  # noqa: F401
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.images import NamedImage, is_single, list_images
from tlkeras.inference.results import (
    ClassProbability,
    ImagePrediction,
    PredictionResult,
    TaskPrediction,
    list_notes,
    list_unreadable,
)
from tlkeras.results import Table
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks

_Decoded = tuple[NamedImage, Header, np.ndarray]


def load_model(run: str | Path | Run = "latest", *, runs: str | Path = RUNS) -> keras.Model:
    """A run's model: uint8 images [n, h, w, 3] to probabilities [n, k]; RunError if there is none to be read."""
    run = run if isinstance(run, Run) else open_run(run, runs)
    path = run.path / "model.keras"
    if not path.exists():
        raise RunError(
            f"The run {run.name} has no model to predict with or to export.",
            f"no {path}",
            "It was removed, or the recipe's features or head cannot become a network: `tlkeras evaluate` still works.",
        )
    try:
        check_archive(path)
        return keras.models.load_model(path, compile=False)
    except BackboneError as error:
        raise RunError(f"The run's model is not safe to load: {error.rule}", error.received, error.way_out) from error
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise RunError(f"Cannot read the model {path}.", error) from error


def predict(
    run: str | Path | Run, images: Any, *, top: int = 3, batch_size: int = 32, runs: str | Path = RUNS
) -> PredictionResult:
    """Classes and probabilities of images: files, folders, bytes, Pillow's images or arrays, one or several.

    DataError if no image was given, or some do not exist; all are named at once. Other files are listed as unreadable.

    Args:
        run: As in `open_run`.
        images: As in `Predictor.predict`.
        top: Classes per image.
        batch_size: Images computed together, at most.
    """
    return Predictor(run, batch_size=batch_size, runs=runs).predict_all(images, top=top)


class Predictor:
    """A run's model loaded once, for images that come one after the other; threads may share it.

    RunError if there is no such run, or it has no model.

    Attributes:
        run: The run.
        model: Its Keras model, with an output per task.
        tasks: What it predicts.
    """

    def __init__(self, run: str | Path | Run = "latest", *, batch_size: int = 32, runs: str | Path = RUNS):
        self.run = open_run(run, runs)
        facts = self.run.manifest["image"]
        self._rendering, self.tasks = Rendering.of(facts), read_tasks(self.run)
        self.model = order_outputs(load_model(self.run), [task.name for task in self.tasks])
        self._batch_size = max_batch_size(self.model, batch_size)
        size, rendering = facts["size"], self._rendering
        self._decode_bytes = tf.function(
            lambda encoded: decode(encoded, size, rendering), [tf.TensorSpec([], tf.string)], autograph=False
        )
        self._compiled = tf.function(
            lambda batch: self.model(batch, training=False), autograph=False, reduce_retracing=True
        )
        self._batches = 0

    def predict(self, images: Any, *, top: int = 3) -> ImagePrediction | PredictionResult:
        """The prediction of one image, or those of several.

        An image is a path, the bytes of a file, an image of Pillow, or an array uint8 RGB [height, width, 3]. A list
        of them, an array [n, height, width, 3] and a folder are several. DataError if one image cannot be read, or a
        path does not exist; of several the unreadable ones are listed in the result.
        """
        found = self.predict_all(images, top=top)
        if not is_single(images):
            return found
        for bad in found.unreadable:
            raise DataError("The image cannot be read.", f"{bad.path}: {bad.reason}")
        return found.predictions[0]

    def predict_all(self, images: Any, *, top: int = 3) -> PredictionResult:
        """As `predict`; one image, too, has a result with its prediction or with the reason why it has none."""
        named, unreadable = list_images(images)
        predictions, notes = [], []
        with progress.progress_bar("Predict", len(named), "images") as advance:
            for batch in self._read_batches(named):
                decoded = [one for one in batch if not isinstance(one, InvalidImage)]
                unreadable += [one for one in batch if isinstance(one, InvalidImage)]
                for image, header, _ in decoded:
                    notes += list_notes(image.name, header, self._rendering)
                outputs = self.compute(np.stack([pixels for *_, pixels in decoded])) if decoded else []
                for (image, *_), *of_image in zip(decoded, *outputs, strict=True):
                    predictions.append(_describe_image(image.name, of_image, self.tasks, top))
                advance(len(batch))
        return PredictionResult(
            self.run.name,
            self.tasks[0].threshold,
            Table(predictions),
            list_unreadable(unreadable),
            tuple(describe_warnings(notes)),
        )

    def _read_batches(self, images: Sequence[NamedImage]) -> Iterator[list[_Decoded | InvalidImage]]:
        """Decoded images, or why they cannot be used, in order."""
        with ThreadPoolExecutor(min(count_cores(), len(images) or 1)) as pool:
            queue = iter(images)
            while part := list(islice(queue, self._batch_size)):
                yield list(pool.map(self._read, part))

    def _read(self, image: NamedImage) -> _Decoded | InvalidImage:
        limit = self._rendering.max_pixels  # pipes are never opened, bombs never unpacked
        try:
            data = read_image(image.path) if image.content is None else image.content
            header = check_header(data, limit)
            return image, header, self._decode_bytes(tf.constant(to_decodable(data, limit))).numpy()
        except ImageError as error:
            return InvalidImage(image.name, error.code, error.reason)
        except tf.errors.OpError:
            return InvalidImage(image.name, "damaged", "its pixels cannot be decoded: it is cut off or damaged")

    def decode(self, image: NamedImage) -> np.ndarray:
        """An image as the model sees it, uint8 [h, w, 3]; DataError if it cannot be read."""
        found = self._read(image)
        if isinstance(found, InvalidImage):
            raise DataError("The image cannot be read.", f"{found.path}: {found.reason}")
        return found[2]

    def compute(self, batch: np.ndarray) -> list[np.ndarray]:
        """The outputs of the model for images, uint8 [n, h, w, 3]; compiled from the second batch on."""
        call = self._compiled if self._batches else self.model
        self._batches += 1
        return [output.numpy() for output in keras.tree.flatten(call(tf.constant(batch)))]


def _describe_image(path: str, outputs: Sequence[np.ndarray], tasks: Sequence[Task], top: int) -> ImagePrediction:
    described = {task.name: _describe_task(output, task, top) for task, output in zip(tasks, outputs, strict=True)}
    return ImagePrediction(path=to_printable(path), tasks=described, **vars(described[tasks[0].name]))


def _describe_task(probabilities: np.ndarray, task: Task, top: int) -> TaskPrediction:
    """The prediction of one task from its output for one image, float32 [k]."""
    if not task.has_classes:
        return TaskPrediction(label=task.format(probabilities[None])[0], value=float(probabilities[0]))
    order = np.argsort(-probabilities, kind="stable")[:top]
    best = tuple(ClassProbability(task.class_names[index], float(probabilities[index])) for index in order)
    members = task.decide(probabilities[None])
    (label,), (labels,) = task.format(members), task.list_names(members)
    return TaskPrediction(
        label=label,
        probability=best[0].probability,
        labels=tuple(labels),
        top=best,
        classes=task.class_names,
        outputs=probabilities,
    )
