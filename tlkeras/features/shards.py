"""One file of activation rows: written under a temporary name and renamed, checked before reading, memory-mapped.

Layout, little-endian: a header of 64 bytes (magic, rows, bytes per row, CRC-32 of all that follows), the rows
in C order, then the 32-byte SHA-256 digest of each row's image.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tlkeras.files import sync_folder

_HEADER = struct.Struct("<8sQQI36x")
_MAGIC = b"tlkshrd1"
_CHUNK = 1 << 20
_MAPPED = 1 << 20  # smaller shards are read whole: a map holds a file descriptor, of which a process has few

_verified: set[tuple[str, int, int]] = set()


class DamagedShardError(ValueError):
    """The file is not a complete shard."""


class Shard:
    """The rows [n, *shape], read-only and backed by the file, and digests [n] of 32 bytes, of one checked file.

    A DamagedShardError is raised if the file has the wrong size, kind of rows or checksum.
    """

    def __init__(self, path: Path, dtype: str, shape: Sequence[int]):
        kind = np.dtype(dtype).newbyteorder("<")
        width = math.prod(shape)
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            count, row_bytes, checksum = _read_header(file.read(_HEADER.size), facts.st_size)
            if row_bytes != kind.itemsize * width:
                raise DamagedShardError(f"its rows have {row_bytes} bytes")
            identity = (str(path), facts.st_ino, facts.st_mtime_ns)
            if identity not in _verified:
                _verify(file, checksum)
                _verified.add(identity)
            file.seek(0)
            mapped = facts.st_size >= _MAPPED
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
        self.rows = np.frombuffer(content, kind, count * width, _HEADER.size).reshape(count, *shape)
        self.digests = np.frombuffer(content, "S32", count, _HEADER.size + count * row_bytes)


class ShardFile:
    """An unfinished shard, under a temporary name until `seal` has returned."""

    def __init__(self, path: Path):
        self.path, self.bytes, self.rows = path, 0, 0
        self._temporary = path.with_suffix(".tmp")
        self._digests: list[bytes] = []
        self._checksum = 0
        self._file = self._temporary.open("xb")
        self._file.write(bytes(_HEADER.size))

    def add(self, digests: np.ndarray, rows: np.ndarray) -> None:
        """Append rows, C-contiguous and little-endian [n, ...], with their digests [n] of 32 bytes."""
        self._append(rows.data.cast("B"))
        self._digests.append(digests.tobytes())
        self.rows += len(rows)

    def seal(self) -> None:
        """Write digests and header, flush to the disk, rename."""
        row_bytes = self.bytes // self.rows
        self._append(memoryview(b"".join(self._digests)))
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, self.rows, row_bytes, self._checksum))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, to a disk that may be full
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _append(self, content: memoryview) -> None:
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)
        self.bytes += len(content)


def count_rows(path: Path) -> int:
    """The number of rows by header and size alone; 0 if they do not agree."""
    try:
        with path.open("rb") as file:
            return _read_header(file.read(_HEADER.size), os.fstat(file.fileno()).st_size)[0]
    except (OSError, DamagedShardError):
        return 0


def _read_header(header: bytes, size: int) -> tuple[int, int, int]:
    if len(header) < _HEADER.size:
        raise DamagedShardError("it is shorter than its header")
    magic, count, row_bytes, checksum = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise DamagedShardError("it does not begin like a shard")
    expected = _HEADER.size + count * (row_bytes + 32)
    if size != expected:
        raise DamagedShardError(f"it has {size} bytes instead of {expected}")
    return count, row_bytes, checksum


def _verify(file: BinaryIO, checksum: int) -> None:
    """Compare with the checksum of the rest of the file; read, since mapped pages count as memory of this process."""
    found = 0
    while chunk := file.read(_CHUNK):
        found = zlib.crc32(chunk, found)
    if found != checksum:
        raise DamagedShardError("its checksum is wrong")
