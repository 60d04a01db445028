"""Exports as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import make_table, open_console


def print_export(result: dict[str, Any]) -> None:
    """Print how each form of the model agrees with the run, where the version lies and how it is served."""
    console = open_console()
    console.print(_list_forms(result["parity"], f"{result['run']}: {result['images']:,} held-out images"))
    for note in result["notes"]:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Exported version {result['version']} to {escape(result['path'])}")
    console.print(
        f"Proved on {result['images']:,} held-out images: largest difference in a probability from the run's own "
        f"{result['difference']:.1g}; {result['warmup']} warm-up requests replayed."
    )
    console.print(f"Signatures: {', '.join(result['signatures'])}")
    console.print("\nServe it with TensorFlow Serving:")
    console.print(f"  {result['docker']}", markup=False, highlight=False, soft_wrap=True)


def _list_forms(rows: Sequence[dict[str, Any]], title: str) -> Table:
    columns = [("form", "left"), ("largest difference", "right"), ("same answer", "right"), ("accuracy", "right")]
    columns += [("95 % interval", "right"), ("MB", "right"), ("ms per image", "right")]
    several = len({row["task"] for row in rows}) > 1
    table = make_table(title, columns)
    for row in rows:
        accuracy = row["accuracy"]
        table.add_row(
            f"{row['form']}, {row['task']}" if several else row["form"],
            f"{row['difference']:.1e}",
            f"{row['agreement']:.1%}",
            f"{accuracy['value']:.4f}",
            f"{accuracy['low']:.4f} to {accuracy['high']:.4f}",
            f"{row['megabytes']:,.2f}",
            f"{row['milliseconds']:,.1f}",
        )
    return table
