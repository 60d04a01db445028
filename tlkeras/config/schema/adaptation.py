"""Section `domain_adaptation`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tlkeras.config.schema.fields import ConfigSection, Names, RegularizationStrength

NETWORK_METHODS = ("dann", "cdan", "mmd", "deep_coral", "mcc")
"""Methods that train a network in the place of the recipe's head."""

FINE_TUNING_METHODS = ("none", *NETWORK_METHODS)
"""Methods that fine-tuning supports; all others align frozen features."""


class DomainAdaptationConfig(ConfigSection):
    """The values of `data.domain` that are the labelled source and the target, and the method of adaptation.

    Labels of target images are never learned from: those of the test split are evaluated on, all others are ignored.
    """

    source: Names = Field(min_length=1)
    target: Names = Field(min_length=1)
    method: Literal[
        "none", "coral", "transport", "subspace", "joint_pca", "tca", "jda", "dann", "cdan", "mmd", "deep_coral", "mcc"
    ] = "coral"
    components: int = Field(default=30, ge=1, le=4096)
    weight: RegularizationStrength | None = None
    correction: Literal["none", "confusion", "likelihood"] = "none"
