"""A page of tables and images as one HTML file without other files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from tlkeras.errors import ResourceError
from tlkeras.files import atomic_write
from tlkeras.plotting.notebook import embed_thumbnail

MARK = "<!doctype html><!-- made by tlkeras: written anew each time -->"
_STYLE = (files("tlkeras.plotting") / "page.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class HtmlFigure:
    """An image, uint8 RGB [h, w, 3], and the lines of text below it."""

    pixels: np.ndarray
    lines: Sequence[str]


@dataclass(frozen=True)
class HtmlSection:
    """A heading, sentences, a table, and strips of images with a sentence each.

    Sentences that begin with "!" are highlighted; a float from 0 to 1 in a row is drawn as a bar.
    """

    title: str
    sentences: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    strips: Sequence[tuple[str, Sequence[HtmlFigure]]] = field(default=())


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[HtmlSection]) -> Path:
    """Write a page, if need be over an earlier one of tlkeras; a ResourceError says why it cannot be written."""
    body = "\n".join(map(_render_section, sections))
    page = (
        f"{MARK}\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>\n{_STYLE}</style><h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )
    return write_html(path, page)


def write_html(path: str | os.PathLike[str], page: str) -> Path:
    """Write the text of a page, which begins with `MARK`; arguments and errors as in `write_page`."""
    target = Path(path)
    try:
        check_page(target)
        with atomic_write(target) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResourceError("Cannot write the page.", f"{target} ({error.strerror})") from None
    return target


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise a ResourceError if there is another file or a folder at the path, or no folder to write to."""
    target = Path(path)
    if target.exists() and (not target.is_file() or not target.read_bytes().startswith(MARK.encode())):
        raise ResourceError(f"{target} exists and is not a page of tlkeras.", way_out="Choose another name.")
    if not target.absolute().parent.is_dir():
        raise ResourceError(f"The folder {target.parent} does not exist.", way_out="Create it, or choose another one.")


def _render_section(section: HtmlSection) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    for sentence in section.sentences:
        kind = " class='bad'" if sentence.startswith("!") else ""
        parts.append(f"<p{kind}>{escape(sentence.removeprefix('!'))}</p>")
    if section.rows:
        head = "".join(f"<th>{escape(name)}</th>" for name in section.header)
        body = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in section.rows)
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
    for sentence, figures in section.strips:
        shown = "".join(map(_render_figure, figures))
        parts.append(f"<div class='strip'>{f'<p class=faint>{escape(sentence)}</p>' if sentence else ''}{shown}</div>")
    return "\n".join(parts)


def _render_cell(value: object) -> str:
    if isinstance(value, float):
        return f"<td><div class='bar' style='width:{12 * value:.2f}rem'></div></td>"
    if isinstance(value, int):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


def _render_figure(figure: HtmlFigure) -> str:
    lines = "<br>".join(escape(line) for line in figure.lines)
    source = embed_thumbnail(figure.pixels, max(figure.pixels.shape))
    return f"<figure><img alt='' src='{source}'><figcaption>{lines}</figcaption></figure>"
