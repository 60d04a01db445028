"""Changing the backbone itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import (
    ConfigSection,
    Fraction,
    PositiveFloat,
    RegularizationStrength,
    auto_as_none,
    default_kind,
)


def _check_stages(value: Any) -> Any:
    if value not in ("auto", None) and not (isinstance(value, (list, tuple)) and value):
        raise ValueError(f"it must be 'auto' or a list of stages. Received: {value!r}.")
    return auto_as_none(value)


def _check_unfreeze(value: Any) -> Any:
    if type(value) not in (int, str) or not re.fullmatch(r"all|auto|\d+( blocks?)?", str(value)):
        raise ValueError(f"it must be a number of blocks such as '2 blocks', 'all' or 'auto'. Received: {value!r}.")
    return value


class StageConfig(ConfigSection):
    """A stretch of fine-tuning in which the same blocks train."""

    name: str = Field(min_length=1)
    unfreeze: Annotated[Any, AfterValidator(_check_unfreeze)]
    learning_rate: PositiveFloat = 3e-4
    epochs: int | None = Field(default=None, ge=1)
    until: Literal["plateau"] | None = None
    patience: int = Field(default=2, ge=1)
    max_epochs: int = Field(default=50, ge=1)
    backbone_lr_multiplier: PositiveFloat = 0.1
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    decay: Literal["cosine", "constant"] | None = None
    batch_norm: Literal["frozen", "affine", "reestimate", "train"] = "frozen"

    @model_validator(mode="after")
    def _have_one_end(self) -> StageConfig:
        if (self.epochs is None) == (self.until is None):
            raise ValueError(f"stage {self.name!r} takes either epochs or until: plateau.")
        return self


class SoftmaxConfig(ConfigSection):
    """Cross entropy: every image is of one class."""

    kind: Literal["softmax"] = "softmax"
    smoothing: Fraction = 0.0


class FocalConfig(ConfigSection):
    """Cross entropy in which images that are answered well count little."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0, le=10)
    smoothing: Fraction = 0.0


class SigmoidConfig(ConfigSection):
    """Cross entropy of a yes or no for each label; the default, and the only one, where `data.separator` is given."""

    kind: Literal["sigmoid"] = "sigmoid"
    smoothing: Fraction = 0.0


class NoRegularizerConfig(ConfigSection):
    """The source is kept by nothing but small rates."""

    kind: Literal["none"] = "none"


class L2SPConfig(ConfigSection):
    """L2-SP: weights are pulled towards the pretrained ones."""

    kind: Literal["l2sp"] = "l2sp"
    alpha: RegularizationStrength = 0.01
    beta: RegularizationStrength = 0.01
    batch_norm: bool = False


class BatchSpectralShrinkageConfig(ConfigSection):
    """BSS: the smallest singular values of a batch's features are shrunk."""

    kind: Literal["bss"] = "bss"
    eta: RegularizationStrength = 1e-3
    smallest: int = Field(default=1, ge=1)


class LearningWithoutForgettingConfig(ConfigSection):
    """LwF: the source's own classifier must go on answering as before."""

    kind: Literal["lwf"] = "lwf"
    weight: RegularizationStrength = 4.0
    temperature: float = Field(default=2.0, gt=0, le=100)


LossConfig = Annotated[
    Annotated[SoftmaxConfig | FocalConfig | SigmoidConfig, Field(discriminator="kind")], default_kind("softmax")
]

RegularizerConfig = Annotated[
    Annotated[
        NoRegularizerConfig | L2SPConfig | BatchSpectralShrinkageConfig | LearningWithoutForgettingConfig,
        Field(discriminator="kind"),
    ],
    default_kind("none"),
]


class FineTuningConfig(ConfigSection):
    """How the backbone itself is changed, stage by stage, after the head was fitted.

    Mixed precision pays on GPUs, where `precision: auto` takes it; on a CPU bfloat16 is slower than float32.
    """

    stages: Annotated[tuple[StageConfig, ...] | None, BeforeValidator(_check_stages)] = None
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "nadam", "lion", "muon"] = "adamw"
    batch_size: int = Field(default=32, ge=1, le=65_536)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    global_clipnorm: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    ema: Fraction = 0.0
    loss: LossConfig = SoftmaxConfig()
    weighting: Literal["fixed", "uncertainty", "pcgrad"] = "fixed"
    task_weights: dict[str, RegularizationStrength] | None = Field(default=None, min_length=1)
    regularizer: RegularizerConfig = NoRegularizerConfig()
    class_weight: Literal["none", "balanced"] = "none"
    balanced_sampling: bool = False
    monitor: Literal["loss", "accuracy", "roc_auc"] = "loss"
    keep: Literal["best", "last"] = "best"
    cache: Literal["auto", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensorboard: bool = False

    @model_validator(mode="after")
    def _decay_towards_one_point(self) -> FineTuningConfig:
        if self.weight_decay and self.regularizer.kind == "l2sp":
            raise ValueError("l2sp takes the place of weight decay: set weight_decay to 0.")
        return self
