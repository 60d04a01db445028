"""The findings of `check` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tlkeras.cli.tables.style import fill_table, issues_table, left, make_table, open_console, right

if TYPE_CHECKING:
    from tlkeras.diagnostics.check_result import CheckResult, ClassCount, DuplicateImages

_MOST_CLASSES, _MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 30, 10, 4, 15
_BAR = 24


def print_check(result: CheckResult) -> None:
    console = open_console()
    for table in _list_tables(result):
        console.print(table)
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


def _list_tables(result: CheckResult) -> list[Table]:
    """The tables that have rows."""
    facts = [(name, escape(fact)) for name, fact in result.facts.items() if name != "classes"]  # they have a table
    copies = [group for group in result.copies if group.conflicting or group.leaking]
    wrong = [(image.key, image.label, image.suggested, f"{image.score:.2f}") for image in result.mislabelled or ()]
    odd = [(image.key, image.label) for image in result.outliers or ()]
    columns = left("image", "label", "model says")
    return [
        *([fill_table(f"Check of {result.name}", left("", ""), facts)] if facts else []),
        *([_classes_table(result.classes)] if result.classes else []),
        *([issues_table("Files that cannot be used", result.rejected)] if result.rejected else []),
        *([_copies_table(copies)] if copies else []),
        *([_images_table("Labels that look wrong", columns + right("score"), wrong)] if wrong else []),
        *([_images_table("Images unlike all others", columns[:2], odd)] if odd else []),
    ]


def _classes_table(rows: Sequence[ClassCount]) -> Table:
    several = len({row.task for row in rows}) > 1
    largest = max(row.share for row in rows) or 1
    cells = [
        (
            escape(f"{row.task}: {row.class_name}" if several else row.class_name),
            f"{row.images:,}",
            "█" * max(1, round(_BAR * row.share / largest)) if row.images else "",
            *(f"{count:,}" for count in row.splits.values()),
        )
        for row in rows
    ]
    columns = left("class") + right("images") + left("") + right(*rows[0].splits)
    return fill_table("Classes", columns, cells, _MOST_CLASSES)


def _copies_table(groups: Sequence[DuplicateImages]) -> Table:
    table = make_table("Copies that mislead", left("", "label", "split", "image"))
    for group in groups[:_MOST_GROUPS]:
        kind = "same bytes" if group.kind == "exact" else f"alike, {group.similarity:.3f}"
        for number, image in enumerate(group.images[:_MOST_IN_GROUP]):
            table.add_row("" if number else kind, escape(image.label), image.split, escape(image.key))
        if len(group.images) > _MOST_IN_GROUP:
            table.add_row("", "", "", f"and {len(group.images) - _MOST_IN_GROUP:,} more")
        table.add_section()
    if len(groups) > _MOST_GROUPS:
        table.add_row(f"and {len(groups) - _MOST_GROUPS:,} more groups")
    return table


def _images_table(title: str, columns: list[tuple[str, str]], rows: Sequence[Sequence[str]]) -> Table:
    escaped = [tuple(map(escape, row)) for row in rows]
    return fill_table(f"{title} ({len(rows):,})", columns, escaped, _MOST_IMAGES)
