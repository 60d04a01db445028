"""Handcrafted features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tlkeras.config.schema.fields import ConfigSection


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
