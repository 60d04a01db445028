"""Cheaper operations for training on a CPU, with the values and gradients of the layers' own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tlkeras.backbones.graph import OPERATIONS, find_pairs, fold, pass_on
from tlkeras.finetuning.freezing import calling, runs_in_inference

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
