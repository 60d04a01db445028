"""Images and charts embedded in a page."""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

_THUMBNAIL = 176  # pixels, twice what is shown: sharp on fine screens
_QUALITY = 78
_BLEND = 0.55

# CSS variables for the colours of `tlkeras.plotting.charts`, so that charts follow the page's light or dark scheme.
_COLOURS = {
    "#333333": "var(--ink)",
    "#777777": "var(--faint)",
    "#bbbbbb": "var(--line)",
    "#dddddd": "var(--line)",
    "#e5e5e5": "var(--line)",
    "#f1f4f8": "var(--card)",
    "#ffffff": "var(--page)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--red)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)",
    "#e69f00": "var(--orange)",
    "#56b4e9": "var(--sky)",
}


def embed_image(pixels: np.ndarray) -> str:
    """A data URL of an image, uint8 RGB [h, w, 3], reduced to a thumbnail."""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A grey image with a map of 0 to 1, [h, w], laid over it in colour, uint8 [h, w, 3]."""
    from matplotlib import colormaps

    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    share = np.clip(heat, 0, 1)[..., None]
    colours = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255
    return np.rint(grey * (1 - _BLEND * share) + colours * _BLEND * share).astype(np.uint8)


def embed_chart(name: str, title: str, draw: Callable[[Path], None]) -> Markup:
    """A chart as SVG with a label for screen readers, in the page's colours.

    Args:
        name: Of the chart, unique on its page.
        title: The label.
        draw: Writes the chart to an SVG file.
    """
    with tempfile.TemporaryDirectory(prefix="tlkeras-") as folder:
        path = Path(folder) / f"{name}.svg"
        draw(path)
        text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # these are the same in every chart, and nothing refers to them
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"#[0-9a-f]{6}", lambda found: _COLOURS.get(found[0], found[0]), text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*pt" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*pt" ', r"<svg \1", text, count=1)
    label = escape(title)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" class="chart" ', 1))
