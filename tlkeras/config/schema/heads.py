"""Sections `head` and `training`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import ConfigSection, Fraction, PositiveFloat, default_kind


def _take(*words: str, or_number: str, fits: Callable[[float], bool]) -> BeforeValidator:

    def check(value: Any) -> Any:
        if value not in words and not (type(value) in (int, float) and fits(value)):
            raise ValueError(f"take {', '.join(map(repr, words))} or {or_number}. Received: {value!r}.")
        return value

    return BeforeValidator(check)


_POSITIVE: dict[str, Any] = {"or_number": "a number above 0", "fits": lambda number: 0 < number < math.inf}
_SHARE: dict[str, Any] = {"or_number": "a number from 0 to 1", "fits": lambda number: 0 <= number <= 1}
AutoStrength = Annotated[Literal["auto"] | float, _take("auto", **_POSITIVE)]
AutoShrinkage = Annotated[Literal["auto"] | float, _take("auto", **_SHARE)]
AutoGamma = Annotated[Literal["median", "search"] | float, _take("median", "search", **_POSITIVE)]
ClassWeighting = Literal["none", "balanced"]
FoldCount = Annotated[int, Field(ge=2)]
LayerWidth = Annotated[int, Field(ge=1, le=65_536)]
AutoComponents = Literal["auto"] | LayerWidth
KernelName = Literal["rbf", "polynomial", "laplacian", "chi2"]
KernelApproximation = Literal["nystroem", "fourier"]
KernelSolver = Literal["ridge", "logistic", "svm"]
HiddenNorm = Literal["none", "batch", "layer"]
RecurrentCell = Literal["gru", "lstm"]


def check_approximation(approximation: KernelApproximation, kernel: KernelName) -> None:
    """ValueError for random Fourier features of another kernel than rbf and laplacian."""
    if approximation == "fourier" and kernel not in ("rbf", "laplacian"):
        raise ValueError(f"approximation fourier exists for the kernels rbf and laplacian only. Received: {kernel!r}.")


class LinearConfig(ConfigSection):
    """Multinomial logistic regression on the cached features."""

    kind: Literal["linear"] = "linear"
    C: AutoStrength = "auto"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class RidgeConfig(ConfigSection):
    """Ridge regression on the indicators of classes, in closed form."""

    kind: Literal["ridge"] = "ridge"
    alpha: AutoStrength = "auto"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class SvmConfig(ConfigSection):
    """The linear support vector machine with squared hinge loss, calibrated."""

    kind: Literal["svm"] = "svm"
    C: AutoStrength = "auto"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class CentroidConfig(ConfigSection):
    """The nearest class mean."""

    kind: Literal["centroid"] = "centroid"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class LdaConfig(ConfigSection):
    """Linear discriminant analysis with a shrunken covariance."""

    kind: Literal["lda"] = "lda"
    shrinkage: AutoShrinkage = "auto"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class CosineConfig(ConfigSection):
    """Cosine to the mean direction of each class: for few examples."""

    kind: Literal["cosine"] = "cosine"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"


class KernelConfig(ConfigSection):
    """A linear head in the space of a kernel, exact or approximated."""

    kind: Literal["kernel"] = "kernel"
    kernel: KernelName = "rbf"
    approximation: KernelApproximation = "nystroem"
    components: AutoComponents = "auto"
    gamma: AutoGamma = "median"
    degree: int = Field(default=3, ge=1, le=10)
    solver: KernelSolver = "ridge"
    folds: FoldCount = 5
    class_weight: ClassWeighting = "none"

    @model_validator(mode="after")
    def _check_approximation(self) -> KernelConfig:
        check_approximation(self.approximation, self.kernel)
        return self


class DeepConfig(ConfigSection):
    """A multi-layer perceptron on the cached features."""

    kind: Literal["deep"] = "deep"
    widths: tuple[LayerWidth, ...] = (256,)
    dropout: Fraction = 0.3
    norm: HiddenNorm = "none"
    residual: bool = False
    class_weight: ClassWeighting = "none"


class RecurrentConfig(ConfigSection):
    """A GRU or LSTM over the rows of the cached feature maps."""

    kind: Literal["recurrent"] = "recurrent"
    cell: RecurrentCell = "gru"
    units: LayerWidth = 64
    projection: LayerWidth = 64
    bidirectional: bool = False
    dropout: Fraction = 0.3
    class_weight: ClassWeighting = "none"


class AttentionConfig(ConfigSection):
    """Learned queries over the positions of the cached feature maps."""

    kind: Literal["attention"] = "attention"
    queries: LayerWidth = 4
    dropout: Fraction = 0.3
    class_weight: ClassWeighting = "none"


class TransformerConfig(ConfigSection):
    """A small transformer encoder over the positions of the cached feature maps."""

    kind: Literal["transformer"] = "transformer"
    width: LayerWidth = 64
    blocks: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    dropout: Fraction = 0.2
    class_weight: ClassWeighting = "none"


_LinearHeads = LinearConfig | RidgeConfig | SvmConfig | CentroidConfig | LdaConfig | CosineConfig | KernelConfig
_KerasHeads = DeepConfig | RecurrentConfig | AttentionConfig | TransformerConfig
HeadConfig = Annotated[Annotated[_LinearHeads | _KerasHeads, Field(discriminator="kind")], default_kind("linear")]
SINGLE_LABEL_HEADS = ("centroid", "lda", "cosine")
"""Kinds that separate classes and do not support several labels."""
FEATURE_MAP_HEADS = ("recurrent", "attention", "transformer")
"""Kinds that take feature maps and not vectors."""


def _check_address(value: Any) -> Any:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (host and colon and port.isdecimal() and int(port) < 65_536):
        raise ValueError(f"take HOST:PORT. Received: {value!r}.")
    return value


HostPort = Annotated[str, BeforeValidator(_check_address)]


class FitConfig(ConfigSection):
    """Training of heads that have no closed form: deep heads and heads on maps. The seed is every head's.

    `epochs` is the most, `learning_rate` the initial one of AdamW, `weight_decay` that of the kernels per unit of
    learning rate; after `patience` epochs without a lower validation loss the training stops.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


class TrainingConfig(FitConfig):
    """Training of heads, and the devices and data service of fine-tuning.

    The strategy `mirrored` uses all GPUs of a machine, `multi_worker` those of all machines in TF_CONFIG, `auto` is
    `mirrored` where there are several GPUs. `data_service` is the HOST:PORT of `tlkeras data-service`, whose workers
    decode the images that fine-tuning reads again in every epoch.
    """

    strategy: Literal["none", "auto", "mirrored", "multi_worker"] = "none"
    data_service: HostPort | None = None
