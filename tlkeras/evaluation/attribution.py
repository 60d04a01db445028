"""Attribution maps: Grad-CAM, Grad-CAM++ and occlusion, with a sanity check by randomizing the weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import spearmanr

from tlkeras.backbones.blocks import CutPoint, find_cut, find_cuts, split
from tlkeras.backbones.graph import has_weights, max_batch_size, open_nested, run_in_parts, trace_calls
from tlkeras.errors import BackboneError, suggest
from tlkeras.lazy_tensorflow import check_backend
from tlkeras.progress import progress_bar

AttributionMethod = Literal["grad_cam", "grad_cam++", "occlusion"]
METHODS: tuple[AttributionMethod, ...] = ("grad_cam", "grad_cam++", "occlusion")
BATCH_SIZE = 16

_MIN_SIZE = 4  # positions; smaller maps are too coarse to be of use
_POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
_PASSING = (*_POOLS, keras.layers.ZeroPadding2D, keras.layers.Dropout)  # only pass on or blur a map
_SQUASHING = ("Softmax", "Sigmoid", "LogSoftmax")  # of keras.ops
_GREY = 127
_TINY = 1e-12
_SMALLEST = 1e-30


class Explainer:
    """Attribution maps of a class, from one layer of a functional model.

    Models within the model are opened: their layers can be chosen, too. BackboneError if there is no such layer, or it
    has no map.

    Args:
        model: From images uint8 [n, h, w, 3] to probabilities or logits [n, k], one or several outputs.
        output: Index of the output.
        layer: Name of a layer through which everything flows; None: `find_layer` chooses.

    Attributes:
        layer: The name of the layer.
    """

    def __init__(self, model: keras.Model, output: int = 0, layer: str | None = None):
        check_backend("Explainer")
        self.model, self.output = model, output
        opened = open_nested(model)
        scores, self._may_be_probabilities = find_scores(opened, output)
        whole = keras.Model(opened.input, scores, name=model.name)
        cut = find_layer(whole) if layer is None else find_cut(whole, layer)
        if len(cut.shape) != 3:
            raise BackboneError("This layer has no feature map [height, width, channels].", f"{cut.name}: {cut.shape}")
        self.layer = cut.name
        self._prefix, self._suffix = split(whole, cut.name)
        self._trace = tf.function(self._differentiate, reduce_retracing=True, autograph=False, jit_compile=False)

    def explain(self, images: np.ndarray, classes: Sequence[int], method: AttributionMethod = "grad_cam") -> np.ndarray:
        """A map for each image, float32 [n, height, width] of the image, the largest value 1; 0 where there is none.

        "grad_cam": the layer's channels weighted by the mean gradient of the class's logit (Selvaraju et al., ICCV
        2017). "grad_cam++": by its positive gradients, each position weighted by equation 19 of Chattopadhay et al.,
        WACV 2018, which finds several instances of a class better. "occlusion": the positive part of `occlude`, which
        needs about a hundred predictions per image. BackboneError if the method is none of these.

        Args:
            images: uint8 [n, height, width, 3].
            classes: Index of the class to explain, one per image.
        """
        if method not in METHODS:
            raise BackboneError("Unknown attribution method.", repr(method), suggest(method, METHODS))
        images, classes = np.asarray(images), np.asarray(classes, np.int64).tolist()
        if method == "occlusion":
            return _scale(np.maximum(occlude(self.model, images, classes, output=self.output), 0))
        maps = []
        with progress_bar("Explaining", len(images), "images") as advance:
            size = max_batch_size(self.model, BATCH_SIZE)
            for start in range(0, len(images), size):
                batch, wanted = images[start : start + size], classes[start : start + size]
                traced = self._trace(tf.constant(batch), tf.constant(wanted, tf.int32))
                activations, gradients = (found.numpy() for found in traced)
                plain = method == "grad_cam"
                weights = gradients.mean((1, 2)) if plain else _grad_cam_plus_plus_weights(activations, gradients)
                maps.append(np.maximum(np.einsum("nhwc,nc->nhw", activations, weights), 0))
                advance(len(batch))
        if not maps:
            return np.zeros(images.shape[:3], np.float32)
        large = tf.image.resize(np.concatenate(maps)[..., None], images.shape[1:3], method="bilinear").numpy()[..., 0]
        return _scale(large).astype(np.float32)

    def _differentiate(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's map, and the gradient of each image's class by it, [n, h, w, c] both."""
        activations = tf.cast(self._prefix(images, training=False), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(activations)
            scores = tf.cast(self._suffix(activations, training=False), tf.float32)
            if self._may_be_probabilities:
                inside = tf.reduce_all((scores >= 0) & (scores <= 1))
                scores = tf.where(inside, tf.math.log(tf.maximum(scores, 0.0) + _TINY), scores)
            chosen = tf.gather(scores, classes, batch_dims=1)
        return activations, tape.gradient(chosen, activations)


def find_layer(model: keras.Model) -> CutPoint:
    """The deepest cut behind a kernel with a feature map of 4 x 4 positions or more, trailing pooling left out.

    That is `block5_conv3` of VGG16, the last activation of EfficientNet, ResNet V2 and DenseNet, the last sum of
    ConvNeXt. Where images are so small that no map is as large, the deepest of the largest ones. BackboneError if no
    layer has more than one position.
    """
    model = open_nested(model)
    operations = {call.name: call.operation for call in trace_calls(model)}
    learned = _list_learned(model)
    maps = [cut for cut in find_cuts(model) if len(cut.shape) == 3 and min(cut.shape[:2]) > 1 and cut.name in learned]
    candidates = [cut for cut in maps if not isinstance(operations[cut.name], _PASSING)]
    if not candidates:
        raise BackboneError(
            f"{model.name} has no layer with a feature map to explain.",
            None,
            "Fused and handcrafted features have none; otherwise build the backbone with larger images.",
        )
    size = min(_MIN_SIZE, max(min(cut.shape[:2]) for cut in candidates))
    return [cut for cut in candidates if min(cut.shape[:2]) >= size][-1]


def _list_learned(model: keras.Model) -> set[str]:
    """Names of the calls behind the first one with a kernel: what comes before are the image's own colours."""
    calls = trace_calls(model)
    for number, call in enumerate(calls):
        learns = has_weights(call) and not isinstance(call.operation, keras.layers.Normalization)
        if learns and any(len(weight.shape) > 1 for weight in call.operation.weights):
            return {behind.name for behind in calls[number:]}
    return set()


def occlude(
    model: keras.Model,
    images: np.ndarray,
    classes: Sequence[int],
    *,
    output: int = 0,
    patch: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Probability that a class loses where a grey square hides the image, float32 [n, height, width].

    Each pixel has the mean over the squares that cover it; below 0 where hiding helps (Zeiler and Fergus, ECCV 2014,
    section 4.2). Needs no gradients and no layer, and about a hundred predictions per image.

    Args:
        model, output: As in `Explainer`.
        images, classes: As in `Explainer.explain`.
        patch: Side of the square, pixels; a sixth of the image's by default.
        stride: Pixels between squares; half a square by default.
    """
    images, classes = np.asarray(images), np.asarray(classes, np.int64).tolist()
    height, width = images.shape[1:3]
    patch = patch or max(2, min(height, width) // 6)
    stride = stride or max(1, patch // 2)
    places = [(y, x) for y in _list_places(height, patch, stride) for x in _list_places(width, patch, stride)]
    maps, size = np.zeros(images.shape[:3], np.float32), max_batch_size(model, 2 * BATCH_SIZE)
    with progress_bar("Occluding", len(images), "images") as advance:
        for image, wanted, drops in zip(images, classes, maps, strict=True):
            covered = np.zeros((height, width), np.float32)
            hidden = np.repeat(image[None], len(places) + 1, axis=0)
            for copy, (y, x) in zip(hidden[1:], places, strict=True):
                copy[y : y + patch, x : x + patch] = _GREY
            predicted = run_in_parts(partial(model, training=False), hidden, size)[output][:, wanted]
            for lost, (y, x) in zip(predicted[0] - predicted[1:], places, strict=True):
                drops[y : y + patch, x : x + patch] += lost
                covered[y : y + patch, x : x + patch] += 1
            np.divide(drops, np.maximum(covered, 1), out=drops)
            advance(1)
    return maps


def check_sanity(
    explainer: Explainer,
    images: np.ndarray,
    classes: Sequence[int],
    *,
    method: AttributionMethod = "grad_cam",
    steps: int = 3,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Similarity of the maps to the first ones while the model's weights are randomized from the output down.

    Maps that hardly change show edges of the image, not what the model learned (Adebayo et al., NeurIPS 2018,
    cascading randomization). Values are shuffled within each weight, which keeps their distribution. The model's
    weights are restored. Each step has the fraction of layers randomized, and the mean rank correlation, -1 to 1.
    """
    model = explainer.model
    saved, random = model.get_weights(), np.random.default_rng(seed)
    layers = [call.operation for call in trace_calls(model) if has_weights(call)][::-1]
    reference = explainer.explain(images, classes, method)
    found = []
    try:
        for part in np.array_split(np.arange(len(layers)), steps):
            for index in part.tolist():
                weights = layers[index].get_weights()
                layers[index].set_weights([random.permutation(w.ravel()).reshape(w.shape) for w in weights])
            changed = explainer.explain(images, classes, method)
            found.append(((int(part[-1]) + 1) / len(layers), _correlate(reference, changed)))
    finally:
        model.set_weights(saved)
    return found


def find_scores(model: keras.Model, output: int) -> tuple[Any, bool]:
    """The tensor of an output's logits, or else of the output itself, and whether this may be probabilities.

    A softmax or sigmoid at the end is taken off, also that of a dense layer; a linear layer has logits.
    """
    tensor = keras.tree.flatten(model.output)[output]
    calls = trace_calls(model)
    while True:
        last = next(call for call in calls if any(found is tensor for found in call.outputs))
        operation, activation = last.operation, getattr(last.operation, "activation", None)
        linear = activation is keras.activations.linear
        squashes = activation in (keras.activations.softmax, keras.activations.sigmoid)
        if isinstance(operation, keras.layers.Softmax) or type(operation).__name__ in _SQUASHING:
            return last.inputs[0], False
        if isinstance(operation, keras.layers.Dense) and (linear or squashes):
            return tensor if linear else _WithoutActivation(operation)(last.inputs[0]), False
        if not isinstance(operation, keras.layers.Activation) or not (linear or squashes):
            return tensor, True
        tensor = last.inputs[0]
        if squashes:
            return tensor, False


class _WithoutActivation(keras.layers.Layer):
    """A dense layer without its activation, with its own variables."""

    def __init__(self, dense: keras.layers.Dense):
        super().__init__(name=f"{dense.name}_logits", dtype=dense.dtype_policy)
        self.dense = dense

    def call(self, inputs: Any) -> Any:
        activation, self.dense.activation = self.dense.activation, keras.activations.linear
        try:
            return self.dense(inputs)
        finally:
            self.dense.activation = activation

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.dense.compute_output_shape(input_shape)


def _grad_cam_plus_plus_weights(activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    squares, cubes = gradients**2, gradients**3
    below = 2 * squares + activations.sum(axis=(1, 2), keepdims=True) * cubes
    some = np.abs(below) > _SMALLEST
    shares = np.where(some, squares / np.where(some, below, 1), 0)
    return (shares * np.maximum(gradients, 0)).sum(axis=(1, 2))


def _scale(maps: np.ndarray) -> np.ndarray:
    """Maps [n, h, w], the largest value of each 1."""
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), _SMALLEST)


def _list_places(length: int, patch: int, stride: int) -> list[int]:
    last = max(length - patch, 0)
    return sorted({*range(0, last + 1, stride), last})


def _correlate(reference: np.ndarray, changed: np.ndarray) -> float:
    """Mean rank correlation of pairs of maps; 0 for a constant map."""
    pairs = [
        spearmanr(a.ravel()[::7], b.ravel()[::7]).statistic if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
        for a, b in zip(reference, changed, strict=True)
    ]
    return float(np.mean(np.nan_to_num(pairs)))
