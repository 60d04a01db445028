"""From features to classes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tlkeras.sections.fields import Rate, Section, Share, kind_by_default


def _check_strength(value: Any) -> Any:
    if value != "auto" and not (type(value) in (int, float) and 0 < value < math.inf):
        raise ValueError(f"it must be 'auto' or a number above 0. Received: {value!r}.")
    return value


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


Head = Annotated[Annotated[Linear | Deep, Field(discriminator="kind")], kind_by_default("linear")]


class Training(Section):
    """How what has no closed form is trained: deep heads. The seed is every head's."""

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Rate = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
