"""Elements of all tables."""

import math
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tlkeras.data.issues import FileIssue, describe_issues
from tlkeras.errors import list_some

MOST_ROWS = 40

Columns = list[tuple[str, str]]  # header and alignment of each column


def left(*names: str) -> Columns:
    """Columns of text."""
    return [(name, "left") for name in names]


def right(*names: str) -> Columns:
    """Columns of numbers."""
    return [(name, "right") for name in names]


def make_table(title: str, columns: Columns, rows: Iterable[Sequence[str]] = (), most: int | None = None) -> Table:
    """A table of rows, with the number of those beyond `most`; without a header if no column has a name."""
    named = any(name for name, _ in columns)
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=named)
    for number, (name, justify) in enumerate(columns):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=number == 0)  # type: ignore[arg-type]
    cells = list(rows)
    for row in cells[:most]:
        table.add_row(*row)
    if most is not None and len(cells) > most:
        table.add_row(f"and {len(cells) - most:,} more")
    return table


def print_table(title: str, columns: Columns, rows: Iterable[Sequence[str]], most: int | None = None) -> None:
    """Print a table as `make_table` makes it."""
    open_console().print(make_table(title, columns, rows, most))


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
    """A console as wide as the terminal; without one, wide enough for all columns."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def format_number(value: float | None, sign: str = "-") -> str:
    """A number with four decimals, or a dash for None and NaN; `sign` is as in Python's format specification."""
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.4f}"
