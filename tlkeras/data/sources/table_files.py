"""Files of tables: CSV as spreadsheets, pandas and Windows write it, Parquet, JSON Lines."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlkeras.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".ndjson")
PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath"),
    *("image_file", "image_name", "image_id", "img", "img_path", "id"),
)
"""Columns with the path of the image, as people call them; the first one that a table has is taken."""


def read_lines(source: str, file: str, path: str | None) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """The header, the lines below it, and sentences on what was left out; `path` names the column of the paths."""
    arrow = file.lower().endswith((".parquet", ".jsonl", ".ndjson"))
    header, lines = _read_arrow(source, file) if arrow else _read_csv(source, _read_text(source, file), path)
    if not lines:
        rule = "The manifest has a header but no rows." if header else "The manifest is empty."
        raise DataError(rule, repr(source), "Write a header and a line per image.")
    return _drop_unnamed(header, lines)


def find_path_column(header: Sequence[str], path: str | None) -> str | None:
    """The column of the paths: the one that is named, or else the first of `PATH_COLUMNS`, in any case."""
    if path is not None:
        return path if path in header else None
    found = {re.sub(r"[ -]", "_", name.strip().lower()): name for name in reversed(header)}
    return next((found[name] for name in PATH_COLUMNS if name in found), None)


def _read_text(source: str, file: str) -> str:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError("The manifest cannot be read.", f"{source!r}: {error.strerror}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(data) > 8 and not (any(data[1:40:2]) and any(data[:40:2]))):
        way_out = "Save it as CSV UTF-8, or: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise DataError("The manifest is in UTF-16 (Unicode text of Excel), not in UTF-8.", repr(source), way_out)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        way_out = (
            "It is probably Latin-1 or Windows-1252. Save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        )
        raise DataError("The manifest is not in UTF-8.", f"{source!r}, byte {error.start}", way_out) from None


def _read_csv(source: str, text: str, path: str | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    told = re.match(r'"?sep=(.)"?[;,\t]*\r?\n', text, re.IGNORECASE)  # as Excel writes
    text, above = text[told.end() :] if told else text, 1 if told else 0
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def rank(delimiter: str) -> tuple[bool, int]:
        names = [name.strip(' "') for name in first.split(delimiter)]
        return len(names) > 1 and find_path_column(names, path) is not None, len(names)

    delimiter = told[1] if told else max(",;\t|", key=rank)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num + above, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        received = f"{source!r}, line {reader.line_num + above}: {error}"
        raise DataError("The manifest is not valid CSV.", received) from None
    return [name.strip() for name in lines[0][1]] if lines else [], lines[1:]


def _read_arrow(source: str, file: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    from pyarrow import ArrowException, json, parquet

    try:
        table = parquet.read_table(file) if file.lower().endswith(".parquet") else json.read_json(file)
    except (OSError, ArrowException) as error:
        raise DataError("The manifest cannot be read.", f"{source!r}: {str(error).splitlines()[0]}") from None
    columns = [_format_column(table[name].to_pylist()) for name in table.column_names]
    header = ["" if name.startswith("__index_level_") else name for name in table.column_names]
    return header, [(number, list(cells)) for number, cells in enumerate(zip(*columns, strict=True), 1)]


def _format_column(values: Sequence[Any]) -> list[str]:
    """Cells of a column: nothing for missing values, whole numbers without a point, lists as several labels."""
    whole = all(value.is_integer() for value in values if isinstance(value, float) and not math.isnan(value))

    def format_cell(value: Any) -> str:
        if isinstance(value, list):
            return "|".join(map(format_cell, value))
        if value is None or str(value) == "nan":
            return ""
        return str(int(value)) if whole and isinstance(value, float) else str(value)

    return list(map(format_cell, values))


def _drop_unnamed(
    header: list[str], lines: list[tuple[int, list[str]]]
) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Without unnamed columns that are empty, as behind a trailing delimiter, or number the lines, as pandas does."""
    width = len(header)
    lines = [(number, cells if any(cells[width:]) else cells[:width]) for number, cells in lines]
    kept = [at for at, name in enumerate(header) if name or not _is_index([cells[at : at + 1] for _, cells in lines])]
    if len(kept) == width:
        return header, lines, []
    lines = [(number, [*(cells[at] for at in kept if at < len(cells)), *cells[width:]]) for number, cells in lines]
    return [header[at] for at in kept], lines, ["A column without a name, of line numbers or nothing, is ignored."]


def _is_index(cells: Sequence[Sequence[str]]) -> bool:
    texts = [text.strip() for cell in cells for text in cell]
    return not any(texts) or (all(text.isdecimal() for text in texts) and len({*texts}) == len(cells))
