"""The HTML page of `tlkeras check`: its findings next to the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError
from tlkeras.diagnostics.check_result import CheckedImage, CheckResult, ClassCount, DuplicateImages, MislabelledImage
from tlkeras.plotting.html_page import HtmlFigure, HtmlSection

_PIXELS = 132
_MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 60, 8, 96

_Image = TypeVar("_Image", bound=CheckedImage)


def render_check_page(result: CheckResult, paths: Mapping[str, str]) -> list[HtmlSection]:
    """The sections of the page; `paths` leads from printable paths to those that can be opened."""
    verdict = [f"!{problem}" for problem in result.problems] or ["No problems found: ready to train."]
    facts = list(result.facts.items())
    sections = [HtmlSection("Overview", [*verdict, *result.notes], ("", ""), facts), *_list_classes(result.classes)]
    for title, groups in (
        ("Copies with different labels", [group for group in result.copies if group.conflicting]),
        ("Copies in different splits", [group for group in result.copies if group.leaking and not group.conflicting]),
        ("Other copies", [group for group in result.copies if not group.leaking and not group.conflicting]),
    ):
        sections += _draw_copies(title, groups, paths)

    def explain(image: MislabelledImage) -> list[str]:
        return [f"label {image.label}", f"the model says {image.suggested} (+{image.score:.2f})"]

    sections += _draw_images("Labels that look wrong", result.mislabelled or (), paths, explain)
    sections += _draw_images("Images unlike all others", result.outliers or (), paths, lambda image: [image.label])
    for title, issues in (("Files that cannot be used", result.rejected), ("Odd files", result.remarks)):
        rows = [(issue.path, issue.reason) for issue in issues]
        sections += [HtmlSection(title, (), ("file", "reason"), rows)] if rows else []
    return sections


def _list_classes(rows: Sequence[ClassCount]) -> Iterator[HtmlSection]:
    if not rows:
        return
    several = len({row.task for row in rows}) > 1
    names = [f"{row.task}: {row.class_name}" if several else row.class_name for row in rows]
    table = [(name, row.images, row.share, *row.splits.values()) for name, row in zip(names, rows, strict=True)]
    yield HtmlSection("Classes", (), ("class", "images", "share", *rows[0].splits), table)


def _draw_copies(title: str, groups: Sequence[DuplicateImages], paths: Mapping[str, str]) -> Iterator[HtmlSection]:
    if not groups:
        return
    strips = []
    for group in groups[:_MOST_GROUPS]:
        kind = "the same bytes" if group.kind == "exact" else f"they look the same, correlation {group.similarity:.3f}"
        figures = [_draw(image, paths, [image.label, image.split]) for image in group.images]
        strips.append((kind, [figure for figure in figures[:_MOST_IN_GROUP] if figure]))
    yield HtmlSection(f"{title} ({len(groups):,})", _mention_rest(len(groups), _MOST_GROUPS), strips=strips)


def _draw_images(
    title: str, images: Sequence[_Image], paths: Mapping[str, str], explain: Callable[[_Image], list[str]]
) -> Iterator[HtmlSection]:
    if not images:
        return
    figures = [_draw(image, paths, explain(image)) for image in images[:_MOST_IMAGES]]
    strip = ("", [figure for figure in figures if figure])
    yield HtmlSection(f"{title} ({len(images):,})", _mention_rest(len(images), _MOST_IMAGES), strips=[strip])


def _mention_rest(count: int, most: int) -> list[str]:
    return [f"The first {most} are shown; `--json` lists all."] if count > most else []


def _draw(image: CheckedImage, paths: Mapping[str, str], lines: Sequence[str]) -> HtmlFigure | None:
    try:
        pixels = decode_file(paths[image.path], _PIXELS, "pad")
    except ImageError:  # deleted since it was checked
        return None
    return HtmlFigure(pixels, [*filter(None, lines), image.key])
