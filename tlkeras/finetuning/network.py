"""The network that is fine-tuned: one flat graph, its part behind each cut, its precision and kernels on a CPU."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tlkeras.backbones.blocks import find_blocks, find_cut
from tlkeras.backbones.graph import OPERATIONS, find_pairs, fold, pass_on
from tlkeras.errors import TlkerasError, suggest
from tlkeras.features.extraction import POOLED, source_log_probabilities
from tlkeras.finetuning.freezing import calling, freeze, runs_in_inference, unfreeze
from tlkeras.finetuning.layer_groups import Groups, LayerGroup, group_blocks
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.unfreezing import list_trainable

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Of 8 bits little is left after a mean is subtracted from a pixel; at three channels float32 costs nothing.
_DELICATE = (keras.layers.Rescaling, keras.layers.Normalization)
IMAGES = "images"


_WIDE = 4  # columns of a kernel


def use_fused_cpu_ops(model: keras.Model, training: bool) -> AbstractContextManager[None]:
    """Within, a model is traced with batch norm folded into the convolution before it, where it acts as in inference.

    On a GPU, and for layers in 16 bits, nothing is changed. The weights are read in the graph that is being traced,
    so that it must be entered while tracing, and under the tape that is to find gradients. The model is functional,
    with channels last, and called with this `training`.
    """
    stand_ins: list[tuple[keras.Layer, Callable[..., Any]]] = []
    if not tf.config.get_visible_devices("GPU"):
        for convolution, norm in find_pairs(model):
            if runs_in_inference(norm) or not training:
                stand_ins += [(convolution, fold(convolution, norm, ops, _OPERATIONS)), (norm, pass_on)]
    return calling(stand_ins)


def convolve_depthwise(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    *,
    strides: Sequence[int],
    padding: str,
    data_format: str,
    dilation_rate: Sequence[int],
) -> tf.Tensor:
    """`keras.ops.depthwise_conv` of inputs float32 [n, h, w, c], kernel [rows, columns, c, multiplier], channels last.

    From four columns on, the gradient of the kernel takes oneDNN about twice the time of Eigen (TensorFlow 2.21). To a
    convolution whose padding is written out TensorFlow applies Eigen.
    """
    if kernel.shape[1] < _WIDE or max(dilation_rate) > 1 or None in inputs.shape[1:]:
        options: dict[str, Any] = {"strides": strides, "padding": padding}
        return ops.depthwise_conv(inputs, kernel, data_format=data_format, dilation_rate=dilation_rate, **options)
    steps = (1, *strides, 1)
    written_out = [[0, 0], *map(_pad, inputs.shape[1:3], kernel.shape[:2], strides, [padding] * 2), [0, 0]]

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def differentiate(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                tf.nn.depthwise_conv2d_backprop_input(tf.shape(inputs), kernel, upstream, steps, padding.upper()),
                tf.nn.depthwise_conv2d_backprop_filter(inputs, kernel.shape, upstream, steps, written_out),
            )

        return tf.nn.depthwise_conv2d(inputs, kernel, steps, padding.upper()), differentiate

    return convolve(inputs, kernel)


def _pad(side: int, window: int, stride: int, padding: str) -> list[int]:
    """What TensorFlow adds before and behind a side."""
    total = max((-(-side // stride) - 1) * stride + window - side, 0) if padding == "same" else 0
    return [total // 2, total - total // 2]


_OPERATIONS: Mapping[type, Callable[..., Any]] = {**OPERATIONS, keras.layers.DepthwiseConv2D: convolve_depthwise}


def choose_precision(precision: str = "auto") -> str:
    """The precision to compute in: "float32", "bfloat16" or "float16".

    "auto" is, on an NVIDIA GPU, bfloat16 from compute capability 8.0 (Ampere) on and float16 from 7.0 (Volta), the
    first with units for them, elsewhere float32. On a CPU bfloat16 was measured to take 1.6 to 2 times as long.
    TlkerasError if there is no such precision; the nearest is named.

    Source: NVIDIA, Train With Mixed Precision; Keras, Mixed precision (guide).
    """
    if precision not in PRECISIONS:
        raise TlkerasError("Unknown precision.", repr(precision), suggest(precision, PRECISIONS))
    if precision != "auto":
        return precision
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "float32"
    # the first one is what TensorFlow computes on; GPUs of other makers report no capability
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"


@contextmanager
def computing_in(precision: str, layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Within, layers compute in a precision; weights stay as they are.

    Keras reads a layer's policy when the layer is traced, so functions must be traced within; a functional model that
    holds the layers needs no change. Batch norm takes its statistics in float32 whatever its policy is, and layers that
    rescale pixels are left alone. A layer in float32 behind the others casts its inputs.
    """
    policy = precision if precision == "float32" else f"mixed_{precision}"
    parts = [part for layer in layers for part in layer._flatten_layers() if not isinstance(part, _DELICATE)]
    saved = [part.dtype_policy for part in parts]
    for part in parts:
        part.dtype_policy = policy
    try:
        yield
    finally:
        for part, before in zip(parts, saved, strict=True):
            part.dtype_policy = before


def scale_losses(optimizer: keras.optimizers.Optimizer, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer, for float16 within Keras' loss scaling: the scale is found while training and saved.

    The scale starts at 2^15; a step whose gradients overflow is left out and halves it.
    """
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "float16" else optimizer


class Network:
    """Backbone, pooling and head, one flat graph.

    Args:
        backbone: From images uint8 [n, h, w, 3] to its last map.
        pooled: The same graph with the pooling behind it, to features [n, d].
        head: Layers from features to logits [n, k], and one more from logits to probabilities; or those of each task by
            name. The logits of several tasks stand side by side.
        source_head: From the last map to the probabilities of the classes that the weights were trained on, frozen;
            only distillation from the source needs it.
        weighting: Leaves the logits as they are, and owns the weights of the tasks' losses; it is no part of the model.
    """

    def __init__(
        self,
        backbone: keras.Model,
        pooled: keras.Model,
        head: Sequence[keras.layers.Layer] | Mapping[str, Sequence[keras.layers.Layer]],
        name: str,
        source_head: keras.Model | None = None,
        weighting: keras.layers.Layer | None = None,
    ):
        self.heads = dict(head) if isinstance(head, Mapping) else {name: head}
        self.head = tuple(layer for layers in self.heads.values() for layer in layers)
        self.backbone, self.source_head, self.weighting = backbone, source_head, weighting
        if source_head is not None:
            freeze(source_head.layers)
        self.blocks = find_blocks(backbone)  # from input to output
        self.features = pooled.output  # the input of the head, a tensor of the graph
        logits = self._apply_heads(pooled.output)
        self._logits = self._join(logits)
        predictions: Any = {task: self.heads[task][-1](tensor) for task, tensor in logits.items()}
        if len(predictions) == 1:
            (predictions,) = predictions.values()
        # from images to probabilities, float32 [n, k], of several tasks by name
        self.model = keras.Model(pooled.input, predictions, name=name)
        layers = {layer.name: layer for layer in backbone.layers}  # bare operations are not among them
        self.groups = Groups(self.model, tuple(group_blocks(self.blocks, layers)), LayerGroup("head", self.head))

    def _apply_heads(self, features: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
        logits = dict.fromkeys(self.heads, features)
        for task, layers in self.heads.items():
            for layer in layers[:-1]:
                logits[task] = layer(logits[task])
        return logits

    def _join(self, logits: Mapping[str, keras.KerasTensor]) -> keras.KerasTensor:
        tensors = list(logits.values())
        joined = keras.ops.concatenate(tensors, axis=-1) if len(tensors) > 1 else tensors[0]
        return joined if self.weighting is None else self.weighting(joined)

    def suffix(self, cut: str) -> keras.Model:
        """The part behind a cut: IMAGES, POOLED, or the name of a cut of the backbone.

        It shares its variables with the whole, and its outputs are a dict: `features` [n, d], `logits` [n, k] and, with
        a source head, `source_logits` [n, classes of the source].
        """
        if cut == POOLED:
            tensor = keras.Input(self.features.shape[1:], name=POOLED)
            outputs = {"features": tensor, "logits": self._join(self._apply_heads(tensor))}
            return keras.Model(tensor, outputs, name="suffix")
        outputs = {"features": self.features, "logits": self._logits}
        if self.source_head is not None:
            outputs["source_logits"] = source_log_probabilities(self.backbone, self.source_head)
        start = self.model.input if cut == IMAGES else find_cut(self.backbone, cut).tensor
        return keras.Model(start, outputs, name="suffix")

    def take_heads(self, heads: Mapping[str, Sequence[keras.layers.Layer]]) -> None:
        """Copy the weights of other layers of the same shapes into each task's head."""
        for task, layers in heads.items():
            for own, other in zip(self.heads[task], layers, strict=True):
                own.set_weights(other.get_weights())

    def release(self) -> None:
        """Undo what stages have set, so that the model is a plain one."""
        for block in self.groups.blocks:
            unfreeze(block.layers)

    def list_trainable(self, stages: Iterable[Stage]) -> list[keras.Variable]:
        """Every variable that a stage trains, each once, those of the weighting last."""
        weighting = [] if self.weighting is None else self.weighting.trainable_variables
        return [*list_trainable(self.groups, stages), *weighting]

    def list_changing(self, stages: Iterable[Stage]) -> list[keras.Variable]:
        """Every variable that a stage can change, statistics and states of random layers included, each once."""
        total = len(self.blocks)
        first = total - max(stage.count_blocks(total) for stage in stages)
        layers = [*(layer for block in self.groups.blocks[first:] for layer in block.layers), *self.head]
        layers += [] if self.weighting is None else [self.weighting]
        return list({id(variable): variable for layer in layers for variable in layer.variables}.values())
