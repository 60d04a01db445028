"""What verbs return: objects with attributes, and as plain values for JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike, fspath
from typing import Any

OPTIONAL, FLAT = {"json": "optional"}, {"json": "flat"}
"""Metadata of fields that are left out of JSON where they are None, and whose entries stand in place of themselves."""


@dataclass(frozen=True)
class Result:
    """The base of what verbs return: a frozen dataclass that can be turned into plain values."""

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, nested results included, as values that JSON has."""
        plain: dict[str, Any] = {}
        for one in fields(self):
            value, kind = getattr(self, one.name), one.metadata.get("json")
            if kind == "flat":
                plain |= to_plain(value)
            elif value is not None or kind != "optional":
                plain[one.name] = to_plain(value)
        return plain


def to_plain(value: Any) -> Any:
    """A value as JSON has it: results and dataclasses as dictionaries, arrays and tuples as lists, paths as text."""
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value
