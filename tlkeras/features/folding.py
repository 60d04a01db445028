"""Batch normalization folded into the convolution before it, for inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from tlkeras.backbones.graph import repeat_graph, trace_calls


def fold_batch_norm(model: keras.Model) -> Callable[[Any], Any]:
    """Return the model's inference function, each convolution having taken in its batch norm.

    With s = gamma / sqrt(variance + epsilon), kernel becomes kernel * s and bias (bias - mean) * s + beta.
    Only pairs are folded whose batch norm is the sole consumer of the convolution; the rest runs as it is.
    The model is neither copied nor changed: its weights are read once, so what is folded is constant.

    Args:
        model: A functional model with channels last.

    Returns:
        A function of a float or integer tensor [n, ...] to the model's outputs, made to be traced once.
    """
    stand_ins: dict[int, Callable[..., Any]] = {}
    for convolution, norm in _find_pairs(model):
        stand_ins[id(convolution)] = _fold(convolution, norm)
        stand_ins[id(norm)] = _pass_on

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return stand_ins.get(id(operation), operation)(*args, **kwargs)

    return lambda inputs: repeat_graph(model, inputs, call)


def _find_pairs(model: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Return (convolution, batch norm) of all pairs that compute the same when folded."""
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
    return (
        type(layer) in _CONVOLUTIONS
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and layer.compute_dtype == "float32"
    )


def _fold(layer: keras.Layer, norm: keras.Layer) -> Callable[..., Any]:
    """Return the convolution of `layer` followed by `norm` as one function."""
    mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    scale = (np.asarray(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    bias = ((np.asarray(layer.bias) if layer.use_bias else 0.0) - mean) * scale
    if norm.center:
        bias = bias + np.asarray(norm.beta)
    convolve = _CONVOLUTIONS[type(layer)](layer, scale)
    options = {
        "strides": layer.strides,
        "padding": layer.padding,
        "data_format": layer.data_format,
        "dilation_rate": layer.dilation_rate,
    }
    return lambda inputs, **_: convolve(inputs, **options) + bias


def _fold_plain(layer: keras.Layer, scale: np.ndarray) -> Callable[..., Any]:
    return partial(ops.conv, kernel=np.asarray(layer.kernel) * scale)


def _fold_depthwise(layer: keras.Layer, scale: np.ndarray) -> Callable[..., Any]:
    kernel = np.asarray(layer.kernel)  # [height, width, channels, multiplier]
    return partial(ops.depthwise_conv, kernel=kernel * scale.reshape(kernel.shape[2:]))


def _fold_separable(layer: keras.Layer, scale: np.ndarray) -> Callable[..., Any]:
    return partial(
        ops.separable_conv,
        depthwise_kernel=np.asarray(layer.depthwise_kernel),
        pointwise_kernel=np.asarray(layer.pointwise_kernel) * scale,
    )


_CONVOLUTIONS: dict[type, Callable[[Any, np.ndarray], Callable[..., Any]]] = {
    keras.layers.Conv2D: _fold_plain,
    keras.layers.DepthwiseConv2D: _fold_depthwise,
    keras.layers.SeparableConv2D: _fold_separable,
}


def _pass_on(inputs: Any, **_: Any) -> Any:
    return inputs
