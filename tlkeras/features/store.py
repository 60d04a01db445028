"""The activations of one namespace: rows by the digests of images in checked files, and a writer for more.

A shard is written under a temporary name, renamed, and memory-mapped. Layout, little-endian: 64 bytes (magic, rows,
bytes per row, CRC-32 of all that follows), the rows in C order, the 32-byte SHA-256 digest of each row's image.
"""

from __future__ import annotations

import errno
import itertools
import math
import mmap
import os
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import BaseFileLock

from tlkeras.errors import DataError, ResourceError
from tlkeras.files import sync_folder

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 30.0  # the most work that kill -9 can cost
_HEADER = struct.Struct("<8sQQI36x")
_MAGIC = b"tlkshrd1"
_CHUNK = 1 << 20
_MAPPED = 1 << 20  # smaller shards are read whole: a map holds a file descriptor, of which a process has few
_verified: set[tuple[str, int, int]] = set()


# Of one value while a head is fitted: as cached, as float32, and twice as the float64 of solvers.
_BYTES = 2 + 4 + 2 * 8
_MEMINFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_memory(rows: int, shape: Sequence[int]) -> None:
    """Raise a ResourceError if a head cannot be fitted on features [rows, *shape] in the free memory, if known."""
    needed, free = rows * math.prod(shape) * _BYTES, free_memory()
    if free is not None and needed > free:
        values = " x ".join(f"{length:,}" for length in (rows, *shape))
        rule = "There is not enough memory to fit a head on the features of all images."
        received = f"{values} values need about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        way_out = "Use fewer taps or backbones, pooling average, or a part of the images by data.limit."
        raise ResourceError(rule, received, way_out)


def peak_memory() -> int | None:
    """Peak memory of this process so far, bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int | None:
    """Bytes that this process may still use, of the machine and of its container; None if unknown."""
    found: list[int] = []
    with suppress(OSError):
        lines = _MEMINFO.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError):
        limit, used = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit.isdigit():
            found.append(int(limit) - int(used))
    return min(found, default=None)


class DamagedShardError(ValueError):
    """The file is not a complete shard."""


class Shard:
    """The rows [n, *shape] and digests [n] of one file, which backs them; a DamagedShardError if it is damaged."""

    def __init__(self, path: Path, dtype: np.dtype, shape: Sequence[int]):
        kind, width = dtype.newbyteorder("<"), math.prod(shape)
        with path.open("rb") as file:
            count, row_bytes, checksum = _read_header(file)
            if row_bytes != kind.itemsize * width:
                raise DamagedShardError(f"its rows have {row_bytes} bytes")
            facts = os.fstat(file.fileno())
            identity = (str(path), facts.st_ino, facts.st_mtime_ns)
            if identity not in _verified:
                found = 0
                while chunk := file.read(_CHUNK):  # mapped pages would count as memory of this process
                    found = zlib.crc32(chunk, found)
                if found != checksum:
                    raise DamagedShardError("its checksum is wrong")
                _verified.add(identity)
            file.seek(0)
            mapped = facts.st_size >= _MAPPED
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
        self.rows = np.frombuffer(content, kind, count * width, _HEADER.size).reshape(count, *shape)
        self.digests = np.frombuffer(content, "S32", count, _HEADER.size + count * row_bytes)


def count_rows(path: Path) -> int:
    """The number of rows by header and size alone; 0 if they do not agree."""
    with suppress(OSError, DamagedShardError), path.open("rb") as file:
        return _read_header(file)[0]
    return 0


def _read_header(file: BinaryIO) -> tuple[int, int, int]:
    header, size = file.read(_HEADER.size), os.fstat(file.fileno()).st_size
    if len(header) < _HEADER.size:
        raise DamagedShardError("it is shorter than its header")
    magic, count, row_bytes, checksum = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise DamagedShardError("it does not begin like a shard")
    expected = _HEADER.size + count * (row_bytes + 32)
    if size != expected:
        raise DamagedShardError(f"it has {size} bytes instead of {expected}")
    return count, row_bytes, checksum


class ActivationStore(AbstractContextManager["ActivationStore"]):
    """One open namespace with rows [n, *shape], from `ActivationCache.open`; its files' names begin with `owner`."""

    def __init__(self, folder: Path, owner: str, lock: BaseFileLock, *, shape: Sequence[int], dtype: str):
        self.folder, self.owner = folder, owner
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._lock = lock
        self._serials = itertools.count()
        self._seen: set[str] = set()
        self._shards: list[Shard] = []
        self._starts = np.zeros(1, np.int64)
        self._order = np.empty(0, np.int64)
        self._sorted = np.empty(0, "S32")
        self.refresh()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def refresh(self) -> None:
        """Read the shards that any process has written since; earlier ids stay valid."""
        paths = sorted(path for path in self.folder.glob("*.shard") if path.name not in self._seen)
        if not paths:
            return
        self._seen.update(path.name for path in paths)
        with ThreadPoolExecutor() as pool:
            for path, shard in zip(paths, pool.map(self._read, paths), strict=True):
                if isinstance(shard, Shard):
                    self._shards.append(shard)
                else:
                    _set_aside(path, shard)
        self._starts = np.cumsum([0, *(len(shard.rows) for shard in self._shards)])
        digests = np.concatenate([np.empty(0, "S32"), *(shard.digests for shard in self._shards)])
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def _read(self, path: Path) -> Shard | OSError | DamagedShardError:
        try:
            return Shard(path, self.dtype, self.shape)
        except (OSError, DamagedShardError) as problem:
            return problem

    def known(self, digests: Sequence[str]) -> np.ndarray:
        """Whether images, by the hex SHA-256 of their files, have a row; bool [n]."""
        return self.locate(digests) >= 0

    def locate(self, digests: Sequence[str]) -> np.ndarray:
        """Row ids of images, -1 where there is none; int64 [n]."""
        wanted = pack_digests(digests)
        if not len(self):
            return np.full(len(wanted), -1, np.int64)
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """The rows [n, *shape] of ids [n] in their order, as stored."""
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(f"Row ids must be below {len(self)}. Received: {ids.min()} to {ids.max()}.")
        rows = np.empty((len(ids), *self.shape), self.dtype)
        holders = np.searchsorted(self._starts, ids, side="right") - 1
        for holder in np.unique(holders):
            here = np.flatnonzero(holders == holder)
            rows[here] = self._shards[holder].rows[ids[here] - self._starts[holder]]
        return rows

    def writer(self, shard_bytes: int = SHARD_BYTES, shard_seconds: float = SHARD_SECONDS) -> Writer:
        """A context in which rows are added; afterwards the store has them."""
        return Writer(self, shard_bytes, shard_seconds)

    def open_shard(self) -> ShardFile:
        return ShardFile(self.folder / f"{self.owner}-{next(self._serials)}.shard")


def _set_aside(path: Path, problem: Exception) -> None:
    if isinstance(problem, FileNotFoundError):  # another process renamed it a moment ago
        return
    sentence = "A shard of the cache is damaged and was set aside; its rows will be computed again."
    warnings.warn(f"{sentence} Cause: {path}: {problem}.", RuntimeWarning, stacklevel=3)
    with suppress(OSError):
        path.replace(path.with_suffix(".damaged"))


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
        with suppress(OSError):  # closing flushes, to a disk that may be full
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _append(self, content: memoryview) -> None:
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)
        self.bytes += len(content)


class Writer(AbstractContextManager["Writer"]):
    """Appends rows in shards of bounded size and age, durable when sealed; an exception in the `with` loses none."""

    def __init__(self, store: ActivationStore, shard_bytes: int, shard_seconds: float):
        self._store, self._shard_bytes, self._shard_seconds = store, shard_bytes, shard_seconds
        self._file: ShardFile | None = None
        self._opened = 0.0

    def __exit__(self, *_: object) -> None:
        self._seal()
        self._store.refresh()

    def add(self, digests: Sequence[str], rows: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Append rows [n, *shape], rounded to the store's precision; `names` are for error messages.

        A DataError is raised for NaN, infinity, or a number too large for float16; a ResourceError if the disk is full.
        """
        if not len(rows):
            return
        packed = pack_digests(digests)
        rounded = self._round(rows, digests if names is None else names)
        with self._report_problems():
            if self._file is None:
                self._file, self._opened = self._store.open_shard(), time.monotonic()
            self._file.add(packed, rounded)
        old = time.monotonic() - self._opened >= self._shard_seconds
        if old or self._file.bytes >= self._shard_bytes:
            self._seal()

    def _round(self, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
        axes = tuple(range(1, rows.ndim))
        finite = np.isfinite(rows).all(axis=axes)
        if not finite.all():
            rule, received = "The backbone computed activations that are not finite.", names[int(np.argmin(finite))]
            way_out = "Check its weights; nothing of this image was stored."
            raise DataError(rule, f"NaN or infinity for {received}", way_out)
        limit = np.finfo(self._store.dtype).max
        largest = np.abs(rows).max(axis=axes)
        if (largest > limit).any():
            rule = f"An activation is larger than {limit:,.0f}, the limit of {self._store.dtype}."
            received = f"{largest.max():,.0f} for {names[int(np.argmax(largest))]}"
            raise DataError(rule, received, "Store them as float32.")
        return np.ascontiguousarray(rows, self._store.dtype.newbyteorder("<"))

    def _seal(self) -> None:
        if self._file is not None:
            with self._report_problems():
                self._file.seal()
            self._file = None

    @contextmanager
    def _report_problems(self) -> Iterator[None]:
        """Remove the unfinished shard and raise a ResourceError if it cannot be written."""
        try:
            yield
        except OSError as problem:
            if self._file is not None:
                self._file.discard()
                self._file = None
            where = f"{problem.strerror} at {self._store.folder}"
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceError("Cannot write to the cache folder.", where) from problem
            ways = "Free space by `tlkeras cache prune`, or set TLKERAS_CACHE to a larger disk, and start again."
            rule = "The disk of the cache is full."
            raise ResourceError(rule, where, f"Complete shards are kept. {ways}") from problem


def pack_digests(digests: Sequence[str]) -> np.ndarray:
    """Hex SHA-256 digests as an array [n] of 32 bytes."""
    if any(len(digest) != 64 for digest in digests):
        raise ValueError("Digests are SHA-256 in hex, 64 characters each.")
    return np.frombuffer(bytes.fromhex("".join(digests)), "S32")
