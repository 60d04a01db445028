"""The cache of activations, and packed images, as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import issues_table, make_table, open_console

if TYPE_CHECKING:
    from tlkeras.data.sources.tfrecords import PackResult
    from tlkeras.features.cache import CacheResult, PruneResult


def print_cache(result: CacheResult) -> None:
    """Print the entries of the cache."""
    columns = [
        ("key", "left"),
        ("backbone", "left"),
        ("row", "left"),
        ("rows", "right"),
        ("MB", "right"),
        ("last used", "left"),
    ]
    table = make_table(f"{result.root}: {result.bytes / 1e6:,.1f} MB", columns)
    for entry in result.spaces:
        facts = entry.facts
        row = " x ".join(map(str, facts.get("shape", []))) + f" {facts.get('dtype', '')}"
        used = datetime.fromtimestamp(entry.last_used, UTC).strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(
            entry.key[:12],
            str(facts.get("backbone", "")),
            row,
            f"{entry.rows:,}",
            f"{entry.bytes / 1e6:,.1f}",
            used,
        )
    open_console().print(table)


def print_pruned(result: PruneResult) -> None:
    """Print the number and size of the entries removed."""
    open_console().print(f"Removed {len(result.removed)} entries, {result.bytes / 1e6:,.1f} MB.")


def print_packed(result: PackResult) -> None:
    """Print the manifest of packed images, and the files that could not be read."""
    console = open_console()
    console.print(
        f"{result.images:,} images, {result.bytes / 1e6:,.1f} MB, in {result.shards:,} files.", highlight=False
    )
    if result.rejected:
        console.print(issues_table("Files that cannot be used", result.rejected))
    console.print(
        f"\nNext:\n  tlkeras train linear_probe --set data.source={escape(result.path)}",
        highlight=False,
        soft_wrap=True,
    )
