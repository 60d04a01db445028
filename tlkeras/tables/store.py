"""The store of activations as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tlkeras.tables.drawing import make_table, open_console


def draw_cache(result: dict[str, Any]) -> None:
    """Print what the cache holds."""
    columns = [
        ("key", "left"),
        ("backbone", "left"),
        ("row", "left"),
        ("rows", "right"),
        ("MB", "right"),
        ("last used", "left"),
    ]
    table = make_table(f"{result['root']}: {result['bytes'] / 1e6:,.1f} MB", columns)
    for space in result["spaces"]:
        facts = space["facts"]
        row = " x ".join(map(str, facts.get("shape", []))) + f" {facts.get('dtype', '')}"
        used = datetime.fromtimestamp(space["last_used"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(
            space["key"][:12],
            str(facts.get("backbone", "")),
            row,
            f"{space['rows']:,}",
            f"{space['bytes'] / 1e6:,.1f}",
            used,
        )
    open_console().print(table)


def draw_pruned(result: dict[str, Any]) -> None:
    """Print what was removed."""
    open_console().print(f"Removed {len(result['removed'])} spaces, {result['bytes'] / 1e6:,.1f} MB.")
