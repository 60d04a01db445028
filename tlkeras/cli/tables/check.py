"""The findings of `check` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import issues_table, make_table, open_console

if TYPE_CHECKING:
    from tlkeras.diagnostics.check_result import CheckResult, ClassCount, DuplicateImages

_MOST_CLASSES, _MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 30, 10, 4, 15
_BAR = 24


def print_check(result: CheckResult) -> None:
    """Print facts, findings, notes and problems."""
    console = open_console()
    facts = {name: fact for name, fact in result.facts.items() if name != "classes"}  # they have their own table
    if facts:
        table = make_table(f"Check of {result.name}", [("", "left"), ("", "left")], header=False)
        for name, fact in facts.items():
            table.add_row(name, escape(fact))
        console.print(table)
    _print_classes(console, result.classes)
    if result.rejected:
        console.print(issues_table("Files that cannot be used", result.rejected))
    _print_copies(console, [group for group in result.copies if group.conflicting or group.leaking])
    columns = ["image", "label", "model says", "score"]
    wrong = [(image.key, image.label, image.suggested, f"{image.score:.2f}") for image in result.mislabelled or ()]
    _print_images(console, "Labels that look wrong", columns, wrong)
    odd = [(image.key, image.label) for image in result.outliers or ()]
    _print_images(console, "Images unlike all others", columns[:2], odd)
    for note in result.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    for problem in result.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    if manifest := result.manifest:
        left_out = "; ".join(f"{count:,}: {reason}" for reason, count in manifest.left_out.items()) or "none"
        console.print(f"Manifest: {escape(manifest.path)}, {manifest.images:,} images. Left out: {left_out}.")
    if result.page:
        console.print(f"Page: {escape(result.page)}")
    console.print("Training is not advisable yet." if result.problems else "No problems found: ready to train.")


def _print_classes(console: Console, rows: Sequence[ClassCount]) -> None:
    if not rows:
        return
    columns = [("class", "left"), ("images", "right"), ("", "left"), *((split, "right") for split in rows[0].splits)]
    several = len({row.task for row in rows}) > 1
    largest = max(row.share for row in rows) or 1
    table = make_table("Classes", columns)
    for row in rows[:_MOST_CLASSES]:
        name = f"{row.task}: {row.class_name}" if several else row.class_name
        bar = "█" * max(1, round(_BAR * row.share / largest)) if row.images else ""
        table.add_row(escape(name), f"{row.images:,}", bar, *(f"{count:,}" for count in row.splits.values()))
    _mention_rest(table, len(rows), _MOST_CLASSES)
    console.print(table)


def _print_copies(console: Console, groups: Sequence[DuplicateImages]) -> None:
    if not groups:
        return
    table = make_table("Copies that mislead", [("", "left"), ("label", "left"), ("split", "left"), ("image", "left")])
    for group in groups[:_MOST_GROUPS]:
        kind = "same bytes" if group.kind == "exact" else f"alike, {group.similarity:.3f}"
        for number, image in enumerate(group.images[:_MOST_IN_GROUP]):
            table.add_row("" if number else kind, escape(image.label), image.split, escape(image.key))
        if len(group.images) > _MOST_IN_GROUP:
            table.add_row("", "", "", f"and {len(group.images) - _MOST_IN_GROUP:,} more")
        table.add_section()
    _mention_rest(table, len(groups), _MOST_GROUPS, " groups")
    console.print(table)


def _print_images(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = make_table(f"{title} ({len(rows):,})", [(name, "right" if name == "score" else "left") for name in columns])
    for row in rows[:_MOST_IMAGES]:
        table.add_row(*map(escape, row))
    _mention_rest(table, len(rows), _MOST_IMAGES)
    console.print(table)


def _mention_rest(table: Table, count: int, most: int, noun: str = "") -> None:
    if count > most:
        table.add_row(f"and {count - most:,} more{noun}")
