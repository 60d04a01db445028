"""Images inside larger files: "FILE.tfrecord@OFFSET+LENGTH" is the path of the bytes of one of them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_SLICE = re.compile(r"(?P<file>.+\.tfrecord)@(?P<offset>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL)


class ByteRange(NamedTuple):
    """Some bytes of a file."""

    file: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}@{self.offset}+{self.length}"


def parse_slice(path: str) -> ByteRange | None:
    """Return the slice that a path names; None where it names a file."""
    found = _SLICE.fullmatch(path) if "@" in path else None
    return ByteRange(found["file"], int(found["offset"]), int(found["length"])) if found else None


def find_file(path: str) -> str:
    """Return the file that holds what a path names."""
    piece = parse_slice(path)
    return path if piece is None else piece.file


def find_size(path: str, status: os.stat_result) -> int:
    """Return how many bytes a path names, whose file has this status; 0 where a slice lies beyond its file's end."""
    piece = parse_slice(path)
    if piece is None:
        return status.st_size
    return piece.length if piece.offset + piece.length <= status.st_size else 0


def read_bytes(path: str) -> bytes:
    """Return the bytes that a path names.

    Raises:
        OSError: They cannot be read.
    """
    piece = parse_slice(path)
    with open(path if piece is None else piece.file, "rb") as file:
        if piece is None:
            return file.read()
        file.seek(piece.offset)
        return file.read(piece.length)
