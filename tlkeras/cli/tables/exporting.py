"""Exports as tables."""

from __future__ import annotations

import math

from rich.markup import escape

from tlkeras.cli.tables.style import left, open_console, print_table, right
from tlkeras.exporting.results import ExportResult


def print_export(result: ExportResult) -> None:
    """Print the agreement of each format with the run, the version's path and the command that serves it."""
    console = open_console()
    several = len({row.task for row in result.parity}) > 1
    rows = (
        (
            f"{row.form}, {row.task}" if several else row.form,
            f"{row.difference:.1e}",
            f"{row.agreement:.1%}",
            f"{row.accuracy.value:.4f}",
            "-" if math.isnan(row.accuracy.low) else f"{row.accuracy.low:.4f} to {row.accuracy.high:.4f}",
            f"{row.megabytes:,.2f}",
            f"{row.milliseconds:,.1f}",
        )
        for row in result.parity
    )
    numbers = right("largest difference", "same prediction", "accuracy", "95 % interval", "MB", "ms per image")
    print_table(f"{result.run}: {result.images:,} held-out images", left("format") + numbers, rows)
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
