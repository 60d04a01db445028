"""Paths of images inside larger files: "FILE.tfrecord@OFFSET+LENGTH"."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_SLICE = re.compile(r"(?P<file>.+\.tfrecord)@(?P<offset>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL)


class ByteRange(NamedTuple):
    """Consecutive bytes of a file."""

    file: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}@{self.offset}+{self.length}"


def parse_slice(path: str) -> ByteRange | None:
    """The slice that a path names; None if it names a whole file."""
    found = _SLICE.fullmatch(path) if "@" in path else None
    return ByteRange(found["file"], int(found["offset"]), int(found["length"])) if found else None


def find_file(path: str) -> str:
    """The file that a path names or that contains its slice."""
    piece = parse_slice(path)
    return path if piece is None else piece.file


def find_size(path: str, status: os.stat_result) -> int:
    """Number of bytes that a path names, given the status of its file; 0 for a slice beyond the end of the file."""
    piece = parse_slice(path)
    if piece is None:
        return status.st_size
    return piece.length if piece.offset + piece.length <= status.st_size else 0


def read_bytes(path: str) -> bytes:
    piece = parse_slice(path) or ByteRange(path, 0, -1)
    with open(piece.file, "rb") as file:
        file.seek(piece.offset)
        return file.read(piece.length)
