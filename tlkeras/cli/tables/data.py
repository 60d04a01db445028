"""The cache of activations, packed images and jobs on many images as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import fill_table, issues_table, left, open_console, print_table, right
from tlkeras.inference.results import JobResult

if TYPE_CHECKING:
    from tlkeras.data.sources.tfrecords import PackResult
    from tlkeras.features.cache import CacheResult, PruneResult


def print_cache(result: CacheResult) -> None:
    columns = left("key", "backbone", "row") + right("rows", "MB") + left("last used")
    rows = (
        (
            entry.key[:12],
            str(entry.facts.get("backbone", "")),
            f"{' x '.join(map(str, entry.facts.get('shape', [])))} {entry.facts.get('dtype', '')}",
            f"{entry.rows:,}",
            f"{entry.bytes / 1e6:,.1f}",
            datetime.fromtimestamp(entry.last_used, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        for entry in result.spaces
    )
    print_table(f"{result.root}: {result.bytes / 1e6:,.1f} MB", columns, rows)


def print_pruned(result: PruneResult) -> None:
    """Print the number and size of the entries removed."""
    open_console().print(f"Removed {len(result.removed)} entries, {result.bytes / 1e6:,.1f} MB.")


def print_packed(result: PackResult) -> None:
    """Print the manifest of packed images, and the files that could not be read."""
    console = open_console()
    size = f"{result.bytes / 1e6:,.1f} MB"
    console.print(f"{result.images:,} images, {size}, in {result.shards:,} files.", highlight=False)
    if result.rejected:
        console.print(issues_table("Files that cannot be used", result.rejected))
    command = f"tlkeras train linear_probe --set data.source={escape(result.path)}"
    console.print(f"\nNext:\n  {command}", highlight=False, soft_wrap=True)


def print_job(result: JobResult) -> None:
    """Print counts, the rate of this call, and the shards that failed."""
    rate = f", {result.computed / result.seconds:,.0f} a second" if result.computed else ""
    rows = {
        "images": f"{result.images:,}",
        "rows": f"{result.rows:,}",
        "left out": f"{len(result.unreadable):,}",
        "size": f"{result.bytes / 1e6:,.1f} MB",
        "computed now": f"{result.computed:,} in {result.seconds:,.1f} s{rate}",
        "with": f"{result.engine}, {result.workers} worker{'s' if result.workers > 1 else ''}",
        "SHA-256 of all": result.sha256 or "-",
    }
    cells = [(name, escape(value)) for name, value in rows.items()]
    print_table(f"{result.folder}: {result.done:,} of {result.shards:,} shards", left("", ""), cells)
    console = open_console()
    if result.unreadable:
        console.print(f"[yellow]Images that were left out are listed in {escape(result.folder)}/rejected.[/yellow]")
    if result.failed:
        failed = [(str(one.shard), escape(f"{one.first} to {one.last}"), escape(one.error)) for one in result.failed]
        title = f"{len(failed)} shards failed; run the command again to try them again"
        console.print(fill_table(title, right("shard") + left("images", "last error"), failed))
