"""What all tables are made with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_ROWS = 40


def issues_table(title: str, findings: Sequence[dict[str, str]]) -> Table:
    """Return a table of paths and reasons, of so many at most."""
    table = make_table(title, [("path", "left"), ("reason", "left")])
    for finding in findings[:MOST_ROWS]:
        table.add_row(escape(finding["path"]), escape(finding["reason"]))
    if len(findings) > MOST_ROWS:
        table.add_row(f"and {len(findings) - MOST_ROWS:,} more", "")
    return table


def open_console() -> Console:
    """Return a console as wide as the terminal, and wide enough for all columns where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def make_table(title: str, columns: Sequence[tuple[str, str]], header: bool = True) -> Table:
    """Return an empty table with columns of a header and an alignment each."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=header)
    for number, (name, justify) in enumerate(columns):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=number == 0)  # type: ignore[arg-type]
    return table


def format_number(value: float | None) -> str:
    """Return a number with four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"
