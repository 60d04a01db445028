"""The base of a recipe's sections, and types of values that several sections have."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ConfigSection(BaseModel):
    """Base of all sections: unknown keys are refused, values keep their types, sections are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def as_tuple(value: Any) -> Any:
    """One name as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def auto_as_none(value: Any) -> Any:
    """None for `auto`, which leaves a choice to the program."""
    return None if value == "auto" else value


def default_kind(kind: str) -> BeforeValidator:
    """A validator that reads a section without `kind` as one of this kind, and a word alone as the kind."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": kind, **value} if isinstance(value, dict) else value

    return BeforeValidator(read)


Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
RegularizationStrength = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
