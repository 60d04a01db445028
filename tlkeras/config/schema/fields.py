"""What the sections of a recipe are made of: their base, and types of values that several of them have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ConfigSection(BaseModel):
    """What all sections share: unknown keys are refused, values keep their types, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def as_tuple(value: Any) -> Any:
    """Take one name for a list of one."""
    return (value,) if isinstance(value, str) else value


def auto_as_none(value: Any) -> Any:
    """Read `auto`, which leaves a choice to the program, as None."""
    return None if value == "auto" else value


def default_kind(kind: str) -> BeforeValidator:
    """Return what reads a section that does not name its kind as one of this kind."""
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
RegularizationStrength = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
