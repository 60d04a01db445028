"""The pretrained half."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tlkeras.sections.fields import Section


class Backbone(Section):
    """Which pretrained network, at which picture size."""

    name: str
    weights: str = "imagenet"
    size: int | None = Field(default=None, ge=1, le=4096)


class Selection(Section):
    """Which share of the features is kept, and by which score."""

    method: Literal["head2toe", "f_classif", "l2"] = "head2toe"
    keep: float = Field(default=0.1, gt=0, le=1)


class Features(Section):
    """Where the backbone is read, how a map becomes a vector, what stands beside it, and which engine computes it.

    With `taps`, several blocks are read, by name or index, in the place of `cut`; `backbones` are more networks that
    see the same pictures. Each is then normalised, and all are one vector.
    """

    cut: str | int = "last"
    taps: tuple[str | int, ...] = ()
    backbones: tuple[Backbone, ...] = ()
    selection: Selection | None = None
    pooling: Literal["average", "max", "both", "gem", "compact_bilinear"] = "average"
    precision: Literal["float16", "float32"] = "float32"
    engine: Literal["auto", "openvino", "tensorflow", "keras"] = "auto"
    cache: bool = True

    @model_validator(mode="after")
    def _see_one_picture(self) -> Features:
        if any(backbone.size is not None for backbone in self.backbones):
            raise ValueError("backbones see the pictures of backbone.size: leave their own size out.")
        if self.taps and self.cut != "last":
            raise ValueError(f"taps say where the backbone is read: leave cut out. Received: {self.cut!r}.")
        return self
