"""The signatures of an exported SavedModel: names of inputs and outputs, and the graphs behind them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import keras
import tensorflow as tf

from tlkeras.data.decoding import decode
from tlkeras.data.tasks import THRESHOLD, MultiLabelTask, Task
from tlkeras.exporting.inference_graph import InferenceModel

EXAMPLE_KEY = "image/encoded"
CLASSIFY = "tensorflow/serving/classify"

_DECODED_AT_ONCE = 32

NamedTensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """Decoding and resizing of image files, which becomes part of the exported graph."""

    size: int  # height and width in pixels
    resize: str  # how an image is made square: stretch, crop or pad

    def decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Decode a batch, its images in parallel: string [n] -> uint8 [n, size, size, 3]."""
        return _make_decoder(self.size, self.resize)(image_bytes)


@cache
def _make_decoder(size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """The graph that decodes a batch, traced once per process."""
    image = tf.TensorSpec((size, size, 3), tf.uint8)

    def run(image_bytes: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda encoded: decode(encoded, size, resize),
            image_bytes,
            fn_output_signature=image,
            parallel_iterations=_DECODED_AT_ONCE,
        )

    return tf.function(run, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def name_output(tasks: Sequence[Task], task: Task, name: str) -> str:
    """Name of an output: `label`, or `shape_label` where `shape` is one of several tasks."""
    return name if len(tasks) == 1 else f"{task.name}_{name}"


def main_output(tasks: Sequence[Task], task: Task) -> str:
    """Name of the network's own output for a task: its probabilities, or the value of a regression."""
    return name_output(tasks, task, task.output_name)


def write_signatures(model: InferenceModel, tasks: Sequence[Task], preprocessing: Preprocessing, path: Path) -> None:
    """Write a SavedModel with the signatures serving_default, uint8, features, and classify for tasks with classes."""
    first = 1 if model.has_features else 0

    def predict(images: tf.Tensor) -> NamedTensors:
        outputs = zip(tasks, model.call(images)[first:], strict=True)
        described = [(task, _describe_output(task, output)) for task, output in outputs]
        return {name_output(tasks, task, name): tensor for task, found in described for name, tensor in found.items()}

    def classify(index: int) -> Callable[[tf.Tensor], NamedTensors]:
        return lambda inputs: _rank(tasks[index], model.call(preprocessing.decode(_parse(inputs)))[first + index])

    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive = keras.export.ExportArchive()
    if model.model is not None:
        archive.track(model.model)
    archive.add_endpoint("serving_default", lambda image_bytes: predict(preprocessing.decode(image_bytes)), [encoded])
    images = tf.TensorSpec((None, preprocessing.size, preprocessing.size, 3), tf.uint8, name="images")
    archive.add_endpoint("uint8", predict, [images])
    if model.has_features:
        archive.add_endpoint(
            "features", lambda image_bytes: {"features": model.call(preprocessing.decode(image_bytes))[0]}, [encoded]
        )
    names = {name_output(tasks, task, "classify"): index for index, task in enumerate(tasks) if task.has_classes}
    for name, index in names.items():
        archive.add_endpoint(name, classify(index), [tf.TensorSpec((None,), tf.string, name="inputs")])
    archive.write_out(str(path), verbose=False)
    with quiet_deprecations():
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in names:
            updater.replace_method_name(signature_key=name, method_name=CLASSIFY, tags="serve")
        updater.save()


def _parse(inputs: tf.Tensor) -> tf.Tensor:
    """Bytes of the images in serialized tf.Examples, string [n]."""
    return tf.io.parse_example(inputs, {EXAMPLE_KEY: tf.io.FixedLenFeature((), tf.string)})[EXAMPLE_KEY]


def _rank(task: Task, probabilities: tf.Tensor) -> NamedTensors:
    """All classes with their scores, the most probable first, as the method classify returns them."""
    scores, order = tf.math.top_k(probabilities, len(task.class_names))
    return {"classes": tf.gather(tf.constant(list(task.class_names)), order), "scores": scores}


def _describe_output(task: Task, output: tf.Tensor) -> NamedTensors:
    """A task's outputs by name: the network's own, and the labels derived from it."""
    if not task.has_classes:
        return {task.output_name: output}
    names = tf.constant(list(task.class_names))
    if isinstance(task, MultiLabelTask):
        present = output >= THRESHOLD
        found = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(output)), present)
        # a signature cannot return rows of several lengths: the names are joined as in a table
        label = tf.strings.reduce_join(found, axis=1, separator=task.separator)
        return {"probabilities": output, "present": present, "label": label}
    index = tf.argmax(output, axis=-1)
    return {"probabilities": output, "class_index": index, "label": tf.gather(names, index)}


@contextmanager
def quiet_deprecations() -> Iterator[None]:
    """Suppress TensorFlow's deprecation warnings of its version 1 interface, with which servers load models."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
