"""Tables of jobs on many images."""

from __future__ import annotations

from rich.markup import escape

from tlkeras.cli.tables.style import make_table, open_console
from tlkeras.inference.results import JobResult


def print_job(result: JobResult) -> None:
    """Print counts, the rate of this call, and the shards that failed."""
    table = make_table(f"{result.folder}: {result.done:,} of {result.shards:,} shards", [("", "left")] * 2, False)
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
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console = open_console()
    console.print(table)
    if result.unreadable:
        console.print(f"[yellow]Images that were left out are listed in {escape(result.folder)}/rejected.[/yellow]")
    if result.failed:
        columns = [("shard", "right"), ("images", "left"), ("last error", "left")]
        failed = make_table(f"{len(result.failed)} shards failed; run the command again to try them again", columns)
        for shard in result.failed:
            failed.add_row(str(shard.shard), escape(f"{shard.first} to {shard.last}"), escape(shard.error))
        console.print(failed)
