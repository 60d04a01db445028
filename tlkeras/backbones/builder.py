"""From a name of the catalog to a Keras model with weights."""

from __future__ import annotations

import os
from typing import Any

import keras

from tlkeras.backbones import kerashub
from tlkeras.backbones.blocks import find_blocks, find_cuts
from tlkeras.backbones.catalog import BackboneInfo, find_backbone
from tlkeras.backbones.keras_applications import create_model
from tlkeras.backbones.weights import find_weights, load_file
from tlkeras.errors import BackboneError


def build_backbone(
    name: str, *, size: int | None = None, weights: str | os.PathLike[str] = "imagenet", top: bool = False
) -> keras.Model:
    """Build a backbone as one flat functional graph that eats uint8 images, its normalisation inside.

    Args:
        name: Of the catalog, or `hub:PRESET` or `hub:FOLDER` of KerasHub.
        size: Height and width of the images in pixels. Defaults to the backbone's own.
        weights: "imagenet", "packaged", "preset" (of KerasHub), "none" (random) or a file: `.weights.h5`, `.h5`,
            `.keras`, `.pth`.
        top: Keep the ImageNet classifier.

    Returns:
        A model from `images`, uint8 [n, size, size, 3], to the last feature map, float32 [n, h, w, width], or with
        `top` to the probabilities of the 1,000 ImageNet classes, float32 [n, 1000].

    Raises:
        BackboneError: The name, size or weights cannot be had; said before anything is built where possible.
    """
    entry = find_backbone(name)
    size = _check_size(entry, size, top)
    file = find_weights(entry, weights, top)
    if entry.family == "hub":
        model = kerashub.construct(entry, size, pretrained=weights == "preset")
    else:
        model = create_model(entry, size, top)
    if file is not None:
        load_file(model, file)
    return model


def build_pretrained_classifier(
    name: str, backbone: keras.Model, weights: str | os.PathLike[str] = "imagenet"
) -> keras.Model:
    """Return the part of a pretrained network that `build` leaves out: what the weights were trained to tell.

    Args:
        name: As there.
        backbone: Made by `build`, whole.
        weights: As there.

    Returns:
        A model from the last feature map, float32 [n, h, w, width], to the probabilities of the 1,000 ImageNet classes,
        float32 [n, 1000].

    Raises:
        BackboneError: The weights have no such part, or it does not fit images of this size.
    """
    last = backbone.output._keras_history.operation.name
    whole = build_backbone(name, size=backbone.input_shape[1], weights=weights, top=True)
    maps = [layer.output for layer in whole.layers if layer.name == last]
    if not maps:
        raise BackboneError(
            "The source's classifier must follow the last map of the backbone.",
            f"that of {name} normalises after its pooling",
            "Choose another way to keep the source, or another family.",
        )
    return keras.Model(maps[0], whole.output, name=f"{backbone.name}_source_head")


def _check_size(entry: BackboneInfo, size: int | None, top: bool) -> int:
    if top and entry.family == "hub":
        raise BackboneError(
            "The ImageNet classifier is kept of backbones of the catalog.", entry.name, "Leave out what needs it."
        )
    if size is None:
        return entry.default_size
    if size < entry.minimum_size:
        raise BackboneError(
            f"{entry.name} needs images of at least {entry.minimum_size} x {entry.minimum_size} pixels.",
            f"size={size}",
            f"Its own size is {entry.default_size}.",
        )
    if top and entry.family == "vgg" and size != entry.default_size:
        raise BackboneError(
            f"The classifier of {entry.name} only fits images of {entry.default_size} pixels.",
            f"size={size}",
            "Leave the size out, or build it without its classifier.",
        )
    return size


def show_backbone(name: str, *, size: int | None = None) -> dict[str, Any]:
    """The blocks of a backbone, found in its graph: output shape, bytes, parameters, multiply-adds."""
    model = build_backbone(name, size=size, weights="none")
    blocks = [
        {
            "index": block.index,
            "name": block.name,
            "shape": list(block.cut.shape),
            "bytes": block.cut.bytes,
            "parameters": block.parameters,
            "multiply_adds": block.multiply_adds,
            "layers": len(block.layers),
        }
        for block in find_blocks(model)
    ]
    return {"name": model.name, "size": model.input_shape[1], "cuts": len(find_cuts(model)), "blocks": blocks}
