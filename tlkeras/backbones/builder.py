"""From a name of the catalog to a Keras model with weights."""

import os
from dataclasses import dataclass

import keras

from tlkeras.backbones import kerashub
from tlkeras.backbones.architectures import create_model
from tlkeras.backbones.blocks import find_blocks, find_cuts
from tlkeras.backbones.catalog import BackboneInfo, find_backbone
from tlkeras.backbones.weights import find_weights, load_file
from tlkeras.config.image_size import ImageSize, format_size, height_and_width, simplify_size
from tlkeras.errors import BackboneError
from tlkeras.results import Result


@dataclass(frozen=True)
class BlockSummary(Result):
    """Sizes of one block: of its output for one image, in float16 the bytes; weights; number of layers."""

    index: int
    name: str
    shape: tuple[int, ...]
    bytes: int
    parameters: int
    multiply_adds: int
    layers: int


@dataclass(frozen=True)
class BackboneResult(Result):
    """The blocks of a backbone from input to output; the number of its cuts; the size of its images, pixels."""

    name: str
    size: ImageSize
    cuts: int
    blocks: tuple[BlockSummary, ...]


def build_backbone(
    name: str, *, size: ImageSize | None = None, weights: str | os.PathLike[str] = "imagenet", top: bool = False
) -> keras.Model:
    """A backbone as one flat functional graph from uint8 images, with its normalisation inside.

    From `images`, uint8 [n, h, w, 3], to the last feature map, float32 [n, h, w, width], or with `top` to the
    probabilities of the 1,000 ImageNet classes, float32 [n, 1000]. The name is one of the catalog, or `hub:PRESET` or
    `hub:FOLDER` of KerasHub; the size, a side or (height, width), defaults to its own. Weights are "imagenet",
    "packaged", "preset" (of KerasHub), "none" (random) or a file: `.weights.h5`, `.h5`, `.keras`, `.pth`. A
    BackboneError is raised for an unknown name, a size that does not fit, or weights that are not available.
    """
    info = find_backbone(name)
    size = _check_size(info, size, top)
    file = find_weights(info, weights, top)
    if info.family == "hub":
        model = kerashub.build_preset(name, size, pretrained=weights == "preset")
    else:
        model = create_model(info, size, top)
    if file is not None:
        load_file(model, file)
    return model


def build_pretrained_classifier(
    name: str, backbone: keras.Model, weights: str | os.PathLike[str] = "imagenet"
) -> keras.Model:
    """The classifier of a pretrained network: from the backbone's last map to ImageNet's classes, float32 [n, 1000].

    A BackboneError is raised if the weights have no such part, or it does not fit images of this size.
    """
    last = backbone.output._keras_history.operation.name
    whole = build_backbone(name, size=simplify_size(backbone.input_shape[1:3]), weights=weights, top=True)
    maps = [layer.output for layer in whole.layers if layer.name == last]
    if not maps:
        rule = "The backbone's ImageNet classifier does not follow its last feature map."
        way_out = "Choose another regularizer, or another family."
        raise BackboneError(rule, f"{name}, which normalises after its pooling", way_out)
    return keras.Model(maps[0], whole.output, name=f"{backbone.name}_source_head")


def _check_size(info: BackboneInfo, size: ImageSize | None, top: bool) -> ImageSize:
    if top and info.family == "hub":
        rule = "Presets of KerasHub come without an ImageNet classifier."
        raise BackboneError(rule, info.name, "Choose a backbone of the catalog.")
    if size is None:
        return info.default_size
    if min(height_and_width(size)) < info.minimum_size:
        rule = f"{info.name} needs images of at least {info.minimum_size} x {info.minimum_size} pixels."
        raise BackboneError(rule, f"size={format_size(size)}", f"Its own size is {info.default_size}.")
    if top and info.family == "vgg" and size != info.default_size:
        rule = f"The classifier of {info.name} only fits images of {info.default_size} pixels."
        raise BackboneError(
            rule, f"size={format_size(size)}", "Leave the size out, or build it without its classifier."
        )
    return size


def show_backbone(name: str, *, size: ImageSize | None = None) -> BackboneResult:
    """The blocks of a backbone, found in its graph: output shape, bytes, parameters, multiply-adds."""
    model = build_backbone(name, size=size, weights="none")
    blocks = tuple(
        BlockSummary(one.index, one.name, one.shape, one.cut.bytes, one.parameters, one.multiply_adds, len(one.layers))
        for one in find_blocks(model)
    )
    return BackboneResult(model.name, simplify_size(model.input_shape[1:3]), len(find_cuts(model)), blocks)
