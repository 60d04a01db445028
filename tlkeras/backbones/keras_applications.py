"""Backbones as flat Keras graphs from uint8 images, with random weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
from keras import layers

from tlkeras.backbones import efficientnet_lite
from tlkeras.backbones.graph import clone_graph, is_named_by_keras, to_snake_case
from tlkeras.backbones.info import BackboneInfo

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


def create_model(info: BackboneInfo, size: int, top: bool) -> keras.Model:
    """One flat functional graph with random weights, from and to what `builder.build_backbone` describes."""
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    pixels = normalize(images, info.pixels)
    if info.family == "tiny":
        outputs = _connect_tiny(pixels, top)
    elif info.family == "efficientnet_lite":
        outputs = efficientnet_lite.connect(pixels, info.name, top)
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
        if not isinstance(operation, keras.Sequential):
            return _copy(operation)(tensor, *others, **arguments)
        for inner in operation.layers:
            tensor = _copy(inner)(tensor)
        return tensor

    return clone_graph(model, inputs, call)


def _copy(operation: Any) -> Any:
    return type(operation).from_config(operation.get_config())


def _fix_names(model: keras.Model) -> None:
    """Name layers that Keras named by a counter of the process alike in every process.

    The zeros keep them apart from names that Keras makes for layers which are added later.
    """
    counts: Counter[str] = Counter()
    for operation in model.operations:
        if is_named_by_keras(operation):
            kind = to_snake_case(type(operation).__name__)
            counts[kind] += 1
            operation.name = f"{kind}_{counts[kind]:03d}"


def _connect_tiny(x: keras.KerasTensor, top: bool) -> keras.KerasTensor:
    """Three residual blocks with batch norm, a few thousand weights: for tests and for trying things out."""
    x = _convolve(x, 8, 2, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for index, (filters, stride) in enumerate([(8, 1), (12, 2), (16, 2)], start=1):
        name = f"block{index}"
        shortcut = x if stride == 1 else _convolve(x, filters, stride, f"{name}_shortcut", kernel=1)
        x = layers.ReLU(name=f"{name}_1_relu")(_convolve(x, filters, stride, f"{name}_1"))
        x = layers.Add(name=f"{name}_add")([shortcut, _convolve(x, filters, 1, f"{name}_2")])
        x = layers.ReLU(name=f"{name}_out")(x)
    return efficientnet_lite.classify(x) if top else x


def _convolve(x: keras.KerasTensor, filters: int, stride: int, name: str, kernel: int = 3) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
