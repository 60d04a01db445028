"""Pretrained networks as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlkeras.cli.tables.style import left, print_table, right

if TYPE_CHECKING:
    from tlkeras.backbones.builder import BackboneResult
    from tlkeras.backbones.info import BackboneInfo


def print_backbones(backbones: Sequence[BackboneInfo]) -> None:
    """Print the catalog."""
    numbers = right("parameters", "multiply-adds", "size", "features", "top-1")
    rows = (
        (
            info.name,
            f"{info.parameters / 1e6:,.2f} M",
            f"{info.multiply_adds / 1e6:,.0f} M",
            str(info.default_size),
            str(info.feature_width),
            f"{info.top1:.1f} %" if info.top1 else "-",
            ", ".join(info.weights),
            info.licence,
        )
        for info in backbones
    )
    print_table(f"{len(backbones)} backbones", left("name") + numbers + left("weights", "licence"), rows)


def print_backbone(result: BackboneResult) -> None:
    """Print the blocks of one backbone."""
    numbers = right("output", "KB at float16", "parameters", "multiply-adds", "layers")
    rows = (
        (
            str(block.index),
            block.name,
            " x ".join(map(str, block.shape)),
            f"{block.bytes / 1e3:,.1f}",
            f"{block.parameters:,}",
            f"{block.multiply_adds / 1e6:,.1f} M",
            str(block.layers),
        )
        for block in result.blocks
    )
    title = f"{result.name} at {result.size} px: {result.cuts} cuts"
    print_table(title, right("block") + left("name") + numbers, rows)
