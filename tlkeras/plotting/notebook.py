"""What a notebook shows of results: HTML that needs no other files, in the notebook's own colours, light or dark."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_MOST_ROWS = 30
_THUMBNAIL = 96  # pixels
_LINE = "border-bottom:1px solid rgba(128,128,128,.35)"
_CELL = f"padding:.2em .7em;text-align:left;{_LINE}"
_NUMBER = f"padding:.2em .7em;text-align:right;font-variant-numeric:tabular-nums;{_LINE}"


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; of more than 30 rows the first ones, and how many there are. Floats have three decimals."""
    numeric = [all(isinstance(row[place], int | float) for row in rows) for place in range(len(header))]
    styles = [_NUMBER if of else _CELL for of in numeric]
    head = "".join(f"<th style='{style}'>{escape(name)}</th>" for name, style in zip(header, styles, strict=True))
    body = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in rows[:_MOST_ROWS])
    more = f"<p>The first {_MOST_ROWS} of {len(rows):,}.</p>" if len(rows) > _MOST_ROWS else ""
    head = f"<tr>{head}</tr>" if any(header) else ""
    return f"<div style='overflow-x:auto'><table style='border-collapse:collapse'>{head}{body}</table>{more}</div>"


def render_card(title: str, sentences: Iterable[str], *parts: str) -> str:
    """A title, sentences, and parts that are HTML already."""
    told = "".join(f"<p style='margin:.3em 0'>{escape(sentence)}</p>" for sentence in sentences if sentence)
    return f"<div style='max-width:60em'><h4 style='margin:.4em 0'>{escape(title)}</h4>{told}{''.join(parts)}</div>"


def render_bars(counts: Mapping[str, float]) -> str:
    """A bar for each name, the largest number at full width; of many names the largest ones."""
    shown = sorted(counts.items(), key=lambda item: -item[1]) if len(counts) > _MOST_ROWS else list(counts.items())
    most = max([*counts.values(), 1e-12])
    rows = "".join(
        f"<tr><td style='{_CELL}'>{escape(name)}</td><td style='{_NUMBER}'>{_format(value)}</td><td style='{_CELL}'>"
        f"<div style='background:#0072B2;height:.8em;width:{10 * value / most:.2f}em'></div></td></tr>"
        for name, value in shown[:_MOST_ROWS]
    )
    more = f"<p>The largest {_MOST_ROWS} of {len(counts):,}.</p>" if len(counts) > _MOST_ROWS else ""
    return f"<table style='border-collapse:collapse'>{rows}</table>{more}"


def render_images(images: Iterable[tuple[np.ndarray, str]]) -> str:
    """Thumbnails of images, uint8 RGB [h, w, 3], each with its caption."""
    figures = "".join(
        f"<figure style='margin:0;width:{_THUMBNAIL}px'><img alt='{escape(text, quote=True)}' style='max-width:100%' "
        f"src='{embed_thumbnail(pixels)}'><figcaption style='font-size:.8em;overflow-wrap:anywhere'>{escape(text)}"
        "</figcaption></figure>"
        for pixels, text in images
    )
    return f"<div style='display:flex;flex-wrap:wrap;gap:.6em'>{figures}</div>"


def embed_thumbnail(pixels: np.ndarray, side: int = _THUMBNAIL, quality: int = 80) -> str:
    """A data URL of an image, uint8 RGB [h, w, 3], reduced to at most `side` pixels."""
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((side, side))
    image.save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


class Plot:
    """A picture as PNG: a notebook shows it, `save` writes it.

    Attributes:
        png: The bytes of the file.
    """

    def __init__(self, png: bytes):
        self.png = png

    @classmethod
    def draw(cls, draw: Callable[[Path], Any]) -> Plot:
        """What a function writes to the path of a PNG that it is given."""
        with TemporaryDirectory(prefix="tlkeras-") as folder:
            path = Path(folder) / "plot.png"
            draw(path)
            return cls(path.read_bytes())

    @classmethod
    def of_pixels(cls, pixels: np.ndarray) -> Plot:
        """An image, uint8 RGB [h, w, 3]."""
        from PIL import Image

        return cls.draw(Image.fromarray(pixels).save)

    def save(self, path: str | Path) -> Path:
        """The path, after the picture was written there."""
        Path(path).write_bytes(self.png)
        return Path(path)

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Plot({len(self.png):,} bytes of PNG; save(path) writes them)"


def _render_cell(value: object) -> str:
    return f"<td style='{_NUMBER if isinstance(value, int | float) else _CELL}'>{escape(_format(value))}</td>"


def _format(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if not value or abs(value) >= 0.001 else f"{value:.2g}"
