"""The section `finetuning`, and the one definition of a stage, a loss and a regularizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from tlkeras.config.schema.fields import (
    ConfigSection,
    Fraction,
    PositiveFloat,
    RegularizationStrength,
    auto_as_none,
    default_kind,
)
from tlkeras.errors import RecipeError, suggest

BatchNorm = Literal["frozen", "affine", "reestimate", "train"]
Decay = Literal["cosine", "constant"]
Keep = Literal["best", "last"]


def _check_stages(value: Any) -> Any:
    if value not in ("auto", None) and not (isinstance(value, (list, tuple)) and value):
        raise ValueError(f"it must be 'auto' or a list of stages. Received: {value!r}.")
    return auto_as_none(value)


def parse_unfreeze(value: Any) -> int | str:
    """The number of blocks to unfreeze, from 2 or "2 blocks"; "all" and "auto" as they are.

    ValueError if it is none of these: a sentence that names the nearest.
    """
    if value in ("all", "auto") or (type(value) is int and value >= 0):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)( blocks?)?", value)):
        return int(match[1])
    number = re.match(r"\d+", str(value))
    nearest = f"Did you mean '{number[0]} blocks'?" if number else suggest(str(value), ["2 blocks", "all", "auto"])
    raise ValueError(f"expected a number of blocks, 'all' or 'auto'. Received: {value!r}. {nearest}")


def _check_unfreeze(value: Any) -> Any:
    """The value as it was written, so that a recipe is stored as its author wrote it."""
    parse_unfreeze(value)
    return value


class Stage(ConfigSection):
    """A stretch of fine-tuning in which the same blocks train: `Stage("head", 0, 1e-3, epochs=5)`.

    A RecipeError names all values that cannot be used.

    Attributes:
        unfreeze: Blocks that train, counted from the top: a number, "2 blocks", "all", or "auto" (all, each at a rate
            found from its gradients; the multipliers are the ceiling).
        warmup: Epochs, or a part of one, in which the rate rises linearly to its peak.
        decay: "cosine" lets the rate fall to zero at the end of the stage's full length, "constant" keeps it; None is
            cosine for a stage of exact length, constant until a plateau.
        batch_norm: Batch norm in blocks that train: "frozen" changes nothing, "affine" trains scale and offset,
            "reestimate" recomputes the statistics before the stage, "train" trains it as Keras does.
    """

    name: str = Field(min_length=1)  # shown in logs and charts
    unfreeze: Annotated[Any, AfterValidator(_check_unfreeze)]
    learning_rate: PositiveFloat = 3e-4  # peak rate of the head
    epochs: int | None = Field(default=None, ge=1)  # exact length; None for a stage that trains until the plateau
    until: Literal["plateau"] | None = None  # "plateau" ends the stage when the monitored value stops improving
    patience: int = Field(default=2, ge=1)  # epochs without improvement that end a plateau stage
    max_epochs: int = Field(default=50, ge=1)  # end of a plateau stage that never stops improving
    backbone_lr_multiplier: PositiveFloat = 0.1  # rate of the topmost block, as a fraction of the head's
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # rate of each block, as a fraction of the one above it
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    decay: Decay | None = None
    batch_norm: BatchNorm = "frozen"

    def __init__(self, name: str, unfreeze: int | str, learning_rate: float = 3e-4, **options: Any):
        values = {"name": name, "unfreeze": unfreeze, "learning_rate": learning_rate, **options}
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = [_explain_problem(problem) for problem in error.errors()]
            raise RecipeError.from_problems(f"Stage {name!r} cannot be used:", problems) from None

    # recipes are validated past this function, so that pydantic sees all problems of all stages at once
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _check_length(self) -> Stage:
        if (self.epochs is None) == (self.until is None):
            received = "neither" if self.until is None else "both"
            raise ValueError(f"stage {self.name!r} takes either epochs or until: plateau. Received: {received}.")
        if self.warmup >= self.length:
            raise ValueError(f"warmup must be shorter than stage {self.name!r}. Received: {self.warmup!r} epochs.")
        return self

    @property
    def length(self) -> int:
        """Epochs of the stage, at most."""
        return self.max_epochs if self.epochs is None else self.epochs

    @property
    def decays(self) -> bool:
        """Whether the rate falls as a cosine."""
        return (self.decay or ("constant" if self.until else "cosine")) == "cosine"

    def count_blocks(self, total: int) -> int:
        """Blocks that train, of the backbone's `total`; RecipeError if there are fewer."""
        unfreeze = parse_unfreeze(self.unfreeze)
        count = total if isinstance(unfreeze, str) else unfreeze
        if count > total:
            rule = f"Stage {self.name!r} unfreezes more blocks than the backbone has."
            raise RecipeError(rule, f"{count} of {total}", "All of them is `all`.")
        return count

    def multipliers(self, total: int) -> tuple[float, ...]:
        """Rate of each block as a fraction of the head's, from input to output; 0.0 where it is frozen.

        Rates that shrink from block to block are those of ULMFiT (Howard and Ruder, 2018). Errors as `count_blocks`.
        """
        count = self.count_blocks(total)
        training = [self.backbone_lr_multiplier * self.layer_decay**depth for depth in range(count)]
        return (*[0.0] * (total - count), *reversed(training))


def _explain_problem(problem: Mapping[str, Any]) -> str:
    """A pydantic error of a stage as a sentence."""
    key, received, context = ".".join(map(str, problem["loc"])), problem["input"], problem.get("ctx", {})
    if problem["type"] == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}. {suggest(key, Stage.model_fields)}"
    nearest = ""
    if problem["type"] == "literal_error":
        nearest = " " + suggest(str(received), re.findall(r"'(.*?)'", context["expected"]))
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}. Received: {received!r}.{nearest}"


class SoftmaxConfig(ConfigSection):
    """Cross entropy: every image is of one class."""

    kind: Literal["softmax"] = "softmax"
    smoothing: Fraction = 0.0  # of the target, spread evenly over all classes (Szegedy et al., CVPR 2016, section 7)


class FocalConfig(ConfigSection):
    """Cross entropy in which images that are predicted well count little."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0, le=10)  # how fast they stop to count; 0 gives the cross entropy
    smoothing: Fraction = 0.0  # as in `SoftmaxConfig`


class SigmoidConfig(ConfigSection):
    """Binary cross entropy of each label; the default, and the only one, where `data.separator` is given."""

    kind: Literal["sigmoid"] = "sigmoid"
    smoothing: Fraction = 0.0  # fraction of each target moved to one half


class NoRegularizerConfig(ConfigSection):
    """No term of the loss keeps the source."""

    kind: Literal["none"] = "none"


class L2SPConfig(ConfigSection):
    """L2-SP: weights are pulled towards the pretrained ones."""

    kind: Literal["l2sp"] = "l2sp"
    alpha: RegularizationStrength = 0.01  # strength for the backbone
    beta: RegularizationStrength = 0.01  # strength for the head, pulled towards zero
    batch_norm: bool = False  # whether gamma and beta of batch norm are pulled as well


class BatchSpectralShrinkageConfig(ConfigSection):
    """BSS: the smallest singular values of a batch's features are shrunk."""

    kind: Literal["bss"] = "bss"
    eta: RegularizationStrength = 1e-3
    smallest: int = Field(default=1, ge=1)  # number of singular values that are shrunk


class LearningWithoutForgettingConfig(ConfigSection):
    """LwF: the source's own classifier is held to its predictions from before training."""

    kind: Literal["lwf"] = "lwf"
    weight: RegularizationStrength = 4.0
    temperature: float = Field(default=2.0, gt=0, le=100)  # divisor of the logits


_Losses = SoftmaxConfig | FocalConfig | SigmoidConfig
_Regularizers = NoRegularizerConfig | L2SPConfig | BatchSpectralShrinkageConfig | LearningWithoutForgettingConfig
LossConfig = Annotated[Annotated[_Losses, Field(discriminator="kind")], default_kind("softmax")]
RegularizerConfig = Annotated[Annotated[_Regularizers, Field(discriminator="kind")], default_kind("none")]


class FineTuningConfig(ConfigSection):
    """How the backbone itself is changed, stage by stage, after the head was fitted.

    Mixed precision pays on GPUs, where `precision: auto` takes it; on a CPU bfloat16 is slower than float32.
    """

    stages: Annotated[tuple[Stage, ...] | None, BeforeValidator(_check_stages)] = None
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
    keep: Keep = "best"
    cache: Literal["auto", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check_weight_decay(self) -> FineTuningConfig:
        if self.weight_decay and self.regularizer.kind == "l2sp":
            raise ValueError("l2sp takes the place of weight decay: set weight_decay to 0.")
        return self
