"""What `check` found in images and labels, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from tlkeras.cli.tables.style import issues_table, make_table, open_console

_MOST_CLASSES, _MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 30, 10, 4, 15
_BAR = 24


def print_check(result: dict[str, Any]) -> None:
    """Print what was found in images and labels, what a recipe would do, and what is in its way."""
    console = open_console()
    table = make_table(f"Check of {result['name']}", [("", "left"), ("", "left")], header=False)
    for name, fact in result["facts"].items():
        if name != "classes":  # they have a table of their own
            table.add_row(name, escape(str(fact)))
    if result["facts"]:
        console.print(table)
    _draw_classes(console, result["classes"])
    if result["rejected"]:
        console.print(issues_table("Files that cannot be used", result["rejected"]))
    _draw_copies(console, [group for group in result["copies"] if group["conflicting"] or group["leaking"]])
    _draw_suspects(console, result["mislabelled"] or [])
    _draw_outliers(console, result["outliers"] or [])
    for note in result["notes"]:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    for problem in result["problems"]:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    if manifest := result.get("manifest"):
        left_out = "; ".join(f"{count:,}: {reason}" for reason, count in manifest["left_out"].items())
        console.print(
            f"Manifest: {escape(manifest['path'])}, {manifest['images']:,} images. Left out: {left_out or 'none'}."
        )
    if page := result.get("page"):
        console.print(f"Page: {escape(page)}")
    console.print("Nothing is in the way." if not result["problems"] else "Training is not advisable yet.")


def _draw_classes(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    splits = [name for name in rows[0] if name not in ("task", "class", "images", "share")]
    columns = [("class", "left"), ("images", "right"), ("", "left"), *((split, "right") for split in splits)]
    several = len({row["task"] for row in rows}) > 1
    largest = max(row["share"] for row in rows) or 1
    table = make_table("Classes", columns)
    for row in rows[:_MOST_CLASSES]:
        name = f"{row['task']}: {row['class']}" if several else row["class"]
        bar = "█" * max(1, round(_BAR * row["share"] / largest)) if row["images"] else ""
        table.add_row(escape(name), f"{row['images']:,}", bar, *(f"{row[split]:,}" for split in splits))
    if len(rows) > _MOST_CLASSES:
        table.add_row(f"and {len(rows) - _MOST_CLASSES:,} more")
    console.print(table)


def _draw_copies(console: Console, groups: Sequence[dict[str, Any]]) -> None:
    if not groups:
        return
    table = make_table("Copies that mislead", [("", "left"), ("label", "left"), ("split", "left"), ("image", "left")])
    for group in groups[:_MOST_GROUPS]:
        kind = "same bytes" if group["kind"] == "exact" else f"alike, {group['similarity']:.3f}"
        for number, image in enumerate(group["images"][:_MOST_IN_GROUP]):
            first = "" if number else kind
            table.add_row(first, escape(image["label"]), image["split"], escape(image["key"]))
        if len(group["images"]) > _MOST_IN_GROUP:
            table.add_row("", "", "", f"and {len(group['images']) - _MOST_IN_GROUP:,} more")
        table.add_section()
    if len(groups) > _MOST_GROUPS:
        table.add_row(f"and {len(groups) - _MOST_GROUPS:,} more groups")
    console.print(table)


def _draw_suspects(console: Console, suspects: Sequence[dict[str, Any]]) -> None:
    if not suspects:
        return
    columns = [("image", "left"), ("label", "left"), ("looks like", "left"), ("by", "right")]
    table = make_table(f"Labels that look wrong: {len(suspects):,}", columns)
    for suspect in suspects[:_MOST_IMAGES]:
        table.add_row(
            escape(suspect["key"]), escape(suspect["label"]), escape(suspect["suggested"]), f"{suspect['score']:.2f}"
        )
    if len(suspects) > _MOST_IMAGES:
        table.add_row(f"and {len(suspects) - _MOST_IMAGES:,} more")
    console.print(table)


def _draw_outliers(console: Console, outliers: Sequence[dict[str, Any]]) -> None:
    if not outliers:
        return
    table = make_table(f"Images unlike all others: {len(outliers):,}", [("image", "left"), ("label", "left")])
    for outlier in outliers[:_MOST_IMAGES]:
        table.add_row(escape(outlier["key"]), escape(outlier["label"]))
    if len(outliers) > _MOST_IMAGES:
        table.add_row(f"and {len(outliers) - _MOST_IMAGES:,} more")
    console.print(table)
