"""Formats that the decoder does not read become PNG on the way in, without loss: what follows knows one decoder."""

import io
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from tlkeras.data.headers import MAX_PIXELS, ImageError, check_header, detect_format, open_image, read_image
from tlkeras.data.png_store import keep_png

_MOST_MEASURED = 500  # images
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def to_decodable(data: bytes, max_pixels: int = MAX_PIXELS, *, keep: bool = True) -> bytes:
    """The bytes of an image if the decoder reads them, else its first frame or page as PNG; or an ImageError.

    The PNG is kept by the digest of the bytes, so that it is made once.
    """
    header = check_header(data, max_pixels)
    if not header.transcoded:
        return data
    return keep_png(data, lambda: _to_png(data, header.format)) if keep else _to_png(data, header.format)


def _to_png(data: bytes, kind: str) -> bytes:
    try:
        with open_image(data, kind) as image:
            image.load()
            # TIFF and HEIC are turned by their readers; GIF and WebP are not turned, as nowhere else.
            upright = ImageOps.exif_transpose(image) if kind == "AVIF" else image
            buffer = io.BytesIO()
            _to_png_mode(upright).save(buffer, "PNG", compress_level=1, icc_profile=None)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises whatever its decoders meet
        raise ImageError("damaged", f"its {kind} pixels cannot be decoded ({error})") from None
    return buffer.getvalue()


def measure_depth(paths: Sequence[str]) -> tuple[int, int]:
    """The lowest and the highest value of images with one channel of 16 bits, of a sample if they are many."""
    low, high = 65535, 0
    for path in paths[:: len(paths) // _MOST_MEASURED + 1]:
        with suppress(Exception):  # whatever is wrong with it, others report
            values = np.asarray(open_image(data := read_image(path), detect_format(data)))
            low, high = min(low, int(values.min())), max(high, int(values.max()))
    return low, high


def _to_png_mode(image: Image.Image) -> Image.Image:
    if image.mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
        return image.convert("RGB")
    if image.mode in ("PA", "La", "RGBa") or (image.mode in ("P", "L", "RGB") and "transparency" in image.info):
        return image.convert("RGBA")
    if image.mode in _PNG_MODES:
        return image
    values = np.asarray(image)
    if image.mode[0] != "I":
        raise ImageError("unsupported", f"pixels of kind {image.mode!r} have no known range: save 8 or 16 bits")
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("unsupported", f"its values, {values.min():,} to {values.max():,}, do not fit 16 bits")
    return Image.fromarray(values.astype(np.uint16))
