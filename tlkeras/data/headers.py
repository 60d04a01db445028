"""Bytes, formats and headers of image files, also of slices "FILE.tfrecord@OFFSET+LENGTH"; pixels are not decoded."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from tlkeras.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


def _read_rows(name: str) -> list[dict[str, str]]:
    with (files("tlkeras.data") / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


_FORMATS = {row["format"]: row for row in _read_rows("formats.csv")}
SUPPORTED_FORMATS = tuple(_FORMATS)
DECODED_FORMATS = tuple(name for name, row in _FORMATS.items() if row["decoded"])
"""What the decoder reads itself; of the others Pillow makes a PNG first."""
EXTENSIONS = {extension: name for name, row in _FORMATS.items() for extension in row["extensions"].split()}
MAX_PIXELS = 64_000_000
_USUAL_SIZE = 512  # pixels: a JPEG is counted as it is decoded for a network of at most this size
MAX_BYTES = 256 * 2**20
_SLICE = re.compile(r"(?P<file>.+\.tfrecord)@(?P<offset>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL)


# offset and first bytes of each format, the most special first
_SIGNATURES = [
    (int(row["offset"]), row["signature"].encode().decode("unicode_escape").encode("latin-1"), row["format"])
    for row in _read_rows("signatures.csv")
]
_OTHER_IMAGES = ("JPEG XL", "Photoshop (PSD)", "DICOM", "SVG")
# what Pillow says of broken parts of a file: what matters becomes the reason of an ImageError
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Ico)ImagePlugin")
_BITS, _PLANAR, _EXTRA_SAMPLES = 258, 284, 338  # tags of a TIFF
_TGA_KINDS, _TGA_DEPTHS = (1, 2, 3, 9, 10, 11), (1, 8, 15, 16, 24, 32)


class ByteRange(NamedTuple):
    """Consecutive bytes of a file; of a whole one the length is -1."""

    file: str
    offset: int = 0
    length: int = -1

    def __str__(self) -> str:
        return f"{self.file}@{self.offset}+{self.length}"

    def find_size(self, status: os.stat_result) -> int:
        """The number of bytes, given the status of the file; 0 for a slice beyond its end."""
        if self.length < 0:
            return status.st_size
        return self.length if self.offset + self.length <= status.st_size else 0


def parse_slice(path: str) -> ByteRange | None:
    """The slice that a path names; None if it names a whole file."""
    found = _SLICE.fullmatch(path) if "@" in path else None
    return ByteRange(found["file"], int(found["offset"]), int(found["length"])) if found else None


class ImageError(DataError):
    """A file that cannot be read as an image, with the reason as half a sentence.

    Codes are missing, forbidden, special-file, empty, oversized, not-an-image, unsupported, too-many-pixels, damaged.
    """

    def __init__(self, code: str, reason: str, path: str | None = None):
        self.code, self.reason = code, reason
        super().__init__(f"{to_printable(path)}: {reason}." if path else f"The image cannot be read: {reason}.")


@dataclass(frozen=True)
class Issue:
    """A remark on one file: its path as the file system names it, a code for programs, a reason for people."""

    path: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{to_printable(self.path)}: {self.reason}"


class InvalidImage(Issue):
    """A file that is left out, and the reason."""


class ImageWarning(Issue):
    """An image that is used although it is unusual."""


@dataclass(frozen=True)
class Header:
    """The header of an image: columns and rows as stored, before the EXIF orientation, 1 to 8, is applied.

    The format is one of `SUPPORTED_FORMATS`, the mode Pillow's ("1", "P", "RGBA", "I;16" ...); a still has 1 frame.
    """

    format: str
    width: int
    height: int
    mode: str
    frames: int
    orientation: int
    decoded_pixels: int  # of a frame, as they are in memory: a large JPEG is shrunk while it is decoded
    readable: bool  # by the decoder itself, the same graph in an exported model
    transcoded: bool  # whether a PNG is made of the first frame
    deep: bool  # whether it has 16 bits per channel

    @property
    def is_deep_colour(self) -> bool:
        """Whether it is a TIFF of 16 bits per colour, whose lower 8 Pillow leaves out."""
        return self.deep and self.format == "TIFF" and self.mode in ("RGB", "RGBA")


DepthRange = tuple[int, int]
"""The lowest and the highest value of a channel of 16 bits."""


@dataclass(frozen=True)
class Rendering:
    """How an image becomes RGB of 8 bits and of one size, besides that size; runs and exports keep it.

    Ways to resize are "stretch", "crop" and "pad"; alpha is composited over the background, "white" or "black", or
    dropped ("drop"). More pixels in memory than `max_pixels` are refused. Of channels of 16 bits the depth range is
    scaled to 0 to 255, and what lies beyond is clipped; None keeps the upper 8 bits.
    """

    resize: str = "stretch"
    background: str = "white"
    max_pixels: int = MAX_PIXELS
    depth_range: DepthRange | None = None

    @classmethod
    def of(cls, given: Rendering | str | Mapping[str, object]) -> Rendering:
        """From itself, a way to resize, or what a run keeps: older ones dropped alpha."""
        if isinstance(given, (str, Rendering)):
            return cls(given) if isinstance(given, str) else given
        known: dict[str, Any] = {key: value for key, value in given.items() if key in cls.__dataclass_fields__}
        low_high = known.get("depth_range")
        return cls(**{"background": "drop", **known, "depth_range": tuple(low_high) if low_high else None})

    def to_config(self) -> dict[str, Any]:
        """What a run keeps; without a depth range where there is none."""
        return {key: value for key, value in vars(self).items() if value is not None}


Look = Rendering | str
"""A rendering, or a way to resize alone."""


def to_printable(text: str) -> str:
    """`text` with undecodable bytes written as \\xNN, so that it can be printed and stored as UTF-8."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def read_image(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file, or of a slice of one; folders, pipes and devices are never opened, but an ImageError."""
    piece = parse_slice(path) or ByteRange(path)
    try:
        status = os.stat(piece.file)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("special-file", "it is not a regular file", path)
        size = piece.find_size(status)
        if size == 0:
            reason = "the file is empty" if piece.length < 0 else "its TFRecord file ends before it"
            raise ImageError("empty", reason, path)
        if size > max_bytes:
            raise ImageError("oversized", f"{size:,} bytes are more than {max_bytes:,}", path)
        with open(piece.file, "rb") as file:
            file.seek(piece.offset)
            return file.read(piece.length)
    except OSError as error:
        raise ImageError(*explain_os_error(error), path) from None


def explain_os_error(error: OSError) -> tuple[str, str]:
    """Code and reason of a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return "missing", "it does not exist"
    if isinstance(error, PermissionError):
        return "forbidden", "no permission to read it"
    return "damaged", f"it cannot be read: {error.strerror or error}"


def detect_format(data: bytes) -> str:
    """Format of the content by its first bytes: one of `SUPPORTED_FORMATS`, or a plain name of another."""
    if name := _match_signature(data):
        return name
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n\0")
    if len(start) < len(data[:512]) and _match_signature(start) in DECODED_FORMATS:
        return f"{_match_signature(start)} after other bytes"
    start = start.lower()
    if b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "XML" if start.startswith(b"<?xml") else "HTML"
    return "text" if start and _is_text(data[:512]) else "TGA" if _is_targa(data) else "unknown content"


def _match_signature(data: bytes) -> str | None:
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset) and (name != "WebP" or data.startswith(b"RIFF")):
            return "AVIF" if name == "HEIC" and b"avif" in data[16:64] else name
    return "PPM" if re.match(rb"P[1-6f][\s#]", data) else None


def _is_targa(data: bytes) -> bool:
    """Whether the header is that of a TGA, which has no signature: all of its fields have usual values."""
    if len(data) < 18 or data[1] > 1 or data[2] not in _TGA_KINDS or data[16] not in _TGA_DEPTHS or data[17] & 0xC0:
        return False
    has_map = data[1] == 1
    fits = data[7] in _TGA_DEPTHS if has_map else not any(data[3:8])
    return fits and has_map >= (data[2] in (1, 9)) and any(data[12:14]) and any(data[14:16])


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or not error.start:
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


def explain_format(kind: str) -> tuple[str, str] | None:
    """Code and reason with which a format is refused, whatever the file's name; None if it is supported."""
    if kind in _OTHER_IMAGES:
        return "unsupported", f"{kind} is not supported, only {', '.join(SUPPORTED_FORMATS)}"
    return None if kind in _FORMATS else ("not-an-image", f"not an image ({kind})")


def check_header(data: bytes, max_pixels: int = MAX_PIXELS, *, served: bool = False) -> Header:
    """The header of an image, or an ImageError; a served model must read it itself, and unpacks all frames."""
    if not data:
        raise ImageError("empty", "the file is empty")
    if problem := explain_format(kind := detect_format(data)):
        raise ImageError(*problem)
    header = None if served and kind not in DECODED_FORMATS else _read_header(data, kind)
    if header is None or (served and not header.readable):
        name = "this kind of BMP" if kind == "BMP" else kind
        reason = f"{name} is not supported by a served model, only {', '.join(DECODED_FORMATS)}"
        raise ImageError("unsupported", f"{reason}; `tlkeras predict --url` sends it as PNG")
    frames = header.frames if served else 1
    if header.decoded_pixels * frames > max_pixels:
        times = f" in {frames} frames" if frames > 1 else ""
        way_out = "" if served else "; data.max_pixels sets the limit"
        reason = f"{header.width} x {header.height} pixels{times} are more than {max_pixels:,} in all{way_out}"
        raise ImageError("too-many-pixels", reason)
    return header


def open_image(data: bytes, kind: str) -> ImageFile:
    """An image with its header read, by Pillow's reader of one format, one of `SUPPORTED_FORMATS`; or an ImageError."""
    module, name = _FORMATS[kind]["plugin"].split(":")
    try:
        # The class itself: Image.open would try others, and warn of large images before `max_pixels` is checked.
        return getattr(import_module(module), name)(io.BytesIO(data))
    except ImportError:
        raise ImageError("unsupported", "HEIC needs pillow-heif: pip install 'tlkeras[heic]'") from None
    except Exception as error:  # Pillow raises whatever its parsers meet
        code = "unsupported" if re.match("unsupported|unknown pixel mode", str(error), re.IGNORECASE) else "damaged"
        raise ImageError(code, f"its {kind} header cannot be read ({error or type(error).__name__})") from None


def _read_header(data: bytes, kind: str) -> Header:
    if kind == "BMP" and len(data) < 54:
        raise ImageError("damaged", "its BMP header is cut off")
    image = open_image(data, kind)
    try:
        # Only the first frame of an animated PNG is ever unpacked; its others cost nothing.
        frames = 1 if kind == "PNG" else getattr(image, "n_frames", 1)
    except Exception as error:
        raise ImageError("damaged", f"its {kind} frames cannot be counted ({error})") from None
    width, height = image.size
    shrinks = kind == "JPEG" and "progressive" not in image.info  # of these all coefficients are in memory
    ratio = max([1] + [ratio for ratio in (2, 4, 8) if shrinks and min(width, height) >= ratio * _USUAL_SIZE])
    readable = kind in DECODED_FORMATS and (kind != "BMP" or is_plain_bitmap(data))
    transcoded = not readable or frames > 1 or (kind == "GIF" and "transparency" in image.info)
    orientation = _orientation(image.info.get("exif"))
    pixels = -(-width // ratio) * -(-height // ratio)
    hidden = "A" if "transparency" in image.info and image.mode in ("L", "P", "RGB") else ""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    deep = image.mode[0] == "I" or (kind == "PNG" and data[24] == 16) or (kind == "TIFF" and 16 in tags.get(_BITS, ()))
    if deep and len(image.getbands()) > 1 and (tags.get(_PLANAR) == 2 or 1 in tags.get(_EXTRA_SAMPLES, ())):
        reason = (
            "a TIFF of 16 bits with a plane per colour, or alpha that colours are multiplied with, is not supported"
        )
        raise ImageError("unsupported", f"{reason}: save it interleaved, with plain alpha")
    return Header(kind, width, height, image.mode + hidden, frames, orientation, pixels, readable, transcoded, deep)


def is_plain_bitmap(data: bytes) -> bool:
    """Whether TensorFlow decodes a BMP right: 8 bits with a palette, or 24 or 32 bits as B, G, R; not compressed."""
    head, *masks = (int.from_bytes(data[at : at + 4], "little") for at in (14, 54, 58, 62, 66))
    bits, compression = int.from_bytes(data[28:30], "little"), int.from_bytes(data[30:34], "little")
    usual = masks[:3] == [0xFF0000, 0xFF00, 0xFF] and (head < 56 or masks[3] in (0, 0xFF000000))
    return head >= 40 and bits in (8, 24, 32) and (compression == 0 or (compression == 3 and bits == 32 and usual))


def _orientation(exif: bytes | None) -> int:
    from PIL import Image

    parsed, value = Image.Exif(), 1
    with suppress(Exception):  # a broken EXIF block is ignored
        parsed.load(exif or b"")
        value = parsed.get(0x0112, 1)
    return value if value in range(1, 9) else 1
