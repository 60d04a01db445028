"""Backbones as flat Keras graphs from uint8 images, with random weights.

EfficientNet-Lite 0, 1 and 2 (Tan and Le, 2019; github.com/tensorflow/tpu, models/official/efficientnet/lite) are built
here: no squeeze-and-excitation, ReLU6 instead of swish, stem and last convolution of fixed width.
"""

import itertools
import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from tlkeras.backbones.catalog import BackboneInfo
from tlkeras.backbones.graph import clone_graph, is_named_by_keras, to_snake_case
from tlkeras.config.image_size import ImageSize, height_and_width

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# pixels -> (scale, offset), as `keras.applications` and the authors of the weights normalise values of 0 to 255
_SCALING: dict[str, tuple[Any, Any]] = {
    "0..1": (1 / 255, 0.0),
    "-1..1": (1 / 127.5, -1.0),
    "x/128 - 1": (1 / 128, -1.0),
    "(x - 127)/128": (1 / 128, -127 / 128),
    "mean and deviation": (
        [1 / (255 * deviation) for deviation in _DEVIATION],
        [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
    ),
    "BGR minus mean": (1.0, [-103.939, -116.779, -123.68]),
}

# name -> (width multiplier, depth multiplier)
_MULTIPLIERS = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
# of each stage; the first and the last are not deepened
_REPEATS, _KERNELS, _STRIDES = (1, 2, 2, 3, 3, 4, 1), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS, _FILTERS = (1, 6, 6, 6, 6, 6, 6), (16, 24, 40, 80, 112, 192, 320)
_STEM_FILTERS, _TOP_FILTERS = 32, 1280
_STOCHASTIC_DEPTH = 0.2


def create_model(info: BackboneInfo, size: ImageSize, top: bool) -> keras.Model:
    """One flat functional graph with random weights, from and to what `builder.build_backbone` describes."""
    images = keras.Input((*height_and_width(size), 3), dtype="uint8", name="images")
    pixels = normalize(images, info.pixels)
    if info.family == "tiny":
        outputs = _connect_tiny(pixels, top)
    elif info.family == "efficientnet_lite":
        outputs = _connect_lite(pixels, info.name, top)
    else:
        outputs = _connect_application(pixels, info, top)
    model = keras.Model(images, outputs, name=info.name)
    _fix_names(model)
    return model


def normalize(images: keras.KerasTensor, pixels: str) -> keras.KerasTensor:
    """Pixels as a backbone was trained on them, from uint8 images, with layers of Keras' own."""
    scale, offset = _SCALING[pixels]
    if pixels.startswith("BGR"):
        images = keras.ops.flip(images, axis=-1)
    return layers.Rescaling(scale, offset, name="normalization")(images)


def _connect_application(pixels: keras.KerasTensor, info: BackboneInfo, top: bool) -> keras.KerasTensor:
    build = getattr(keras.applications, info.constructor)
    arguments: dict[str, Any] = {"weights": None, "include_top": top, "input_shape": tuple(pixels.shape[1:])}
    if info.family in ("convnext", "efficientnet_v2", "mobilenet_v3"):
        arguments["include_preprocessing"] = False
    if info.family in ("convnext", "efficientnet"):
        return _flatten(build(**arguments), pixels)
    return build(**arguments, input_tensor=pixels).output


def _flatten(model: keras.Model, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """A graph on other inputs, with new layers: without nested models, without its own normalisation."""

    def call(operation: Any, tensor: Any, *others: Any, **arguments: Any) -> Any:
        if isinstance(operation, (layers.Rescaling, layers.Normalization)):
            return tensor
        if isinstance(operation, keras.Sequential):
            for inner in operation.layers:
                tensor = call(inner, tensor)
            return tensor
        return type(operation).from_config(operation.get_config())(tensor, *others, **arguments)

    return clone_graph(model, inputs, call)


def _fix_names(model: keras.Model) -> None:
    """Name layers alike in every process; the zeros keep them apart from names that Keras makes later."""
    counts: Counter[str] = Counter()
    for operation in model.operations:
        if is_named_by_keras(operation):
            kind = to_snake_case(type(operation).__name__)
            counts[kind] += 1
            operation.name = f"{kind}_{counts[kind]:03d}"


def _connect_tiny(x: keras.KerasTensor, top: bool) -> keras.KerasTensor:
    """Three residual blocks with batch norm, a few thousand weights: for tests and for trying things out."""
    x = _convolve(x, 8, 3, 2, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for index, (filters, stride) in enumerate([(8, 1), (12, 2), (16, 2)], start=1):
        name = f"block{index}"
        shortcut = x if stride == 1 else _convolve(x, filters, 1, stride, f"{name}_shortcut")
        x = layers.ReLU(name=f"{name}_1_relu")(_convolve(x, filters, 3, stride, f"{name}_1"))
        x = layers.Add(name=f"{name}_add")([shortcut, _convolve(x, filters, 3, 1, f"{name}_2")])
        x = layers.ReLU(name=f"{name}_out")(x)
    return _classify(x) if top else x


class _Bottleneck(NamedTuple):
    name: str
    kernel: int
    stride: int
    expansion: int
    filters: int
    drop_rate: float


def _connect_lite(x: keras.KerasTensor, name: str, top: bool) -> keras.KerasTensor:
    x = _convolve(x, _STEM_FILTERS, 3, 2, "stem")
    x = layers.ReLU(6.0, name="stem_activation")(x)
    for bottleneck in _list_bottlenecks(name):
        x = _connect_bottleneck(x, bottleneck)
    x = _convolve(x, _TOP_FILTERS, 1, 1, "top")
    x = layers.ReLU(6.0, name="top_activation")(x)
    return _classify(x) if top else x


def _classify(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(0.2, name="top_dropout")(x)
    return layers.Dense(1000, activation="softmax", name="predictions")(x)


def convert_state_dict(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    """Weights of EfficientNet-Lite by layer, in Keras' order and layout, from a PyTorch state dict of any names."""
    layer_names = _pair_names(name)
    weights: dict[str, list[np.ndarray]] = {}
    for parameter in ("weight", "bias", "running_mean", "running_var"):
        for source, layer in layer_names.items():
            if (tensor := tensors.get(f"{source}.{parameter}")) is not None:
                weights.setdefault(layer, []).append(_transpose(tensor, source))
    return weights


def _list_bottlenecks(name: str) -> Iterator[_Bottleneck]:
    width, depth = _MULTIPLIERS[name]
    repeats = [_REPEATS[0], *(math.ceil(count * depth) for count in _REPEATS[1:-1]), _REPEATS[-1]]
    positions = itertools.count()
    stages = zip(repeats, _KERNELS, _STRIDES, _EXPANSIONS, _FILTERS, strict=True)
    for stage, (count, kernel, first, expansion, filters) in enumerate(stages, start=1):
        for letter in string.ascii_lowercase[:count]:
            name, stride = f"block{stage}{letter}", first if letter == "a" else 1
            drop_rate = _STOCHASTIC_DEPTH * next(positions) / sum(repeats)
            yield _Bottleneck(name, kernel, stride, expansion, _round_filters(filters * width), drop_rate)


def _round_filters(filters: float) -> int:
    """Round to a multiple of 8, never below nine tenths."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


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
