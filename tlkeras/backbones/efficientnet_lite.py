"""EfficientNet-Lite 0, 1 and 2 (Tan and Le, 2019; github.com/tensorflow/tpu, models/official/efficientnet/lite).

No squeeze-and-excitation, ReLU6 instead of swish, stem and last convolution of fixed width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

# name -> (width multiplier, depth multiplier)
_MULTIPLIERS = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
# (repeats, kernel, stride, expansion, filters) of each stage
_STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
_STEM_FILTERS, _TOP_FILTERS = 32, 1280
_STOCHASTIC_DEPTH = 0.2


@dataclass(frozen=True)
class _Bottleneck:
    name: str
    kernel: int
    stride: int
    expansion: int
    filters: int
    drop_rate: float


def connect(x: keras.KerasTensor, name: str, top: bool) -> keras.KerasTensor:
    """The last feature map, [n, h/32, w/32, 1280], of normalised pixels, float32 [n, h, w, 3]."""
    x = _convolve(x, _STEM_FILTERS, 3, 2, "stem")
    x = layers.ReLU(6.0, name="stem_activation")(x)
    for bottleneck in _list_bottlenecks(name):
        x = _connect_bottleneck(x, bottleneck)
    x = _convolve(x, _TOP_FILTERS, 1, 1, "top")
    x = layers.ReLU(6.0, name="top_activation")(x)
    return classify(x) if top else x


def classify(x: keras.KerasTensor) -> keras.KerasTensor:
    """Probabilities of the 1,000 ImageNet classes, float32 [n, 1000]."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(0.2, name="top_dropout")(x)
    return layers.Dense(1000, activation="softmax", name="predictions")(x)


def convert(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    """Weights by layer name, in Keras' order and layout, from a PyTorch state dict.

    Tensors with other names are left out, so that loading can name the layers that have none.
    """
    layer_names = _pair_names(name)
    weights: dict[str, list[np.ndarray]] = {}
    for parameter in ("weight", "bias", "running_mean", "running_var"):
        for source, layer in layer_names.items():
            tensor = tensors.get(f"{source}.{parameter}")
            if tensor is not None:
                weights.setdefault(layer, []).append(_transpose(tensor, source))
    return weights


def _list_bottlenecks(name: str) -> Iterator[_Bottleneck]:
    width, depth = _MULTIPLIERS[name]
    first_and_last = (0, len(_STAGES) - 1)
    # the first and the last stage are not deepened
    repeats = [r if i in first_and_last else math.ceil(r * depth) for i, (r, *_) in enumerate(_STAGES)]
    position = 0
    for stage, (_, kernel, stride, expansion, filters) in enumerate(_STAGES):
        for repeat in range(repeats[stage]):
            block, here = f"block{stage + 1}{chr(ord('a') + repeat)}", stride if repeat == 0 else 1
            drop_rate = _STOCHASTIC_DEPTH * position / sum(repeats)
            yield _Bottleneck(block, kernel, here, expansion, _round_filters(filters * width), drop_rate)
            position += 1


def _round_filters(filters: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below nine tenths."""
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * filters else rounded + divisor


def _connect_bottleneck(inputs: keras.KerasTensor, block: _Bottleneck) -> keras.KerasTensor:
    x, channels = inputs, inputs.shape[-1]
    if block.expansion > 1:
        x = _convolve(x, channels * block.expansion, 1, 1, f"{block.name}_expand")
        x = layers.ReLU(6.0, name=f"{block.name}_expand_activation")(x)
    options = {"padding": "same", "use_bias": False, "name": f"{block.name}_dwconv"}
    x = layers.DepthwiseConv2D(block.kernel, block.stride, **options)(x)
    x = layers.BatchNormalization(epsilon=1e-3, name=f"{block.name}_bn")(x)
    x = layers.ReLU(6.0, name=f"{block.name}_activation")(x)
    x = _convolve(x, block.filters, 1, 1, f"{block.name}_project")
    if block.stride > 1 or channels != block.filters:
        return x
    x = layers.Dropout(block.drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block.name}_drop")(x)
    return layers.Add(name=f"{block.name}_add")([x, inputs])


def _convolve(x: keras.KerasTensor, filters: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)


def _pair_names(name: str) -> dict[str, str]:
    """Our layer names by the state dict's module names."""
    pairs = {"_conv_stem": "stem_conv", "_bn0": "stem_bn"}
    theirs = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    ours = ("expand_conv", "expand_bn", "dwconv", "bn", "project_conv", "project_bn")
    for index, block in enumerate(_list_bottlenecks(name)):
        names = zip(theirs, ours, strict=True)
        pairs |= {f"_blocks.{index}.{source}": f"{block.name}_{layer}" for source, layer in names}
    return pairs | {"_conv_head": "top_conv", "_bn1": "top_bn", "_fc": "predictions"}


def _transpose(tensor: np.ndarray, source: str) -> np.ndarray:
    """PyTorch [out, in, h, w] and [out, in] to Keras [h, w, in, out] and [in, out]; depthwise to [h, w, in, 1]."""
    if tensor.ndim == 4:
        return tensor.transpose((2, 3, 0, 1) if source.endswith("_depthwise_conv") else (2, 3, 1, 0))
    return tensor.T
