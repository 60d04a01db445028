"""Recipes, runs, pretrained networks, the cache, packed images and jobs on many images as tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from tlkeras.cli.tables.style import (
    format_number,
    left,
    open_console,
    paths,
    print_issues,
    print_notes,
    print_table,
    right,
)
from tlkeras.config.image_size import format_size

if TYPE_CHECKING:
    from tlkeras.backbones.builder import BackboneResult
    from tlkeras.backbones.catalog import BackboneInfo
    from tlkeras.data.sources.tfrecords import PackResult
    from tlkeras.features.cache import CacheResult, PruneResult
    from tlkeras.inference.results import JobResult


def print_list(result: dict[str, Any]) -> None:
    recipes = [(recipe["name"], escape(recipe["about"])) for recipe in result["recipes"]]
    print_table("Recipes", left("name", "what it does"), recipes)
    if not result["runs"]:
        open_console().print("No runs yet. Make one with: tlkeras train quickstart")
        return
    columns = left("name") + paths("images of") + right("images", "classes", "accuracy", "ROC AUC", "minutes")
    print_table("Runs", columns, map(_list_run_cells, result["runs"]))


def _list_run_cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a run; its state stands with the name of one that has not finished."""
    state = "" if run["state"] == "finished" else f" ({run['state']})"
    counts = ("-" if run[name] is None else f"{run[name]:,}" for name in ("images", "classes"))
    figures = (format_number(run[name]) for name in ("accuracy", "roc_auc"))
    return escape(run["name"]) + state, escape(run["source"] or "-"), *counts, *figures, f"{run['minutes']:.1f}"


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
    title = f"{result.name} at {format_size(result.size)} px: {result.cuts} cuts"
    print_table(title, right("block") + left("name") + numbers, rows)


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
    open_console().print(f"Removed {len(result.removed)} entries, {result.bytes / 1e6:,.1f} MB.")


def print_packed(result: PackResult) -> None:
    console = open_console()
    size = f"{result.bytes / 1e6:,.1f} MB"
    console.print(f"{result.images:,} images, {size}, in {result.shards:,} files.", highlight=False)
    if result.rejected:
        print_issues("Files that cannot be used", result.rejected)
    command = f"tlkeras train {shlex.quote(str(result.path))}"
    console.print(f"\nNext:\n  {command}", markup=False, highlight=False, soft_wrap=True)


def print_job(result: JobResult) -> None:
    rate = f", {result.computed / result.seconds:,.0f} a second" if result.computed else ""
    rows = {
        "files": f"{result.images:,}",
        "rows": f"{result.rows:,}",
        "left out": f"{len(result.unreadable):,}",
        "size": f"{result.bytes / 1e6:,.1f} MB",
        "computed now": f"{result.computed:,} in {result.seconds:,.1f} s{rate}",
        "with": f"{result.engine}, {result.workers} worker{'s' if result.workers > 1 else ''}",
        "SHA-256 of all": result.sha256 or "-",
    }
    cells = [(name, escape(value)) for name, value in rows.items()]
    print_table(f"{result.folder}: {result.done:,} of {result.shards:,} shards", left("", ""), cells)
    if result.unreadable:
        print_issues("Files that were left out", result.unreadable, f"{result.folder}/rejected lists every file.")
    print_notes(result.notes)
    if result.failed:
        failed = [(str(one.shard), escape(f"{one.first} to {one.last}"), escape(one.error)) for one in result.failed]
        title = f"{len(failed)} shards failed; run the command again to try them again"
        print_table(title, right("shard") + left("images", "last error"), failed)
