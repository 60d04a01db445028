"""Section `tuning`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import ConfigSection


def _name_values(value: Any) -> Any:
    return {"values": tuple(value)} if isinstance(value, (list, tuple)) else value


class SearchDimension(ConfigSection):
    """The values of one recipe key: a list of them, or a range of numbers.

    A range of integers gives integers. `step` is the distance between values, in a range with `sampling` log a factor.
    """

    values: tuple[Any, ...] | None = Field(default=None, min_length=1)
    min: int | float | None = None
    max: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    sampling: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _check_range(self) -> SearchDimension:
        bounds = (self.min, self.max)
        if (self.values is None) == (bounds == (None, None)):
            raise ValueError("take either a list of values, or min and max.")
        if self.values is not None:
            return self
        if self.min is None or self.max is None or not -math.inf < self.min < self.max < math.inf:
            raise ValueError(f"min is not below max. Received: {self.min} and {self.max}.")
        if self.whole and self.step is not None and self.step != int(self.step):
            raise ValueError(f"a range of integers has an integer step. Received: {self.step}.")
        if self.sampling == "log" and self.min <= 0:
            raise ValueError(f"min is not above 0 in a range with log sampling. Received: {self.min}.")
        if self.sampling == "log" and self.step is not None and self.step <= 1:
            raise ValueError(f"step is a factor above 1 in a range with log sampling. Received: {self.step}.")
        return self

    @property
    def whole(self) -> bool:
        """Whether a range is of integers."""
        return isinstance(self.min, int) and isinstance(self.max, int)

    def ends(self) -> tuple[Any, ...]:
        """The values to check: all that are listed, or both ends of the range."""
        return self.values if self.values is not None else (self.min, self.max)


class TuningConfig(ConfigSection):
    """A search over keys of this recipe for the best value of an objective on the validation split."""

    space: dict[str, Annotated[SearchDimension, BeforeValidator(_name_values)]] = Field(min_length=1)
    algorithm: Literal["random", "hyperband", "bayesian", "grid"] = "random"
    max_trials: int = Field(default=20, ge=1, le=100_000)
    objective: Literal["loss", "accuracy", "roc_auc"] = "loss"
    confirm_top: int = Field(default=3, ge=1)
    confirm_seeds: int = Field(default=3, ge=1, le=100)
    seed: int = Field(default=0, ge=0, lt=2**31)
