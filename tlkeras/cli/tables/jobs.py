"""Tables of jobs on many images."""

from __future__ import annotations

from rich.markup import escape

from tlkeras.cli.tables.style import fill_table, left, open_console, print_table, right
from tlkeras.inference.results import JobResult


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
