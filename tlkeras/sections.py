"""The sections of a recipe: frozen objects that refuse unknown keys and values of another type."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """What all sections share: unknown keys are refused, values keep their types, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_strength(value: Any) -> Any:
    if value != "auto" and not (type(value) in (int, float) and 0 < value < math.inf):
        raise ValueError(f"it must be 'auto' or a number above 0. Received: {value!r}.")
    return value


def _auto_as_none(value: Any) -> Any:
    return None if value == "auto" else value


def _check_stages(value: Any) -> Any:
    if value not in ("auto", None) and not (isinstance(value, (list, tuple)) and value):
        raise ValueError(f"it must be 'auto' or a list of stages. Received: {value!r}.")
    return _auto_as_none(value)


def _kind_by_default(kind: str) -> BeforeValidator:
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


def _check_policy(value: Any) -> Any:
    steps = isinstance(value, (list, tuple)) and value and all(isinstance(step, dict) for step in value)
    if not (steps or isinstance(value, str)):
        raise ValueError(f"it must be the name of a policy or a list of operations. Received: {value!r}.")
    return value if isinstance(value, str) else tuple(value)


def _check_unfreeze(value: Any) -> Any:
    if type(value) not in (int, str) or not re.fullmatch(r"all|auto|\d+( blocks?)?", str(value)):
        raise ValueError(f"it must be a number of blocks such as '2 blocks', 'all' or 'auto'. Received: {value!r}.")
    return value


Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Data(Section):
    """Which pictures, which column is the label, and who is held out.

    With a separator, a cell of the label column holds any number of labels: "dog|night"; an empty one says that there
    is none of them, and "?" that nobody has looked.
    """

    source: str = Field(min_length=1)
    label: str | None = None
    separator: str | None = Field(default=None, min_length=1)
    weight: str | None = None
    group: str | None = None
    domain: str | None = None
    stratify: Names | None = None
    validation: Share = 0.0
    test: Share = 0.2
    tolerance: Share = 0.25
    resize: Literal["squash", "crop", "pad"] = "squash"
    limit: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Data:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test must be below 1. Received: {self.validation:g} + {self.test:g}.")
        if self.test == 0:
            raise ValueError("test must be above 0, or there is nothing to measure on. Received: 0.")
        return self


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


class Linear(Section):
    """Multinomial logistic regression on the cached features."""

    kind: Literal["linear"] = "linear"
    C: Annotated[Literal["auto"] | float, BeforeValidator(_check_strength)] = "auto"
    folds: int = Field(default=5, ge=2)
    class_weight: Literal["none", "balanced"] = "none"


class Deep(Section):
    """A multi-layer perceptron on the cached features."""

    kind: Literal["deep"] = "deep"
    widths: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (256,)
    dropout: Share = 0.3
    batch_norm: bool = False
    class_weight: Literal["none", "balanced"] = "none"


class Augmentation(Section):
    """What is done to the pictures that the backbone is fine-tuned on, and in how many views of each."""

    policy: Annotated[Any, AfterValidator(_check_policy)] = "none"
    views: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, BeforeValidator(_auto_as_none)] = None
    mixup: float = Field(default=0.0, ge=0, le=10)


class Stage(Section):
    """A stretch of fine-tuning in which the same blocks train."""

    name: str = Field(min_length=1)
    unfreeze: Annotated[Any, AfterValidator(_check_unfreeze)]
    learning_rate: Rate = 3e-4
    epochs: int | None = Field(default=None, ge=1)
    until: Literal["plateau"] | None = None
    patience: int = Field(default=2, ge=1)
    max_epochs: int = Field(default=50, ge=1)
    backbone_ratio: Rate = 0.1
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    decay: Literal["cosine", "constant"] | None = None
    batch_norm: Literal["frozen", "affine", "reestimate", "train"] = "frozen"

    @model_validator(mode="after")
    def _have_one_end(self) -> Stage:
        if (self.epochs is None) == (self.until is None):
            raise ValueError(f"stage {self.name!r} takes either epochs or until: plateau.")
        return self


class Softmax(Section):
    """Cross entropy: every picture is of one class."""

    kind: Literal["softmax"] = "softmax"
    smoothing: Share = 0.0


class Focal(Section):
    """Cross entropy in which pictures that are answered well count little."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0, le=10)
    smoothing: Share = 0.0


class Sigmoid(Section):
    """Cross entropy of a yes or no for each label; the default, and the only one, where `data.separator` is given."""

    kind: Literal["sigmoid"] = "sigmoid"
    smoothing: Share = 0.0


class Nothing(Section):
    """The source is kept by nothing but small rates."""

    kind: Literal["none"] = "none"


class SourcePenalty(Section):
    """L2-SP: weights are pulled towards the pretrained ones."""

    kind: Literal["l2sp"] = "l2sp"
    alpha: Strength = 0.01
    beta: Strength = 0.01
    batch_norm: bool = False


class SpectralShrinkage(Section):
    """BSS: the smallest singular values of a batch's features are shrunk."""

    kind: Literal["bss"] = "bss"
    eta: Strength = 1e-3
    smallest: int = Field(default=1, ge=1)


class Distillation(Section):
    """LwF: the source's own classifier must go on answering as before."""

    kind: Literal["lwf"] = "lwf"
    weight: Strength = 4.0
    temperature: float = Field(default=2.0, gt=0, le=100)


Loss = Annotated[Annotated[Softmax | Focal | Sigmoid, Field(discriminator="kind")], _kind_by_default("softmax")]
KeepSource = Annotated[
    Annotated[Nothing | SourcePenalty | SpectralShrinkage | Distillation, Field(discriminator="kind")],
    _kind_by_default("none"),
]


class Finetuning(Section):
    """How the backbone itself is changed, stage by stage, after the head was fitted.

    Mixed precision pays on GPUs, where `precision: auto` takes it; on a CPU bfloat16 takes twice the time of float32.
    """

    stages: Annotated[tuple[Stage, ...] | None, BeforeValidator(_check_stages)] = None
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "nadam", "lion", "muon"] = "adamw"
    batch_size: int = Field(default=32, ge=1, le=65_536)
    accumulate: int = Field(default=1, ge=1, le=1024)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip_norm: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    average: Share = 0.0
    loss: Loss = Softmax()
    keep_source: KeepSource = Nothing()
    class_weight: Literal["none", "balanced"] = "none"
    balanced: bool = False
    monitor: Literal["loss", "accuracy", "roc_auc"] = "loss"
    keep: Literal["best", "last"] = "best"
    cache: Literal["auto", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensorboard: bool = False

    @model_validator(mode="after")
    def _decay_towards_one_point(self) -> Finetuning:
        if self.weight_decay and self.keep_source.kind == "l2sp":
            raise ValueError("l2sp takes the place of weight decay: set weight_decay to 0.")
        return self


class Training(Section):
    """How what has no closed form is trained: deep heads. The seed is every head's."""

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Rate = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


Head = Annotated[Annotated[Linear | Deep, Field(discriminator="kind")], _kind_by_default("linear")]


class Evaluation(Section):
    """How sure the figures are."""

    bootstrap: int = Field(default=2000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Cache(Section):
    """Where activations are kept, and how much of the disk they may take."""

    root: str | None = None
    budget_gb: float = Field(default=50.0, gt=0, le=1e6, allow_inf_nan=False)


class Recipe(Section):
    """One run, completely described."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")
    data: Data
    backbone: Backbone
    features: Features = Features()
    mapping: Head = Linear()
    augmentation: Augmentation = Augmentation()
    finetuning: Finetuning | None = None
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    cache: Cache = Cache()

    @model_validator(mode="before")
    @classmethod
    def _ask_for_each_label(cls, values: Any) -> Any:
        """Where a picture can have several labels, the loss is that of each, unless another is asked for."""
        data, options = (values.get(name) for name in ("data", "finetuning")) if isinstance(values, dict) else (0, 0)
        if not (isinstance(data, dict) and data.get("separator") and isinstance(options, dict)):
            return values
        loss = options.get("loss", {})
        asked = {"kind": "sigmoid", **loss} if isinstance(loss, dict) else loss
        return {**values, "finetuning": {**options, "loss": asked}}

    @model_validator(mode="after")
    def _suit_the_labels(self) -> Recipe:
        conflicts = _list_label_conflicts(self)
        if conflicts:
            several = "can have several labels" if self.data.separator else "is of one class"
            raise ValueError(f"where a picture {several} (data.separator), {'; '.join(conflicts)}.")
        return self


def _list_label_conflicts(recipe: Recipe) -> list[str]:
    """Say what makes no sense for the kind of labels that the recipe has."""
    options, mapping = recipe.finetuning, recipe.mapping
    if recipe.data.separator is None:
        sigmoid = options is not None and options.loss.kind == "sigmoid"
        return ["finetuning.loss is softmax or focal, not sigmoid"] if sigmoid else []
    conflicts = []
    if mapping.kind == "deep" and mapping.class_weight != "none":
        conflicts.append("a deep mapping has no class_weight")
    if options is not None:
        if options.loss.kind != "sigmoid":
            conflicts.append(f"finetuning.loss is sigmoid, not {options.loss.kind}")
        if options.class_weight != "none":
            conflicts.append("there is no finetuning.class_weight")
        if options.balanced:
            conflicts.append("finetuning.balanced cannot draw classes equally often")
    return conflicts
