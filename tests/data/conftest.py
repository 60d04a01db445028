"""Images made by code, and datasets without images."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkeras.data.tables import Dataset, Task


def encode_image(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def build_png(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """PNG of (width, height, bits, colour type) from zlib-compressed filtered rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    ihdr = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def build_exif(orientation: int, order: str = "<", offset: int = 8) -> bytes:
    """APP1 payload whose first directory holds a width and the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 77, 0) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return b"Exif\0\0" + mark + struct.pack(order + "I", offset) + struct.pack(order + "H", 2) + entries + b"\0" * 4


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    return build_png


@pytest.fixture(scope="session")
def make_exif() -> Callable[..., bytes]:
    return build_exif


@pytest.fixture(scope="session")
def bomb() -> bytes:
    """16,000 x 16,000 pixels of 1 bit in a few kilobytes, made row by row."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 16_000 // 8)
    rows = b"".join(packer.compress(row) for _ in range(16_000)) + packer.flush()
    return build_png((16_000, 16_000, 1, 0), rows)


@pytest.fixture(scope="session")
def colours() -> np.ndarray:
    """uint8 [32, 32, 3]: smooth, different in every quarter and channel."""
    down, across = np.mgrid[0:32, 0:32]
    return np.stack([down * 8, across * 8, 255 - (down + across) * 4], axis=-1).astype(np.uint8)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """Write files below a new folder, by relative path; a number n stands for the n-th plain image."""

    def write(files: dict[str, bytes | int], name: str = "set") -> Path:
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            plain = content if isinstance(content, bytes) else encode_image(np.full((4, 4), content, np.uint8))
            target.write_bytes(plain)
        return tmp_path / name

    return write


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """A dataset without files: targets by task, and whatever else is given."""

    def make(targets: np.ndarray | dict[str, np.ndarray], **given) -> Dataset:
        tasks = targets if isinstance(targets, dict) else {"label": np.asarray(targets)}
        count = len(next(iter(tasks.values())))
        empty = np.full(count, "", dtype=object)
        keys = np.array([f"{number}.png" for number in range(count)], dtype=object)
        values = {
            "source": "made",
            "root": Path("/made"),
            "keys": keys,
            "paths": np.array([f"/made/{key}" for key in keys], dtype=object),
            "tasks": tuple(Task(name, tuple(map(str, range(max(column) + 1)))) for name, column in tasks.items()),
            "targets": {name: np.asarray(column, dtype=np.int64) for name, column in tasks.items()},
            "weights": np.ones(count, np.float32),
            **dict.fromkeys(("groups", "domains", "strata", "given_splits", "digests", "split"), empty),
        }
        return Dataset(**{**values, **given})

    return make
