"""Pretrained networks as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlkeras.cli.tables.style import make_table, open_console


def print_backbones(entries: Sequence[dict[str, Any]]) -> None:
    """Print the catalog."""
    columns = [("name", "left"), ("parameters", "right"), ("multiply-adds", "right"), ("size", "right")]
    columns += [("features", "right"), ("top-1", "right"), ("weights", "left"), ("licence", "left")]
    table = make_table(f"{len(entries)} backbones", columns)
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['parameters'] / 1e6:,.2f} M",
            f"{entry['multiply_adds'] / 1e6:,.0f} M",
            str(entry["default_size"]),
            str(entry["feature_width"]),
            f"{entry['top1']:.1f} %" if entry["top1"] else "-",
            ", ".join(entry["weights"]),
            entry["licence"],
        )
    open_console().print(table)


def print_backbone(result: dict[str, Any]) -> None:
    """Print the blocks of one backbone."""
    columns = [("block", "right"), ("name", "left"), ("output", "right"), ("KB at float16", "right")]
    columns += [("parameters", "right"), ("multiply-adds", "right"), ("layers", "right")]
    table = make_table(f"{result['name']} at {result['size']} px: {result['cuts']} cuts", columns)
    for block in result["blocks"]:
        table.add_row(
            str(block["index"]),
            block["name"],
            " x ".join(map(str, block["shape"])),
            f"{block['bytes'] / 1e3:,.1f}",
            f"{block['parameters']:,}",
            f"{block['multiply_adds'] / 1e6:,.1f} M",
            str(block["layers"]),
        )
    open_console().print(table)
