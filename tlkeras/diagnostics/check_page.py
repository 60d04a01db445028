"""The page of `tlkeras check`: what was found, beside the images it was found in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError
from tlkeras.plotting.html_page import HtmlFigure, HtmlSection

_SPLIT = 132  # pixels
_MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 60, 8, 96


def render_check_page(report: Mapping[str, Any], paths: Mapping[str, str]) -> list[HtmlSection]:
    """Return the sections of the page.

    Args:
        report: What `rehearsal.check` returns.
        paths: From printable paths to those that can be opened.
    """
    verdict = [f"!{problem}" for problem in report["problems"]] or ["Nothing is in the way of a training."]
    facts = [(name, value) for name, value in report["facts"].items()]
    sections = [HtmlSection("Overview", [*verdict, *report["notes"]], ("", ""), facts), *_draw_classes(report)]
    for title, chosen in (
        ("Copies with different labels", lambda group: group["conflicting"]),
        ("Copies on different splits", lambda group: group["leaking"] and not group["conflicting"]),
        ("Other copies", lambda group: not group["leaking"] and not group["conflicting"]),
    ):
        sections += _draw_copies(title, [group for group in report["copies"] if chosen(group)], paths)
    sections += _draw_list("Labels that look wrong", report["mislabelled"], paths, _explain_label)
    sections += _draw_list("Images unlike all others", report["outliers"], paths, lambda image: [image["label"]])
    rows = [(found["path"], found["reason"]) for found in report["rejected"]]
    sections += [HtmlSection("Files that cannot be used", (), ("file", "reason"), rows)] if rows else []
    odd = [(found["path"], found["reason"]) for found in report["remarks"]]
    sections += [HtmlSection("Odd files", (), ("file", "reason"), odd)] if odd else []
    return sections


def _draw_classes(report: Mapping[str, Any]) -> Iterator[HtmlSection]:
    rows = report["classes"]
    if not rows:
        return
    splits = [name for name in rows[0] if name not in ("task", "class", "images", "share")]
    several = len({row["task"] for row in rows}) > 1
    table = [
        (
            f"{row['task']}: {row['class']}" if several else row["class"],
            row["images"],
            float(row["share"]),
            *(row[split] for split in splits),
        )
        for row in rows
    ]
    yield HtmlSection("Classes", (), ("class", "images", "share", *splits), table)


def _draw_copies(title: str, groups: Sequence[Mapping[str, Any]], paths: Mapping[str, str]) -> Iterator[HtmlSection]:
    if not groups:
        return
    strips = []
    for group in groups[:_MOST_GROUPS]:
        same = (
            "the same bytes"
            if group["kind"] == "exact"
            else f"they look the same, correlation {group['similarity']:.3f}"
        )
        figures = [_draw(image, paths, [image["label"], image["split"]]) for image in group["images"]]
        strips.append((same, [figure for figure in figures[:_MOST_IN_GROUP] if figure]))
    yield HtmlSection(f"{title}: {len(groups):,} groups", _tell_rest(len(groups), _MOST_GROUPS), strips=strips)


def _draw_list(
    title: str, images: Sequence[Mapping[str, Any]] | None, paths: Mapping[str, str], explain: Any
) -> Iterator[HtmlSection]:
    if not images:
        return
    figures = [_draw(image, paths, explain(image)) for image in images[:_MOST_IMAGES]]
    strip = ("", [figure for figure in figures if figure])
    yield HtmlSection(f"{title}: {len(images):,}", _tell_rest(len(images), _MOST_IMAGES), strips=[strip])


def _explain_label(image: Mapping[str, Any]) -> list[str]:
    return [f"label {image['label']}", f"looks like {image['suggested']} (by {image['score']:.2f})"]


def _tell_rest(count: int, most: int) -> list[str]:
    return [f"The first {most} are shown; `--json` lists all."] if count > most else []


def _draw(image: Mapping[str, Any], paths: Mapping[str, str], lines: Sequence[str]) -> HtmlFigure | None:
    try:
        pixels = decode_file(paths[image["path"]], _SPLIT, "pad")
    except ImageError:  # it is gone since it was looked at
        return None
    return HtmlFigure(pixels, [*filter(None, lines), image["key"]])
