"""Bytes, formats and headers of image files, also of slices "FILE.tfrecord@OFFSET+LENGTH"; pixels are not decoded."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import NamedTuple

from tlkeras.errors import DataError

SUPPORTED_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".gif": "GIF",
    ".webp": "WebP",
}
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20
_SLICE = re.compile(r"(?P<file>.+\.tfrecord)@(?P<offset>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL)


with (files("tlkeras.data") / "signatures.csv").open(encoding="utf-8") as file:
    # offset and first bytes of each format, the most special first
    _SIGNATURES = [
        (int(row["offset"]), row["signature"].encode().decode("unicode_escape").encode("latin-1"), row["format"])
        for row in csv.DictReader(file)
    ]
_OTHER_IMAGES = ("TIFF", "AVIF", "HEIC", "JPEG XL", "JPEG 2000", "icon (ICO)", "Photoshop (PSD)", "DICOM", "SVG")


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
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset) and (name != "WebP" or data.startswith(b"RIFF")):
            return name
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "XML" if start.startswith(b"<?xml") else "HTML"
    return "text" if start and _is_text(data[:512]) else "unknown content"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or not error.start:
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


def check_format(data: bytes) -> str:
    """The format of the content by its first bytes, one of `SUPPORTED_FORMATS`.

    Raises:
        ImageError: empty, not-an-image or unsupported.
    """
    if not data:
        raise ImageError("empty", "the file is empty")
    kind = detect_format(data)
    if kind in SUPPORTED_FORMATS:
        return kind
    if kind not in _OTHER_IMAGES:
        raise ImageError("not-an-image", f"not an image ({kind})")
    raise ImageError("unsupported", f"{kind} is not supported, only {', '.join(SUPPORTED_FORMATS)}")


def check_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image, or an ImageError; pixels of all frames count, as decoders unpack all of them."""
    header = _read_header(data, check_format(data))
    pixels = header.width * header.height * header.frames
    if pixels > max_pixels:
        times = f" in {header.frames} frames" if header.frames > 1 else ""
        reason = f"{header.width} x {header.height} pixels{times} are more than {max_pixels:,} in all"
        raise ImageError("too-many-pixels", reason)
    return header


def _read_header(data: bytes, kind: str) -> Header:
    if kind == "BMP":
        _check_bitmap(data)
    name = kind if kind == "WebP" else kind.title()
    try:
        # The class itself: Image.open would warn about large images before `max_pixels` is checked.
        image = getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")(io.BytesIO(data))
        # Only the first frame of an animated PNG is ever unpacked; its others cost nothing.
        frames = 1 if kind == "PNG" else getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow raises whatever its parsers meet
        raise ImageError("damaged", f"its {kind} header cannot be read ({error})") from None
    width, height = image.size
    return Header(kind, width, height, image.mode, frames, _orientation(image.info.get("exif")))


def _check_bitmap(data: bytes) -> None:
    """Reject what TensorFlow does not decode: all but 8 bits with a palette, 24 and 32 bits, uncompressed."""
    head, bits, compression = (int.from_bytes(data[a:b], "little") for a, b in ((14, 18), (28, 30), (30, 34)))
    if len(data) < 54:
        raise ImageError("damaged", "its BMP header is cut off")
    if head < 40 or bits not in (8, 24, 32) or compression not in (0, 3):
        kind = "compressed BMP" if compression not in (0, 3) else f"BMP of {bits} bits per pixel"
        raise ImageError("unsupported", f"{kind} is not supported, only 8, 24 or 32 bits, uncompressed")


def _orientation(exif: bytes | None) -> int:
    from PIL import Image

    parsed, value = Image.Exif(), 1
    with suppress(Exception):  # a broken EXIF block is ignored
        parsed.load(exif or b"")
        value = parsed.get(0x0112, 1)
    return value if value in range(1, 9) else 1
