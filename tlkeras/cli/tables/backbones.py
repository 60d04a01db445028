"""Pretrained networks as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlkeras.cli.tables.style import make_table, open_console

if TYPE_CHECKING:
    from tlkeras.backbones.builder import BackboneResult
    from tlkeras.backbones.info import BackboneInfo


def print_backbones(backbones: Sequence[BackboneInfo]) -> None:
    """Print the catalog."""
    columns = [("name", "left"), ("parameters", "right"), ("multiply-adds", "right"), ("size", "right")]
    columns += [("features", "right"), ("top-1", "right"), ("weights", "left"), ("licence", "left")]
    table = make_table(f"{len(backbones)} backbones", columns)
    for info in backbones:
        table.add_row(
            info.name,
            f"{info.parameters / 1e6:,.2f} M",
            f"{info.multiply_adds / 1e6:,.0f} M",
            str(info.default_size),
            str(info.feature_width),
            f"{info.top1:.1f} %" if info.top1 else "-",
            ", ".join(info.weights),
            info.licence,
        )
    open_console().print(table)


def print_backbone(result: BackboneResult) -> None:
    """Print the blocks of one backbone."""
    columns = [("block", "right"), ("name", "left"), ("output", "right"), ("KB at float16", "right")]
    columns += [("parameters", "right"), ("multiply-adds", "right"), ("layers", "right")]
    table = make_table(f"{result.name} at {result.size} px: {result.cuts} cuts", columns)
    for block in result.blocks:
        table.add_row(
            str(block.index),
            block.name,
            " x ".join(map(str, block.shape)),
            f"{block.bytes / 1e3:,.1f}",
            f"{block.parameters:,}",
            f"{block.multiply_adds / 1e6:,.1f} M",
            str(block.layers),
        )
    open_console().print(table)
