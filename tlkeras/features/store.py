"""The activations of one namespace: rows by the digests of images, and a writer for more."""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import BaseFileLock

from tlkeras.errors import DataError, ResourceError
from tlkeras.features.shards import DamagedShardError, Shard, ShardFile

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 30.0  # the most work that kill -9 can cost


class ActivationStore:
    """One open namespace with rows [n, *shape]; from `ActivationCache.open`, and closed by `close` or a `with`.

    Its files begin with `owner`, unique among stores; the lock is held until it is closed.
    """

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

    def __enter__(self) -> ActivationStore:
        return self

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
                    _rename_damaged(path, shard)
        self._starts = np.cumsum([0, *(len(shard.rows) for shard in self._shards)])
        digests = np.concatenate([np.empty(0, "S32"), *(shard.digests for shard in self._shards)])
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

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

    def name_shard(self) -> Path:
        return self.folder / f"{self.owner}-{next(self._serials)}.shard"

    def _read(self, path: Path) -> Shard | OSError | DamagedShardError:
        try:
            return Shard(path, self.dtype.name, self.shape)
        except (OSError, DamagedShardError) as problem:
            return problem


class Writer:
    """Appends rows in shards of bounded size and age; each is durable as soon as it is sealed.

    An exception in the `with`, Ctrl-C included, keeps all rows added before it.
    """

    def __init__(self, store: ActivationStore, shard_bytes: int, shard_seconds: float):
        self._store, self._shard_bytes, self._shard_seconds = store, shard_bytes, shard_seconds
        self._file: ShardFile | None = None
        self._opened = 0.0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._seal()
        self._store.refresh()

    def add(self, digests: Sequence[str], rows: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Append rows [n, *shape], finite numbers, rounded to the store's precision; `names` are for error messages.

        Raises:
            DataError: A row holds NaN or infinity, or a number too large for float16.
            ResourceError: The disk is full. Shards sealed before stay.
        """
        if not len(rows):
            return
        packed = pack_digests(digests)
        rounded = self._round(rows, digests if names is None else names)
        try:
            if self._file is None:
                self._file, self._opened = ShardFile(self._store.name_shard()), time.monotonic()
            self._file.add(packed, rounded)
        except OSError as problem:
            raise self._discard(problem) from problem
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
        if self._file is None:
            return
        try:
            self._file.seal()
        except OSError as problem:
            raise self._discard(problem) from problem
        self._file = None

    def _discard(self, problem: OSError) -> ResourceError:
        """Remove the unfinished shard; the error to raise."""
        if self._file is not None:
            self._file.discard()
            self._file = None
        where = f"{problem.strerror} at {self._store.folder}"
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ResourceError("Cannot write to the cache folder.", where)
        ways = "Free space by `tlkeras cache prune`, or set TLKERAS_CACHE to a larger disk, and start again."
        return ResourceError("The disk of the cache is full.", where, f"Complete shards are kept. {ways}")


def _rename_damaged(path: Path, problem: Exception) -> None:
    if isinstance(problem, FileNotFoundError):  # another process renamed it a moment ago
        return
    sentence = "A shard of the cache is damaged and was set aside; its rows will be computed again."
    warnings.warn(f"{sentence} Cause: {path}: {problem}.", RuntimeWarning, stacklevel=3)
    with contextlib.suppress(OSError):
        path.replace(path.with_suffix(".damaged"))


def pack_digests(digests: Sequence[str]) -> np.ndarray:
    """Hex SHA-256 digests as an array [n] of 32 bytes."""
    if any(len(digest) != 64 for digest in digests):
        raise ValueError("Digests are SHA-256 in hex, 64 characters each.")
    return np.frombuffer(bytes.fromhex("".join(digests)), "S32")
