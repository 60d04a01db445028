"""The pretrained half."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import ConfigSection, as_tuple
from tlkeras.config.schema.handcrafted import HandcraftedConfig

NO_BACKBONE = "none"
"""The name of a backbone where there is none, and features are handcrafted alone."""
KERAS_HUB_PREFIX = "hub:"
"""What stands before the name of a preset of KerasHub."""


class BackboneConfig(ConfigSection):
    """Which pretrained network, at which image size."""

    name: str
    weights: str = "imagenet"
    size: int | None = Field(default=None, ge=1, le=4096)

    @model_validator(mode="before")
    @classmethod
    def _choose_weights(cls, values: Any) -> Any:
        """Without a network there are no weights; a preset of KerasHub comes with its own."""
        name = values.get("name") if isinstance(values, dict) else None
        if name == NO_BACKBONE:
            return {"weights": "none", **values}
        return (
            {"weights": "preset", **values} if isinstance(name, str) and name.startswith(KERAS_HUB_PREFIX) else values
        )

    @model_validator(mode="after")
    def _be_whole(self) -> BackboneConfig:
        if self.name == NO_BACKBONE and (self.size is None or self.weights != "none"):
            raise ValueError(
                "a backbone none has no weights, and size says how large the images are: set backbone.size."
            )
        return self


SelectionMethod = Literal["head2toe", "f_classif", "l2"]


class FeatureSelectionConfig(ConfigSection):
    """Which share of the features is kept, and by which score."""

    method: SelectionMethod = "head2toe"
    keep: float = Field(default=0.1, gt=0, le=1)


class FeaturesConfig(ConfigSection):
    """Where the backbone is read, how a map becomes a vector, what stands beside it, and which engine computes it.

    With `taps`, several blocks are read, by name or index, in the place of `cut`; `backbones` are more networks that
    see the same images, and `handcrafted` are features that no network makes. Each is then normalised, and all are
    one vector.
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
    def _see_one_image(self) -> FeaturesConfig:
        if any(backbone.name == NO_BACKBONE for backbone in self.backbones):
            raise ValueError("features.backbones are networks: leave none out.")
        if any(backbone.size is not None for backbone in self.backbones):
            raise ValueError("backbones see the images of backbone.size: leave their own size out.")
        if self.taps and self.cut != "last":
            raise ValueError(f"taps say where the backbone is read: leave cut out. Received: {self.cut!r}.")
        return self
