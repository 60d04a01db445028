"""Batch normalization folded into the convolution before it, for inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tlkeras.backbones.graph import clone_graph, trace_calls

OPERATIONS: Mapping[type, Callable[..., Any]] = {
    keras.layers.Conv2D: ops.conv,
    keras.layers.DepthwiseConv2D: ops.depthwise_conv,
    keras.layers.SeparableConv2D: ops.separable_conv,
}
"""The convolution, by type of layer."""


def fold_batch_norm(model: keras.Model) -> Callable[[Any], Any]:
    """The model's inference function, with each batch norm folded into its convolution, from a tensor [n, ...].

    With s = gamma / sqrt(variance + epsilon), kernel becomes kernel * s and bias (bias - mean) * s + beta. The model is
    neither copied nor changed: its weights are read once, so that folded kernels are constant.
    """
    stand_ins: dict[int, Callable[..., Any]] = {}
    for convolution, norm in find_pairs(model):
        stand_ins[id(convolution)] = fold(convolution, norm)
        stand_ins[id(norm)] = pass_on

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return stand_ins.get(id(operation), operation)(*args, **kwargs)

    return lambda inputs: clone_graph(model, inputs, call)


def find_pairs(model: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """All pairs (convolution, batch norm) that compute the same when folded: no other layer uses the convolution."""
    calls = trace_calls(model)
    uses = Counter(id(call.operation) for call in calls)
    producers = {id(tensor): call.operation for call in calls for tensor in call.outputs}
    consumers = Counter(id(tensor) for call in calls for tensor in call.inputs)
    consumers.update(id(tensor) for tensor in model.outputs)
    pairs = []
    for call in calls:
        norm, tensor = call.operation, call.inputs[0]
        if type(norm) is not keras.layers.BatchNormalization or uses[id(norm)] > 1:
            continue
        convolution = producers.get(id(tensor))
        alone = uses[id(convolution)] == 1 and consumers[id(tensor)] == 1
        if alone and _is_foldable(convolution) and norm.axis in (-1, len(tensor.shape) - 1):
            pairs.append((convolution, norm))
    return pairs


def _is_foldable(layer: Any) -> bool:
    if type(layer) not in OPERATIONS or layer.activation is not keras.activations.linear:
        return False
    return layer.data_format == "channels_last" and layer.compute_dtype == "float32"


def fold(
    layer: keras.Layer, norm: keras.Layer, xp: Any = np, operations: Mapping[type, Callable[..., Any]] = OPERATIONS
) -> Callable[..., Any]:
    """The convolution of a pair from `find_pairs`, followed by its batch norm, as one function of a tensor.

    `xp` computes kernel and bias: numpy once, to constants; `keras.ops` in the graph that is being traced, so that they
    depend on the variables, which gradients reach. `operations` are the convolutions by type of layer.
    """
    scale = (xp.array(norm.gamma) if norm.scale else 1.0) / xp.sqrt(xp.array(norm.moving_variance) + norm.epsilon)
    bias = ((xp.array(layer.bias) if layer.use_bias else 0.0) - xp.array(norm.moving_mean)) * scale
    if norm.center:
        bias = bias + xp.array(norm.beta)
    kernels = _scale_kernels(layer, scale, xp)
    options = {name: getattr(layer, name) for name in ("strides", "padding", "data_format", "dilation_rate")}
    return lambda inputs, **_: operations[type(layer)](inputs, **kernels, **options) + bias


def _scale_kernels(layer: Any, scale: Any, xp: Any) -> dict[str, Any]:
    if isinstance(layer, keras.layers.SeparableConv2D):
        depthwise, pointwise = xp.array(layer.depthwise_kernel), xp.array(layer.pointwise_kernel)
        return {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise * scale}
    kernel = xp.array(layer.kernel)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        scale = xp.reshape(scale, kernel.shape[2:])  # [channels, multiplier]
    return {"kernel": kernel * scale}


def pass_on(inputs: Any, **_: Any) -> Any:
    """The inputs, of a batch norm that is folded into its convolution."""
    return inputs
