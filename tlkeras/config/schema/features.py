"""Sections `backbone` and `features`, handcrafted ones among them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tlkeras.config.image_size import ImageSize, read_size
from tlkeras.config.schema.fields import ConfigSection, as_tuple

NO_BACKBONE = "none"
"""The name of a backbone where there is none and all features are handcrafted."""
KERAS_HUB_PREFIX = "hub:"
"""Prefix of the names of KerasHub's presets."""


class BackboneConfig(ConfigSection):
    """The pretrained network, its weights and the image size: a side, or height and width, such as [224, 320]."""

    name: str
    weights: str = "imagenet"
    size: Annotated[ImageSize | None, BeforeValidator(read_size)] = None

    @model_validator(mode="before")
    @classmethod
    def _choose_weights(cls, values: Any) -> Any:
        """Default weights: none without a network, a KerasHub preset's own."""
        name = values.get("name") if isinstance(values, dict) else None
        if name == NO_BACKBONE:
            return {"weights": "none", **values}
        return (
            {"weights": "preset", **values} if isinstance(name, str) and name.startswith(KERAS_HUB_PREFIX) else values
        )

    @model_validator(mode="after")
    def _check_none(self) -> BackboneConfig:
        if self.name == NO_BACKBONE and (self.size is None or self.weights != "none"):
            raise ValueError("the backbone none has no weights and needs the size of the images: set backbone.size.")
        return self


SelectionMethod = Literal["head2toe", "f_classif", "l2"]


class FeatureSelectionConfig(ConfigSection):
    """The share of the features that is kept, and the score to choose them by."""

    method: SelectionMethod = "head2toe"
    keep: float = Field(default=0.1, gt=0, le=1)


class SiftConfig(ConfigSection):
    """Local descriptors on a grid or at keypoints, as one vector of a codebook learned on training images."""

    kind: Literal["sift"]
    detector: Literal["dense", "keypoint"] = "dense"
    encoding: Literal["vlad", "fisher", "words"] = "vlad"
    words: int = Field(default=64, ge=2, le=4096)
    components: int = Field(default=64, ge=1, le=128)
    step: int = Field(default=8, ge=1)
    sizes: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field(default=(4, 8, 12), min_length=1)


class HogConfig(ConfigSection):
    """Histograms of oriented gradients in cells."""

    kind: Literal["hog"]
    cell: int = Field(default=16, ge=2)
    orientations: int = Field(default=9, ge=2, le=64)


class LbpConfig(ConfigSection):
    """Local binary patterns in a grid of cells."""

    kind: Literal["lbp"]
    points: int = Field(default=8, ge=4, le=24)
    radius: int = Field(default=1, ge=1, le=16)
    grid: int = Field(default=4, ge=1, le=32)


class ColorHistogramConfig(ConfigSection):
    """Histograms of hue, saturation and value in a grid of cells."""

    kind: Literal["colour"]
    bins: int = Field(default=4, ge=2, le=16)
    grid: int = Field(default=2, ge=1, le=32)


def _as_kind(value: object) -> object:
    """A word alone as the kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


HandcraftedConfig = Annotated[
    Annotated[SiftConfig | HogConfig | LbpConfig | ColorHistogramConfig, Field(discriminator="kind")],
    BeforeValidator(_as_kind),
]


class FeaturesConfig(ConfigSection):
    """The cut of the backbone, pooling of its map, further features, and the engine that computes them.

    `taps` are several blocks, by name or index, in place of `cut`; `backbones` are more networks on the same images,
    and `handcrafted` are features without a network. Each part is then normalised, and all are concatenated.
    """

    cut: str | int = "last"
    taps: tuple[str | int, ...] = ()
    backbones: tuple[BackboneConfig, ...] = ()
    handcrafted: Annotated[tuple[HandcraftedConfig, ...], BeforeValidator(as_tuple)] = ()
    selection: FeatureSelectionConfig | None = None
    pooling: Literal["average", "max", "both", "gem", "compact_bilinear"] = "average"
    precision: Literal["float16", "float32"] = "float32"
    engine: Literal["auto", "openvino", "tensorflow", "keras"] = "auto"
    cache: bool = True

    @model_validator(mode="after")
    def _check_parts(self) -> FeaturesConfig:
        if any(backbone.name == NO_BACKBONE for backbone in self.backbones):
            raise ValueError("backbones are networks: remove none.")
        if any(backbone.size is not None for backbone in self.backbones):
            raise ValueError("backbones take images of backbone.size: remove their own size.")
        if self.taps and self.cut != "last":
            raise ValueError(f"taps replace cut: remove cut. Received: {self.cut!r}.")
        return self
