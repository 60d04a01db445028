"""Elements of all tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlkeras.data.headers import to_printable

MOST_ROWS = 40

Columns = list[tuple[str, str]]  # header and alignment of each column


def left(*names: str) -> Columns:
    """Columns of text."""
    return [(name, "left") for name in names]


def right(*names: str) -> Columns:
    """Columns of numbers."""
    return [(name, "right") for name in names]


def issues_table(title: str, issues: Sequence[Any]) -> Table:
    """A table of the path and the reason of each issue, at most `MOST_ROWS` of them."""
    rows = [(escape(to_printable(issue.path)), escape(issue.reason)) for issue in issues]
    return fill_table(title, left("path", "reason"), rows, MOST_ROWS)


def fill_table(title: str, columns: Columns, rows: Sequence[Sequence[str]], most: int | None = None) -> Table:
    """A table of rows, with the number of those beyond `most`."""
    table = make_table(title, columns, header=any(name for name, _ in columns))
    for row in rows[:most]:
        table.add_row(*row)
    if most is not None and len(rows) > most:
        table.add_row(f"and {len(rows) - most:,} more")
    return table


def print_table(title: str, columns: Columns, rows: Iterable[Sequence[str]]) -> None:
    """Print a table; one whose columns have no names has no header."""
    open_console().print(fill_table(title, columns, list(rows)))


def open_console() -> Console:
    """A console as wide as the terminal; without one, wide enough for all columns."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def make_table(title: str, columns: Sequence[tuple[str, str]], header: bool = True) -> Table:
    """An empty table; a column is its header and its alignment."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=header)
    for number, (name, justify) in enumerate(columns):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=number == 0)  # type: ignore[arg-type]
    return table


def format_number(value: float | None, sign: str = "-") -> str:
    """A number with four decimals, or a dash for None and NaN; `sign` is as in Python's format specification."""
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.4f}"
