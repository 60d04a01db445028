"""The inference graph of a run's model, which every exported signature calls, and calibration as part of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlkeras.backbones.blocks import find_cuts
from tlkeras.backbones.graph import fold_batch_norm, max_batch_size
from tlkeras.data.tasks import Task
from tlkeras.errors import ExportError, RunError, TlkerasError
from tlkeras.evaluation.attribution import find_scores
from tlkeras.evaluation.calibration import LogitScaling, ScalingMethod, fit_scaling
from tlkeras.evaluation.run_data import RunData
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import load_predictions

TOLERANCE = 1e-5  # largest difference in a probability between the fast network and the model
_CHUNK_PIXELS = 4 * 224 * 224
_MAX_CHUNK = 32
_PARALLEL_CHUNKS = 2
_TINY = 1e-30  # float32 has it


@dataclass(frozen=True)
class InferenceModel:
    """A model ready to be exported."""

    # uint8 images [n, h, w, 3] to features [n, d], where there are any, and the probabilities [n, k] of each task
    call: Callable[[tf.Tensor], list[tf.Tensor]]
    model: keras.Model | None  # owner of the variables that `call` reads; None where all are constants
    has_features: bool  # whether the first output holds features
    note: str = ""  # why this is not the fast network; "" where it is

    @property
    def is_fast(self) -> bool:
        """Whether batch norm is folded and variables are constants."""
        return self.model is None


def make_inference_model(model: keras.Model, tasks: Sequence[Task], images: np.ndarray) -> InferenceModel:
    """The fast network if its predictions are the model's, else the model as it is with a note.

    The fast network has batch norm folded into convolutions, variables as constants, and batches divided into chunks
    of few images whose activations stay in the processor's cache. On the given images, uint8 [n, h, w, 3], its
    probabilities may differ by `TOLERANCE`, its decisions may not. ExportError as in `add_features`.
    """
    whole, has_features = add_features(model, tasks)

    def run(images: tf.Tensor) -> list[tf.Tensor]:
        return [tf.cast(output, tf.float32) for output in whole(tf.cast(images, whole.input.dtype), training=False)]

    plain = InferenceModel(_divide_batches(run, whole), whole, has_features)
    try:
        call = _divide_batches(freeze(whole), whole)
        difference = _find_difference(plain, call, images, tasks)
    except Exception as error:  # third-party layers may fail on symbolic tensors in any way
        kind = "" if isinstance(error, TlkerasError) else f"{type(error).__name__} "
        return replace(plain, note=f"Exported as it is, not folded: {kind}{error}")
    if difference:
        return replace(plain, note=f"Exported as it is: the folded network {difference}.")
    return InferenceModel(call, None, has_features)


def add_features(model: keras.Model, tasks: Sequence[Task]) -> tuple[keras.Model, bool]:
    """The model with its features, the first vector through which all data flows, as first output, if it has any.

    ExportError if the model's outputs are not those of the tasks.
    """
    outputs = keras.tree.flatten(model.output)
    shapes = [tuple(output.shape) for output in outputs]
    if shapes != [(None, len(task.class_names)) for task in tasks]:
        raise ExportError(
            "The model's outputs are not the probabilities of its tasks.",
            f"outputs {shapes} for {[task.name for task in tasks]}",
            "Train the run again with this version of tlkeras.",
        )
    try:
        vectors = [cut.tensor for cut in find_cuts(model, nested=False) if len(cut.tensor.shape) == 2]
    except TlkerasError:
        vectors = []
    own = {id(output) for output in outputs}
    features = [tensor for tensor in vectors if id(tensor) not in own][:1]
    return keras.Model(model.input, [*features, *outputs], name=model.name), bool(features)


def freeze(whole: keras.Model, batch: int | None = None) -> Any:
    """A functional model, folded, as a concrete function without variables: uint8 `images` to float32 tensors."""
    folded = fold_batch_norm(whole)

    def run(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = keras.tree.flatten(folded(tf.cast(images, whole.input.dtype)))
        return [tf.cast(output, tf.float32) for output in outputs]

    traced = tf.function(run, autograph=False, jit_compile=False)
    spec = tf.TensorSpec((batch, *whole.input.shape[1:]), tf.uint8, name="images")
    # loops of heads stay functions, because lowered ones cannot be called from within another function
    return convert_variables_to_constants_v2(traced.get_concrete_function(spec), lower_control_flow=False)


def _divide_batches(function: Any, whole: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """A function that runs few images at a time: at 224 px, 32 at once leave the cache and take twice the time each."""
    height, width = whole.input.shape[1:3]
    size = max_batch_size(whole, min(_MAX_CHUNK, _CHUNK_PIXELS // (height * width)))
    specs = [tf.TensorSpec(output.shape, tf.float32) for output in whole.outputs]

    def call(images: tf.Tensor) -> list[tf.Tensor]:
        count = tf.shape(images)[0]
        chunks = tf.maximum((count + size - 1) // size, 1)  # one for an empty batch, whose outputs are then empty too
        arrays = [
            tf.TensorArray(tf.float32, size=chunks, element_shape=spec.shape, infer_shape=False) for spec in specs
        ]

        def step(chunk: tf.Tensor, arrays: list[tf.TensorArray]) -> tuple[tf.Tensor, list[tf.TensorArray]]:
            part = images[chunk * size : (chunk + 1) * size]
            missing = tf.maximum(1 - tf.shape(part)[0], 0)  # for none oneDNN gives the wrong number of channels
            results = function(tf.pad(part, [[0, missing], [0, 0], [0, 0], [0, 0]]))
            return chunk + 1, [array.write(chunk, result) for array, result in zip(arrays, results, strict=True)]

        _, filled = tf.while_loop(
            lambda chunk, _: chunk < chunks, step, (tf.constant(0), arrays), parallel_iterations=_PARALLEL_CHUNKS
        )
        return [tf.ensure_shape(array.concat()[:count], spec.shape) for array, spec in zip(filled, specs, strict=True)]

    spec = tf.TensorSpec((None, *whole.input.shape[1:]), tf.uint8)
    return tf.function(call, input_signature=[spec], autograph=False, jit_compile=False)


def _find_difference(plain: InferenceModel, fast: Callable, images: np.ndarray, tasks: Sequence[Task]) -> str:
    """Description of the first difference above `TOLERANCE` between the fast network and the plain one; "" if none."""
    expected = [output.numpy() for output in plain.call(tf.constant(images))]
    received = [output.numpy() for output in fast(tf.constant(images))]
    skipped = 1 if plain.has_features else 0
    for task, reference, output in zip(tasks, expected[skipped:], received[skipped:], strict=True):
        difference = float(task.measure_difference(reference, output).max())
        if not difference <= TOLERANCE:
            return f"differs by {difference:.1g} in a probability of {task.name!r}"
        if not task.same_decision(reference, output).all():
            return f"predicts an image differently in {task.name!r}"
    return ""


def find_scalings(run: Run, method: ScalingMethod) -> tuple[list[LogitScaling | None], str]:
    """Scaling of each task, fitted on images not trained on (None for a regression), and a note; RunError if none."""
    run_data, counts = RunData(run), []
    scalings: list[LogitScaling | None] = []
    for predictions in load_predictions(run):
        if not predictions.task.has_classes:
            scalings.append(None)
            continue
        unseen, where = run_data.find_unseen(predictions.task)
        if unseen is None:
            raise RunError(
                f"{run.name} has no predictions of {predictions.task.name!r} to fit a calibration on.",
                "no images that were neither trained on nor evaluated on",
                "Train with a validation split, such as --set data.validation=0.1.",
            )
        scalings.append(fit_scaling(unseen, method))
        counts.append(f"{len(unseen):,} {where} images")
    return scalings, f"Calibrated by {method} scaling, fitted on {', '.join(counts)}."


def build_scalings(model: keras.Model, scalings: Sequence[LogitScaling | None]) -> keras.Model:
    """The model with the logits of each output scaled and shifted, unless its scaling is None; variables are shared."""
    tensors = [
        model.outputs[index] if scaling is None else _scale(model, index, scaling)
        for index, scaling in enumerate(scalings)
    ]
    return keras.Model(model.input, keras.tree.pack_sequence_as(model.output, tensors), name=model.name)


def _scale(model: keras.Model, index: int, scaling: LogitScaling) -> Any:
    scores, are_probabilities = find_scores(model, index)
    if are_probabilities:  # no layer gives the logits
        logarithm = keras.ops.log(scores + _TINY)
        scores = logarithm - keras.ops.log(1 - scores + _TINY) if scaling.is_multilabel else logarithm
    elif not scaling.is_multilabel:  # scales that differ by class see the constant that softmax does not
        scores = keras.ops.log_softmax(scores)
    scaled = keras.layers.Rescaling(scaling.scale.tolist(), scaling.shift.tolist(), name=f"calibration_{index}")(scores)
    activation = "sigmoid" if scaling.is_multilabel else "softmax"
    return keras.layers.Activation(activation, dtype="float32", name=f"calibrated_{index}")(scaled)
