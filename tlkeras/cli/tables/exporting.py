"""Exports as tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import make_table, open_console
from tlkeras.exporting.results import ExportResult


def print_export(result: ExportResult) -> None:
    """Print the agreement of each format with the run, the version's path and the command that serves it."""
    console = open_console()
    console.print(_make_parity_table(result))
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"Exported version {result.version} to {escape(result.path)}")
    console.print(
        f"Compared on {result.images:,} held-out images: largest difference in a probability from the run's own "
        f"{result.difference:.1g}; {result.warmup} warm-up requests were run."
    )
    console.print(f"Signatures: {', '.join(result.signatures)}")
    console.print("\nServe it with TensorFlow Serving:")
    console.print(f"  {result.docker}", markup=False, highlight=False, soft_wrap=True)


def _make_parity_table(result: ExportResult) -> Table:
    columns = [("format", "left"), ("largest difference", "right"), ("same prediction", "right"), ("accuracy", "right")]
    columns += [("95 % interval", "right"), ("MB", "right"), ("ms per image", "right")]
    several = len({row.task for row in result.parity}) > 1
    table = make_table(f"{result.run}: {result.images:,} held-out images", columns)
    for row in result.parity:
        table.add_row(
            f"{row.form}, {row.task}" if several else row.form,
            f"{row.difference:.1e}",
            f"{row.agreement:.1%}",
            f"{row.accuracy.value:.4f}",
            f"{row.accuracy.low:.4f} to {row.accuracy.high:.4f}",
            f"{row.megabytes:,.2f}",
            f"{row.milliseconds:,.1f}",
        )
    return table
