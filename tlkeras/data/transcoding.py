"""Formats that the decoder does not read become PNG on the way in, without loss: what follows knows one decoder."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tlkeras.data.headers import MAX_PIXELS, Header, ImageError, check_header, open_image
from tlkeras.data.png_store import keep_png

_PHOTOMETRIC = 262  # a tag of a TIFF
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def to_decodable(data: bytes, max_pixels: int = MAX_PIXELS, *, keep: bool = True) -> bytes:
    """The bytes of an image if the decoder reads them, else its first frame or page as PNG; or an ImageError.

    The PNG is kept by the digest of the bytes, so that it is made once.
    """
    header = check_header(data, max_pixels)
    if not header.transcoded:
        return data
    return keep_png(data, lambda: _to_png(data, header)) if keep else _to_png(data, header)


def _to_png(data: bytes, header: Header) -> bytes:
    try:
        with open_image(data, header.format) as image:
            image.load()
            if header.is_deep_colour:
                return _write_deep_png(_read_deep_colours(image, data))
            # TIFF and HEIC are turned by their readers; GIF and WebP are not turned, as nowhere else.
            upright = ImageOps.exif_transpose(image) if header.format == "AVIF" else image
            buffer = io.BytesIO()
            _to_png_mode(_invert_if_white_is_zero(upright)).save(buffer, "PNG", compress_level=1, icc_profile=None)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises whatever its decoders meet
        raise ImageError("damaged", f"its {header.format} pixels cannot be decoded ({error})") from None
    return buffer.getvalue()


def _invert_if_white_is_zero(image: Image.Image) -> Image.Image:
    """The image with black as zero, which Pillow sees to in a TIFF of 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I;16" or tags.get(_PHOTOMETRIC) != 0:
        return image
    return Image.fromarray(65_535 - np.asarray(image))


def _read_deep_colours(image: Image.Image, data: bytes) -> np.ndarray:
    """The pixels of a TIFF of 16 bits per colour, uint16 [h, w, c]. Pillow unpacks the upper byte of each number, which
    is the lower one where they are read in the other byte order.
    """
    with open_image(data, "TIFF") as swapped:
        tiles: list[Any] = swapped.tile
        swapped.tile = [tile._replace(args=(_swap_bytes(tile.args[0]), *tile.args[1:])) for tile in tiles]
        return np.asarray(image).astype(np.uint16) * 256 + np.asarray(swapped)


def _swap_bytes(unpacker: str) -> str:
    """The name of Pillow's unpacker of the other byte order; N stands for that of the machine."""
    layout, order = unpacker[:-1], unpacker[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    return layout + {"L": "B", "B": "L"}[order]


def _write_deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow does not write in colour, of uint16 [h, w, 3 or 4]; unfiltered."""
    height, width, channels = values.shape
    rows = np.zeros((height, 1 + 2 * width * channels), np.uint8)
    rows[:, 1:] = values.astype(">u2").reshape(height, -1).view(np.uint8)
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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
