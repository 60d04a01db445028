"""What verbs return: objects with attributes, also as plain values, as data frames, and as a notebook shows them."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

from tlkeras.errors import MissingExtraError
from tlkeras.plotting.notebook import render_table

if TYPE_CHECKING:
    import pandas

OPTIONAL, FLAT, HIDDEN = {"json": "optional"}, {"json": "flat"}, {"json": "hidden"}
"""Metadata of fields: left out of JSON where they are None, whose entries stand in place of themselves, never there."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 40, 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 3
_Row = TypeVar("_Row")


@dataclass(frozen=True, repr=False)
class Result:
    """The base of what verbs return: a frozen dataclass that can be turned into plain values."""

    def __init_subclass__(cls) -> None:
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # or each dataclass would get a long one

    def __repr__(self) -> str:
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        return f"{type(self).__name__}({', '.join(f'{name}={_SHORT.repr(value)}' for name, value in known.items())})"

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, nested results included, as values that JSON has."""
        plain: dict[str, Any] = {}
        for one in fields(self):
            value, kind = getattr(self, one.name), one.metadata.get("json")
            if kind == "flat":
                plain |= to_plain(value)
            elif kind != "hidden" and (value is not None or kind != "optional"):
                plain[one.name] = to_plain(value)
        return plain

    def _repr_html_(self) -> str:
        return render_table(("", ""), [(name, _SHORT.repr(value)) for name, value in self.to_dict().items()])


class Table(tuple[_Row, ...]):
    """Results of one kind, in order: a tuple that can become a data frame."""

    def to_frame(self) -> "pandas.DataFrame":
        """A row per result and a column per attribute; MissingExtraError without pandas."""
        return make_frame(self.to_dicts())

    def to_dicts(self) -> list[Any]:
        """The results as plain values."""
        return [to_plain(row) for row in self]

    def _repr_html_(self) -> str:
        rows = self.to_dicts()
        return render_table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else "<p>None.</p>"


def make_frame(rows: Iterable[Mapping[str, Any]], index: Iterable[Any] | None = None) -> "pandas.DataFrame":
    """A data frame of rows by column; MissingExtraError without pandas."""
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("A data frame", "pandas") from None
    return pandas.DataFrame(list(rows), index=None if index is None else list(index))


def to_plain(value: Any) -> Any:
    """A value as JSON has it: results and dataclasses as dictionaries, arrays and tuples as lists, paths as text."""
    if hasattr(value, "to_dict") and not isinstance(value, type):
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
