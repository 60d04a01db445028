"""From features to classes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import Rate, Section, Share, kind_by_default


def _check_strength(value: Any) -> Any:
    if value != "auto" and not (type(value) in (int, float) and 0 < value < math.inf):
        raise ValueError(f"it must be 'auto' or a number above 0. Received: {value!r}.")
    return value


def _check_shrinkage(value: Any) -> Any:
    if value != "auto" and not (type(value) in (int, float) and 0 <= value <= 1):
        raise ValueError(f"it must be 'auto' or a number from 0 to 1. Received: {value!r}.")
    return value


Strength = Annotated[Literal["auto"] | float, BeforeValidator(_check_strength)]
Weighting = Literal["none", "balanced"]
Folds = Annotated[int, Field(ge=2)]
Width = Annotated[int, Field(ge=1, le=65_536)]


def _check_gamma(value: Any) -> Any:
    return value if value in ("median", "search") else _check_strength(value)


class Linear(Section):
    """Multinomial logistic regression on the cached features."""

    kind: Literal["linear"] = "linear"
    C: Strength = "auto"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Ridge(Section):
    """Ridge regression on the indicators of classes, in closed form."""

    kind: Literal["ridge"] = "ridge"
    alpha: Strength = "auto"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Svm(Section):
    """The linear support vector machine with squared hinge loss, calibrated."""

    kind: Literal["svm"] = "svm"
    C: Strength = "auto"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Centroid(Section):
    """The nearest class mean."""

    kind: Literal["centroid"] = "centroid"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Lda(Section):
    """Linear discriminant analysis with a shrunken covariance."""

    kind: Literal["lda"] = "lda"
    shrinkage: Annotated[Literal["auto"] | float, BeforeValidator(_check_shrinkage)] = "auto"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Cosine(Section):
    """Cosine to the mean direction of each class: for few examples."""

    kind: Literal["cosine"] = "cosine"
    folds: Folds = 5
    class_weight: Weighting = "none"


class Kernel(Section):
    """A linear head in the space of a kernel, exact or approximated."""

    kind: Literal["kernel"] = "kernel"
    kernel: Literal["rbf", "polynomial", "laplacian", "chi2"] = "rbf"
    approximation: Literal["nystroem", "fourier"] = "nystroem"
    components: Literal["auto"] | Width = "auto"
    gamma: Annotated[Literal["median", "search"] | float, BeforeValidator(_check_gamma)] = "median"
    degree: int = Field(default=3, ge=1, le=10)
    solver: Literal["ridge", "logistic", "svm"] = "ridge"
    folds: Folds = 5
    class_weight: Weighting = "none"

    @model_validator(mode="after")
    def _have_waves(self) -> Kernel:
        if self.approximation == "fourier" and self.kernel not in ("rbf", "laplacian"):
            raise ValueError(f"approximation fourier knows the kernels rbf and laplacian. Received: {self.kernel!r}.")
        return self


class Deep(Section):
    """A multi-layer perceptron on the cached features."""

    kind: Literal["deep"] = "deep"
    widths: tuple[Width, ...] = (256,)
    dropout: Share = 0.3
    norm: Literal["none", "batch", "layer"] = "none"
    residual: bool = False
    class_weight: Weighting = "none"


class Recurrent(Section):
    """A GRU or LSTM over the rows of the cached feature maps."""

    kind: Literal["recurrent"] = "recurrent"
    cell: Literal["gru", "lstm"] = "gru"
    units: Width = 64
    projection: Width = 64
    bidirectional: bool = False
    dropout: Share = 0.3
    class_weight: Weighting = "none"


class Attention(Section):
    """Learned queries over the positions of the cached feature maps."""

    kind: Literal["attention"] = "attention"
    queries: Width = 4
    dropout: Share = 0.3
    class_weight: Weighting = "none"


class Transformer(Section):
    """A small transformer encoder over the positions of the cached feature maps."""

    kind: Literal["transformer"] = "transformer"
    width: Width = 64
    blocks: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    dropout: Share = 0.2
    class_weight: Weighting = "none"


_Any = Linear | Ridge | Svm | Centroid | Lda | Cosine | Kernel | Deep | Recurrent | Attention | Transformer
Head = Annotated[Annotated[_Any, Field(discriminator="kind")], kind_by_default("linear")]
SINGLE = ("centroid", "lda", "cosine")
"""Kinds that tell classes apart and know of no several labels."""
MAPS = ("recurrent", "attention", "transformer")
"""Kinds that eat feature maps and not vectors."""


def _check_address(value: Any) -> Any:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (host and colon and port.isdecimal() and int(port) < 65_536):
        raise ValueError(f"it must be HOST:PORT. Received: {value!r}.")
    return value


Address = Annotated[str, BeforeValidator(_check_address)]


class Training(Section):
    """How what has no closed form is trained: deep heads and those on maps. The seed is every head's.

    The strategy is that of fine-tuning: `mirrored` takes all GPUs of a machine, `multi_worker` those of all machines
    in TF_CONFIG, `auto` is `mirrored` where there are several GPUs. `feed` is the HOST:PORT of `tlkeras feed`, whose
    workers decode the pictures that fine-tuning reads anew in every epoch.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Rate = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    strategy: Literal["none", "auto", "mirrored", "multi_worker"] = "none"
    feed: Address | None = None
