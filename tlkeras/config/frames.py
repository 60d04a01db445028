"""Tables of pandas, Polars and Arrow as text, and as the files that a recipe names in their place."""

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

from tlkeras.errors import ResourceError
from tlkeras.files import atomic_write, cache_folder

ENCODED_IMAGE = "<bytes of an image>"
"""What stands in a cell that holds an image and no path."""

TextColumns = list[tuple[str, list[str]]]
"""Names of columns, which may be equal, with their cells."""


class Frame(Protocol):
    """A table of pandas, Polars, Arrow or another library with Arrow's C stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def is_frame(value: object) -> TypeGuard[Frame]:
    """Whether a value is a table in memory, not a series."""
    named = hasattr(value, "columns") or hasattr(value, "column_names")
    return named and (hasattr(value, "iloc") or hasattr(value, "__arrow_c_stream__"))


def save_frame(frame: Frame) -> str:
    """The path of a CSV file of a frame in the cache, named by its content, so that a run can read it again."""
    columns = read_columns(frame)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*(cells for _, cells in columns), strict=True))
    data = text.getvalue().encode("utf-8", "backslashreplace")
    path = cache_folder() / "tables" / f"frame-{hashlib.sha256(data).hexdigest()[:16]}.csv"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
    except OSError as error:
        raise ResourceError("Cannot keep the table.", f"{path}: {error.strerror}", "Set TLKERAS_CACHE.") from None
    return str(path)


def read_columns(frame: Any) -> TextColumns:
    """The columns of a frame as text; an index of pandas is one if it has a name or holds text."""
    if hasattr(frame, "iloc"):  # Arrow would refuse objects such as pathlib's
        frame = _take_index(frame)
        values = [frame.iloc[:, at] for at in range(len(frame.columns))]
        cells = [value.astype(object).where(value.notna(), None).tolist() for value in values]
        return [(str(name), format_cells(column)) for name, column in zip(frame.columns, cells, strict=True)]
    import pyarrow

    table = pyarrow.table(frame)
    return [(name, format_cells(table.column(at).to_pylist())) for at, name in enumerate(table.column_names)]


def _take_index(frame: Any) -> Any:
    if any(name is not None for name in frame.index.names):
        return frame.reset_index()
    texts = len(frame) and isinstance(frame.index[0], str) and "path" not in frame.columns
    return frame.reset_index(names="path") if texts else frame


def format_cells(values: Sequence[Any]) -> list[str]:
    """Cells of a column: nothing for missing values, whole numbers without a point, lists as several labels."""
    whole = all(value.is_integer() for value in values if isinstance(value, float) and not math.isnan(value))

    def format_cell(value: Any) -> str:
        if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
            return (
                "|".join(map(format_cell, value)) if isinstance(value, (list, tuple)) else format_cell(value.tolist())
            )
        if isinstance(value, dict) and {*value} == {"bytes", "path"}:  # an image of the Hugging Face library
            value = value["bytes"] or value["path"]
        if isinstance(value, bytes):
            return ENCODED_IMAGE
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return str(int(value)) if whole and isinstance(value, float) else str(value)

    return list(map(format_cell, values))
