"""The signatures of an export: what a server is asked, and the names of what it answers."""

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

Outputs = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become images: what a model needs to be told beside its weights."""

    size: int
    fit: str

    def decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Decode a batch, its images side by side: string [n] -> uint8 [n, size, size, 3]."""
        return _make_decoder(self.size, self.fit)(image_bytes)


@cache
def _make_decoder(size: int, fit: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the graph that decodes a batch, traced once for all who use it."""
    image = tf.TensorSpec((size, size, 3), tf.uint8)

    def run(image_bytes: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda encoded: decode(encoded, size, fit),
            image_bytes,
            fn_output_signature=image,
            parallel_iterations=_DECODED_AT_ONCE,
        )

    return tf.function(run, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def name_output(tasks: Sequence[Task], task: Task, what: str) -> str:
    """Return the name of an answer: `label`, or `shape_label` where `shape` is one of several tasks."""
    return what if len(tasks) == 1 else f"{task.name}_{what}"


def name_main(tasks: Sequence[Task], task: Task) -> str:
    """Return the name of what the network itself answers: probabilities, or the value of a number."""
    return name_output(tasks, task, task.output_name)


def write_signatures(network: InferenceModel, tasks: Sequence[Task], entry: Preprocessing, path: Path) -> None:
    """Write a SavedModel with the signatures serving_default, uint8, features, and classify of all but numbers."""

    def predict(images: tf.Tensor) -> Outputs:
        outputs = network.call(images)[1 if network.has_features else 0 :]
        predictions: Outputs = {}
        for task, probabilities in zip(tasks, outputs, strict=True):
            for what, tensor in _explain(task)(probabilities).items():
                predictions[name_output(tasks, task, what)] = tensor
        return predictions

    def classify(place: int) -> Callable[[tf.Tensor], Outputs]:
        return lambda inputs: _rank(
            tasks[place], network.call(entry.decode(_parse(inputs)))[place + (1 if network.has_features else 0)]
        )

    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive = keras.export.ExportArchive()
    if network.model is not None:
        archive.track(network.model)
    archive.add_endpoint("serving_default", lambda image_bytes: predict(entry.decode(image_bytes)), [encoded])
    images = tf.TensorSpec((None, entry.size, entry.size, 3), tf.uint8, name="images")
    archive.add_endpoint("uint8", predict, [images])
    if network.has_features:
        archive.add_endpoint(
            "features", lambda image_bytes: {"features": network.call(entry.decode(image_bytes))[0]}, [encoded]
        )
    names = {name_output(tasks, task, "classify"): place for place, task in enumerate(tasks) if task.has_classes}
    for name, place in names.items():
        archive.add_endpoint(name, classify(place), [tf.TensorSpec((None,), tf.string, name="inputs")])
    archive.write_out(str(path), verbose=False)
    with quiet_deprecations():
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in names:
            updater.replace_method_name(signature_key=name, method_name=CLASSIFY, tags="serve")
        updater.save()


def _parse(inputs: tf.Tensor) -> tf.Tensor:
    """Return the bytes of images in serialized tf.Examples, string [n]."""
    return tf.io.parse_example(inputs, {EXAMPLE_KEY: tf.io.FixedLenFeature((), tf.string)})[EXAMPLE_KEY]


def _rank(task: Task, probabilities: tf.Tensor) -> Outputs:
    """Return all classes, the most probable first, as the method classify wants them."""
    scores, order = tf.math.top_k(probabilities, len(task.class_names))
    return {"classes": tf.gather(tf.constant(list(task.class_names)), order), "scores": scores}


def _explain(task: Task) -> Callable[[tf.Tensor], Outputs]:
    if not task.has_classes:
        return lambda values: {task.output_name: values}
    return _explain_labels(task) if isinstance(task, MultiLabelTask) else _explain_class(task)


def _explain_class(task: Task) -> Callable[[tf.Tensor], Outputs]:
    """Return what adds to probabilities [n, k] the index, int64 [n], and the name, string [n], of the best class."""
    names = list(task.class_names)

    def explain(probabilities: tf.Tensor) -> Outputs:
        index = tf.argmax(probabilities, axis=-1)
        return {"probabilities": probabilities, "class_index": index, "label": tf.gather(tf.constant(names), index)}

    return explain


def _explain_labels(task: MultiLabelTask) -> Callable[[tf.Tensor], Outputs]:
    """Return what adds to probabilities [n, k] the labels found, bool [n, k], and their names in one string each [n].

    A signature cannot return rows of several lengths, so the names stand together as a table would have them.
    """
    names = list(task.class_names)

    def explain(probabilities: tf.Tensor) -> Outputs:
        present = probabilities >= THRESHOLD
        found = tf.ragged.boolean_mask(tf.broadcast_to(tf.constant(names), tf.shape(probabilities)), present)
        label = tf.strings.reduce_join(found, axis=1, separator=task.separator)
        return {"probabilities": probabilities, "present": present, "label": label}

    return explain


@contextmanager
def quiet_deprecations() -> Iterator[None]:
    """Keep TensorFlow from advising against its version 1 interface, which is the one that servers load with."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
