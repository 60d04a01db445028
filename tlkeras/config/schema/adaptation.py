"""From one domain to another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tlkeras.config.schema.fields import ConfigSection, Names, RegularizationStrength

FINE_TUNING_METHODS = ("none", "dann", "cdan", "mmd", "deep_coral", "mcc")
"""Methods that a network can be fine-tuned by; all others align frozen features."""


class DomainAdaptationConfig(ConfigSection):
    """Which values of `data.domain` are labelled and which are to be answered, and what brings the two together.

    Labels of target images are never learned from: those of the test split measure, all others are not looked at.
    """

    source: Names = Field(min_length=1)
    target: Names = Field(min_length=1)
    method: Literal[
        "none", "coral", "transport", "subspace", "joint_pca", "tca", "jda", "dann", "cdan", "mmd", "deep_coral", "mcc"
    ] = "coral"
    components: int = Field(default=30, ge=1, le=4096)
    weight: RegularizationStrength | None = None
    correction: Literal["none", "confusion", "likelihood"] = "none"
