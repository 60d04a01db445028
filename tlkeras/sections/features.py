"""The pretrained half."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tlkeras.sections.fields import Section


class Backbone(Section):
    """Which pretrained network, at which picture size."""

    name: str
    weights: str = "imagenet"
    size: int | None = Field(default=None, ge=1, le=4096)


class Features(Section):
    """Where the backbone is cut, how the map becomes a vector, and which engine computes it."""

    cut: str | int = "last"
    pooling: Literal["average", "max"] = "average"
    precision: Literal["float16", "float32"] = "float32"
    engine: Literal["auto", "openvino", "tensorflow", "keras"] = "auto"
    cache: bool = True
