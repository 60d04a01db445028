"""Recipes, runs and pretrained networks as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from tlkeras.cli.tables.style import format_number, left, open_console, print_table, right

if TYPE_CHECKING:
    from tlkeras.backbones.builder import BackboneResult
    from tlkeras.backbones.info import BackboneInfo


def print_list(result: dict[str, Any]) -> None:
    recipes = [(recipe["name"], escape(recipe["about"])) for recipe in result["recipes"]]
    print_table("Recipes", left("name", "what it does"), recipes)
    if not result["runs"]:
        open_console().print("No runs yet. Make one with: tlkeras train quickstart")
        return
    runs = (
        (run["name"], run["state"], run["created"], format_number(run["accuracy"]), format_number(run["roc_auc"]))
        for run in result["runs"]
    )
    print_table("Runs", left("name", "state", "created") + right("accuracy", "ROC AUC"), runs)


def print_backbones(backbones: Sequence[BackboneInfo]) -> None:
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
