"""A run's model as the function that every exported signature calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlkeras.backbones.blocks import find_cuts
from tlkeras.backbones.graph import max_batch_size
from tlkeras.data.tasks import Task
from tlkeras.errors import ExportError, TlkerasError
from tlkeras.features.batch_norm_folding import fold_batch_norm

TOLERANCE = 1e-5
"""What a probability of the fast network may differ by from the model's."""

_CHUNK_PIXELS = 4 * 224 * 224
_MOST_CHUNK = 32
_CHUNKS_AT_ONCE = 2


@dataclass(frozen=True)
class InferenceModel:
    """A model ready to be exported.

    Attributes:
        call: From uint8 images [n, size, size, 3] to the features [n, d] where there are any, and then the
            probabilities [n, k] of each task.
        model: What `call` reads variables of; None where all are constants.
        note: Why this is not the fast network; "" where it is.
    """

    call: Callable[[tf.Tensor], list[tf.Tensor]]
    model: keras.Model | None
    has_features: bool
    note: str = ""

    @property
    def is_fast(self) -> bool:
        """Whether batch norm is folded and variables are constants."""
        return self.model is None


def make_network(model: keras.Model, tasks: Sequence[Task], images: np.ndarray) -> InferenceModel:
    """Return the fast network if it answers as the model does, else the model as it is with a note.

    Fast is: batch norm folded into convolutions, variables as constants, batches divided into parts of few images
    whose activations stay in the processor's cache.

    Args:
        model: From uint8 images to probabilities, one output per task.
        images: To compare on, uint8 [n, size, size, 3]. Probabilities may differ by `TOLERANCE`; no answer may.

    Raises:
        ExportError: The model's outputs are not those of the tasks.
    """
    whole, has_features = add_features(model, tasks)
    plain = InferenceModel(divide_batches(lambda images: _run_plain(whole, images), whole), whole, has_features)
    try:
        call = divide_batches(freeze(whole), whole)
        worst = _compare(plain, call, images, tasks)
    except TlkerasError as error:
        return InferenceModel(plain.call, whole, has_features, f"Exported as it is, not folded: {error}")
    except Exception as error:  # whatever a layer of another's making does with symbolic tensors
        return InferenceModel(
            plain.call, whole, has_features, f"Exported as it is, not folded: {type(error).__name__} {error}"
        )
    if worst:
        return InferenceModel(plain.call, whole, has_features, f"Exported as it is: the folded network {worst}.")
    return InferenceModel(call, None, has_features)


def add_features(model: keras.Model, tasks: Sequence[Task]) -> tuple[keras.Model, bool]:
    """Return the model with outputs in the order of the tasks, its features before them, and whether there are any.

    Features are the first vector through which all data flows.
    """
    outputs = _order_outputs(model, tasks)
    try:
        vectors = [cut.tensor for cut in find_cuts(model) if len(cut.tensor.shape) == 2]
    except TlkerasError:
        vectors = []
    own = {id(output) for output in outputs}
    features = [tensor for tensor in vectors if id(tensor) not in own][:1]
    return keras.Model(model.input, [*features, *outputs], name=model.name), bool(features)


def _order_outputs(model: keras.Model, tasks: Sequence[Task]) -> list[Any]:
    found = model.output
    if isinstance(found, dict) and set(found) == {task.name for task in tasks}:
        return [found[task.name] for task in tasks]
    outputs = keras.tree.flatten(found)
    widths = [(None, len(task.class_names)) for task in tasks]
    if [tuple(output.shape) for output in outputs] != widths:
        raise ExportError(
            "A model must give the probabilities of each task, in their order.",
            f"outputs {[tuple(output.shape) for output in outputs]} for {[task.name for task in tasks]}",
            "Train the run again with this version of tlkeras.",
        )
    return outputs


def _run_plain(whole: keras.Model, images: tf.Tensor) -> list[tf.Tensor]:
    return [tf.cast(output, tf.float32) for output in whole(tf.cast(images, whole.input.dtype), training=False)]


def _keep_one(images: tf.Tensor) -> tf.Tensor:
    """Add a black image where there is none: oneDNN's convolutions give an empty batch the wrong number of maps."""
    lacking = tf.maximum(1 - tf.shape(images)[0], 0)
    return tf.pad(images, [[0, lacking], [0, 0], [0, 0], [0, 0]])


def freeze(whole: keras.Model, batch: int | None = None) -> Any:
    """Return a functional model, folded, as a concrete function without variables.

    Args:
        batch: Images that it takes; None: any number.

    Returns:
        A function of `images`, uint8 [n, size, size, 3], to a list of float32 tensors.
    """
    folded = fold_batch_norm(whole)

    def run(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = keras.tree.flatten(folded(tf.cast(images, whole.input.dtype)))
        return [tf.cast(output, tf.float32) for output in outputs]

    traced = tf.function(run, autograph=False, jit_compile=False)
    spec = tf.TensorSpec((batch, *whole.input.shape[1:]), tf.uint8, name="images")
    # loops of heads stay functions: lowered ones cannot be called from within another function
    return convert_variables_to_constants_v2(traced.get_concrete_function(spec), lower_control_flow=False)


def divide_batches(function: Any, whole: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Return a function that runs few images at a time.

    Measured at 224 px: the activations of 32 images at once leave the cache and take twice the time per image.
    """
    height, width = whole.input.shape[1:3]
    size = max_batch_size(whole, min(_MOST_CHUNK, _CHUNK_PIXELS // (height * width)))
    specs = [tf.TensorSpec(output.shape, tf.float32) for output in whole.outputs]

    def call(images: tf.Tensor) -> list[tf.Tensor]:
        count = tf.shape(images)[0]
        chunks = tf.maximum((count + size - 1) // size, 1)  # one for no images, so that none give empty answers
        arrays = [
            tf.TensorArray(tf.float32, size=chunks, element_shape=spec.shape, infer_shape=False) for spec in specs
        ]

        def step(chunk: tf.Tensor, arrays: list[tf.TensorArray]) -> tuple[tf.Tensor, list[tf.TensorArray]]:
            results = function(_keep_one(images[chunk * size : (chunk + 1) * size]))
            return chunk + 1, [array.write(chunk, result) for array, result in zip(arrays, results, strict=True)]

        _, filled = tf.while_loop(
            lambda chunk, _: chunk < chunks, step, (tf.constant(0), arrays), parallel_iterations=_CHUNKS_AT_ONCE
        )
        return [tf.ensure_shape(array.concat()[:count], spec.shape) for array, spec in zip(filled, specs, strict=True)]

    spec = tf.TensorSpec((None, *whole.input.shape[1:]), tf.uint8)
    return tf.function(call, input_signature=[spec], autograph=False, jit_compile=False)


def _compare(plain: InferenceModel, fast: Callable, images: np.ndarray, tasks: Sequence[Task]) -> str:
    """Return in what the fast network is too far from the plain one; "" where it is not."""
    expected = [output.numpy() for output in plain.call(tf.constant(images))]
    received = [output.numpy() for output in fast(tf.constant(images))]
    skipped = 1 if plain.has_features else 0
    for task, wanted, given in zip(tasks, expected[skipped:], received[skipped:], strict=True):
        difference = float(task.measure_difference(wanted, given).max())
        if not difference <= TOLERANCE:
            return f"differs by {difference:.1g} in a probability of {task.name!r}"
        if not task.same_decision(wanted, given).all():
            return f"answers an image otherwise in {task.name!r}"
    return ""
