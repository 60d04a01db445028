"""Elements of all tables."""

import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tlkeras.data.issues import FileIssue, describe_issues
from tlkeras.errors import list_some

MOST_ROWS = 40
_LEAST_PATH, _LEAST_TEXT, _MOST_TEXT = 20, 32, 80  # cells
_BORDER = 3

Columns = list[tuple[str, str]]
"""Header and kind of each column: left (text), right (numbers), path (shortened where there is no room), bar."""
Row = Sequence[str] | None
"""Cells in rich's markup, of the first columns; None draws a line."""
Cells = Sequence[list[Text] | None]


def left(*names: str) -> Columns:
    """Columns of text, which is broken between words, and within those that are long."""
    return [(name, "left") for name in names]


def right(*names: str) -> Columns:
    """Columns of numbers, which are never broken."""
    return [(name, "right") for name in names]


def paths(*names: str) -> Columns:
    """Columns of paths, whose beginning is left out where there is no room."""
    return [(name, "path") for name in names]


def bar() -> Columns:
    """A column of bars without a name, left out where there is no room."""
    return [("", "bar")]


def print_table(title: str, columns: Columns, rows: Iterable[Row], most: int | None = None) -> None:
    """Print a table of rows, with the number of those beyond `most`; without a header if no column has a name.

    A terminal that is too narrow for the table gets lines of a header and a cell instead; a pipe gets whole paths.
    """
    found = list(rows)
    cells: Cells = [None if row is None else [Text.from_markup(cell) for cell in row] for row in found[:most]]
    console = open_console()
    console.print(Text(title, style="bold"))
    full = [_width(cells, at, name) for at, (name, _) in enumerate(columns)]
    if _is_terminal() and sum(full) + _BORDER * len(columns) >= console.width:
        columns, cells = _drop_bars(columns, cells)
        full = [_width(cells, at, name) for at, (name, _) in enumerate(columns)]
    least = [_least(cells, at, name, kind) for at, (name, kind) in enumerate(columns)]
    borders = _BORDER * len(columns) + 1
    if sum(least) + borders <= console.width:
        console.print(_draw(columns, _fit(columns, full, least, console.width - borders), cells))
    elif _is_terminal():
        _print_cells(console, columns, cells)
    else:
        wide = [max(low, min(high, _MOST_TEXT)) for low, high in zip(least, full, strict=True)]
        Console(width=sum(wide) + borders).print(_draw(columns, wide, cells))
    if most is not None and len(found) > most:
        console.print(f"and {len(found) - most:,} more")


def _is_terminal() -> bool:
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def _width(cells: Cells, at: int, name: str) -> int:
    """The widest line of a column."""
    lines = [line for row in cells if row and at < len(row) for line in row[at].plain.splitlines()]
    return max(map(cell_len, [name, *lines]))


def _least(cells: Cells, at: int, name: str, kind: str) -> int:
    """The width down to which a column may shrink: its longest word, which text and paths may break if it is long."""
    full = _width(cells, at, name)
    if kind == "path":
        return min(full, _LEAST_PATH) if _is_terminal() else full
    words = [word for row in cells if row and at < len(row) for word in row[at].plain.split()]
    longest = max(map(cell_len, [*name.split(), *words]), default=0)
    return longest if kind == "right" else min(longest, max(_LEAST_TEXT, *map(cell_len, ["", *name.split()])))


def _drop_bars(columns: Columns, cells: Cells) -> tuple[Columns, Cells]:
    kept = [at for at, (_, kind) in enumerate(columns) if kind != "bar"]
    rest: Cells = [None if row is None else [row[at] for at in kept if at < len(row)] for row in cells]
    return [columns[at] for at in kept], rest


def _fit(columns: Columns, full: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths of columns in so much room: paths give way first, then the widest columns."""
    widths = list(full)
    for kinds in (("path",), ("left", "right", "bar", "path")):
        able = [at for at, (_, kind) in enumerate(columns) if kind in kinds]
        while sum(widths) > room and (able := [at for at in able if widths[at] > least[at]]):
            widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _draw(columns: Columns, widths: Sequence[int], cells: Cells) -> Table:
    table = Table(show_header=any(name for name, _ in columns))
    for (name, kind), width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if kind == "right" else "left"
        table.add_column(name, justify=justify, overflow="fold", width=width)
    for row in cells:
        if row is None:
            table.add_section()
        else:
            pairs = zip(row, columns, widths, strict=False)
            table.add_row(*(_shorten(cell, width) if kind == "path" else cell for cell, (_, kind), width in pairs))
    return table


def _print_cells(console: Console, columns: Columns, cells: Cells) -> None:
    """Print each row as lines of a header and a cell, with an empty line between rows."""
    for row in filter(None, cells):
        for cell, (name, kind) in zip(row, columns, strict=False):
            start = Text(f"{name}: " if name else "", style="dim")
            if cell.plain:
                shown = _shorten(cell, console.width - cell_len(start.plain)) if kind == "path" else cell
                console.print(start + shown, overflow="fold")
        console.print()


def _shorten(text: Text, width: int) -> Text:
    """A path without its beginning, and a long name without its middle, where it is wider."""
    full = text.plain
    if cell_len(full) <= width:
        return text
    parts = full.split("/")
    tails = ("/".join(["…", *parts[at:]]) for at in range(1, len(parts)))
    if found := next((tail for tail in tails if cell_len(tail) <= width), None):
        return Text(found)
    end = max(width * 2 // 3, 1)
    return Text(f"{set_cell_size(parts[-1], width - end - 1)}…{_take_end(parts[-1], end)}")


def _take_end(text: str, width: int) -> str:
    return set_cell_size(text[::-1], width)[::-1]


def print_issues(title: str, issues: Sequence[FileIssue], more: str = "`--json` lists every file.") -> None:
    """Print what is wrong with files: equal reasons as one sentence, with the first files and the way out.

    Where not every file is named, `more` says what lists them.
    """
    console = open_console()
    console.print(f"{title} ({len(issues):,})", style="bold", markup=False, highlight=False)
    lines = list_some(describe_issues(issues))
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    if len(lines) < len(issues):
        console.print(Padding(Text(more), (0, 0, 0, 2), expand=False))


def print_notes(notes: Sequence[str]) -> None:
    """Print sentences that are worth reading."""
    for note in notes:
        open_console().print(f"[yellow]note:[/yellow] {escape(note)}")


def open_console() -> Console:
    """A console as wide as the terminal, or as the variable COLUMNS says; 140 cells without either."""
    return Console() if _is_terminal() else Console(width=140)


def format_number(value: float | None, sign: str = "-") -> str:
    """A number with four decimals, or a dash for None and NaN; `sign` is as in Python's format specification."""
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.4f}"
