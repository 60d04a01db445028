"""Jobs on many images as tables."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import make_table, open_console


def print_job(result: dict[str, Any]) -> None:
    """Print what was computed, at which rate, and the shards that failed."""
    seconds, computed = result["seconds"], result["computed"]
    table = make_table(
        f"{result['folder']}: {result['done']:,} of {result['shards']:,} shards", [("", "left")] * 2, False
    )
    rows = {
        "images": f"{result['images']:,}",
        "rows": f"{result['rows']:,}",
        "left out": f"{result['rejected']:,}",
        "size": f"{result['bytes'] / 1e6:,.1f} MB",
        "computed now": f"{computed:,} in {seconds:,.1f} s"
        + (f", {computed / seconds:,.0f} a second" if computed else ""),
        "with": f"{result['engine']}, {result['workers']} worker{'s' if result['workers'] > 1 else ''}",
        "SHA-256 of all": result["sha256"] or "-",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console = open_console()
    console.print(table)
    if result["rejected"]:
        console.print(f"[yellow]Images that were left out are listed in {escape(result['folder'])}/rejected.[/yellow]")
    if result["failed"]:
        columns = [("shard", "right"), ("images", "left"), ("last error", "left")]
        failed = make_table(f"{len(result['failed'])} shards failed; give the command again to try again", columns)
        for row in result["failed"]:
            failed.add_row(str(row["shard"]), escape(f"{row['first']} to {row['last']}"), escape(row["error"]))
        console.print(failed)
