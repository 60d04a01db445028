"""Cells of label columns: the names and numbers in them, and the order in which people count."""

import math
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

MISSING_LABEL = "?"


def split_cell(cell: str, separator: str) -> list[str]:
    """Labels of a cell; empty parts between two separators are dropped."""
    return [label for part in cell.split(separator) if (label := part.strip())]


def read_number(cell: str) -> float:
    """The number in a cell of a table, NaN if it is not a finite one; "0,5" is one half, "1,234" nothing certain."""
    comma = re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell) and not re.fullmatch(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*", cell)
    with suppress(ValueError):
        if math.isfinite(number := float(cell.replace(",", ".") if comma else cell)):
            return number
    return math.nan


def normalize_name(name: str) -> str:
    """What names have in common that differ in case, blanks, Unicode's forms or the writing of a number."""
    plain = re.sub(r"[\u00ad\u200b-\u200d\ufeff]", "", unicodedata.normalize("NFKC", name)).strip().casefold()
    number = read_number(plain)
    return f"{number:.12g}" if math.isfinite(number) else re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", plain)


def list_classes(cells: Iterable[str], separator: str | None = None) -> tuple[str, ...]:
    """Classes or labels in the cells of a column, in the order of `sort_names`."""
    if separator is None:
        return sort_names(set(cells) - {""})
    return sort_names({label for cell in set(cells) - {MISSING_LABEL} for label in split_cell(cell, separator)})


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the order in which people count: "2" before "10", "-1" before "0.5", "class 9" before "class 10"."""
    found = sorted(names)
    numbers = {name: read_number(name) for name in found}
    if all(map(math.isfinite, numbers.values())):
        return tuple(sorted(found, key=numbers.__getitem__))
    parts = {name: re.split(r"(\d+)", name) for name in found}
    return tuple(sorted(found, key=lambda name: [int(part) if at % 2 else part for at, part in enumerate(parts[name])]))
