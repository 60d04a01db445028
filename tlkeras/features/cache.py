"""The cache of frozen activations on disk, one folder ROOT/activations/KEY per namespace.

It holds space.json, the facts of the namespace; NAME.shard, rows, or NAME.damaged, set aside; NAME.tmp, an unfinished
shard; NAME.lock, held by a process that has it open. An image's row is found by the SHA-256 of its file; the key is the
SHA-256 of the facts that rows depend on. The engine is not among them: engines agree to 1e-5 of the largest value.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tlkeras.data.png_store import list_pngs, prune_pngs
from tlkeras.errors import ResourceError
from tlkeras.features.store import ActivationStore, count_rows
from tlkeras.files import atomic_write, cache_folder
from tlkeras.results import Result

_FORMAT = 1
_PNGS = {"backbone": "images made PNG", "shape": [], "dtype": ""}
_WAY_OUT = "Free some with `tlkeras cache prune`, raise the budget, or set TLKERAS_CACHE to a larger disk."


@dataclass(frozen=True)
class Namespace:
    """All that activation rows [n, *shape], float16 or float32, depend on besides the image's bytes, as JSON values."""

    facts: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"Activations are float16 or float32. Received: {self.dtype!r}.")

    @cached_property
    def content(self) -> str:
        facts = {"format": _FORMAT, "facts": dict(self.facts), "shape": self.shape, "dtype": self.dtype}
        return json.dumps(facts, sort_keys=True)

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def row_bytes(self) -> int:
        """Size of one row on disk, its digest included."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape) + 32


@dataclass(frozen=True)
class CacheEntryInfo(Result):
    """One namespace of the cache, by its key: facts, rows, bytes on disk, and last use in seconds since 1970."""

    key: str
    facts: Mapping[str, Any]
    rows: int
    bytes: int
    last_used: float


@dataclass(frozen=True)
class CacheResult(Result):
    """Contents of the activation cache: its folder, bytes on disk, and entries, the most recently used first."""

    root: str
    bytes: int
    spaces: tuple[CacheEntryInfo, ...]


@dataclass(frozen=True)
class PruneResult(Result):
    """The entries removed from the cache, and their size on disk in bytes."""

    removed: tuple[CacheEntryInfo, ...]
    bytes: int


class ActivationCache:
    """All namespaces of one folder, shared by every process of the user, within a budget, or None: that of the disk."""

    def __init__(self, root: str | os.PathLike | None = None, budget_bytes: int | None = None):
        self.root = Path(root) if root is not None else cache_folder()
        self.budget_bytes = budget_bytes
        self._folder = self.root / "activations"

    def open(self, namespace: Namespace) -> ActivationStore:
        """A namespace opened for reading and writing; while the store is open, `prune` leaves it.

        Damaged shards are set aside with a warning. A ResourceError is raised if the folder cannot be made or written.
        """
        folder = self._folder / namespace.key
        owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        lock = FileLock(folder / f"{owner}.lock", thread_local=False)
        with _report_problems(folder, "Set TLKERAS_CACHE to a folder of your own, on a file system with locks."):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                folder.mkdir(exist_ok=True)
                _sweep(folder)
                lock.acquire()
                description = folder / "space.json"
                if not description.exists() or description.read_text("utf-8", "replace") != namespace.content:
                    with atomic_write(description) as temporary:
                        temporary.write_text(namespace.content, encoding="utf-8")
                os.utime(description)  # the time of last use
        return ActivationStore(folder, owner, lock, shape=namespace.shape, dtype=namespace.dtype)

    def check_space(self, needed_bytes: int) -> None:
        """Check that so many bytes fit the budget and the disk; a ResourceError says where they do not."""
        if self.budget_bytes is not None:
            used = sum(entry.bytes for entry in self.list_entries())
            if used + needed_bytes > self.budget_bytes:
                rule = f"New activations do not fit the cache's budget of {_format_bytes(self.budget_bytes)}."
                received = f"{_format_bytes(needed_bytes)} in addition to {_format_bytes(used)} in {self.root}"
                raise ResourceError(rule, received, _WAY_OUT)
        root = self.root.absolute()
        free = shutil.disk_usage(next(folder for folder in [root, *root.parents] if folder.exists())).free
        if needed_bytes > free:
            received = f"{_format_bytes(needed_bytes)} for {self.root}, which has {_format_bytes(free)} free"
            raise ResourceError("New activations do not fit the disk.", received, _WAY_OUT)

    def list_entries(self) -> list[CacheEntryInfo]:
        """All namespaces, the most recently used first."""
        folders = [path for path in self._folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
        return sorted(map(_read_entry, folders), key=lambda entry: -entry.last_used)

    def prune(self, max_bytes: int | None = None, unused_seconds: float | None = None) -> list[CacheEntryInfo]:
        """Remove entries and return them, never one that a living process has open; damaged shards go in any case.

        First those unused for so long, then the least recently used until the rest fits; a ResourceError as in `open`.
        """
        removed: list[CacheEntryInfo] = []
        if not self._folder.exists():
            return removed
        with _report_problems(self._folder), self._lock():
            free = {path.name for path in self._folder.glob("*") if path.is_dir() and not _sweep(path)}
            for key in free:
                for damaged in (self._folder / key).glob("*.damaged"):
                    damaged.unlink(missing_ok=True)
            entries = self.list_entries()
            total = sum(entry.bytes for entry in entries)
            for entry in reversed(entries):
                too_old = unused_seconds is not None and time.time() - entry.last_used >= unused_seconds
                too_much = max_bytes is not None and total > max_bytes
                if entry.key in free and (too_old or too_much):
                    renamed = self._folder / f".{entry.key}-{secrets.token_hex(4)}"  # no process reads a part of it
                    (self._folder / entry.key).rename(renamed)
                    shutil.rmtree(renamed, ignore_errors=True)
                    total -= entry.bytes
                    removed.append(entry)
        return removed

    def _lock(self) -> FileLock:
        """The lock that is held for moments, while a namespace is opened and while entries are pruned."""
        return FileLock(self._folder / ".lock")


@contextmanager
def _report_problems(folder: Path, way_out: str | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as problem:  # the latter: a file system without locks
        received = f"{folder}: {getattr(problem, 'strerror', None) or problem}"
        raise ResourceError("Cannot write to the cache folder.", received, way_out) from problem


def _sweep(folder: Path) -> bool:
    """Remove the unfinished files of dead processes in a namespace; whether a living process has it open."""
    for path in folder.glob(".*-space.json"):  # written under the lock that is held now
        path.unlink(missing_ok=True)
    living = set()
    for path in folder.glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
            path.unlink(missing_ok=True)
        except Timeout:
            living.add(path.stem)
    for path in folder.glob("*.tmp"):
        if path.stem.rpartition("-")[0] not in living:
            path.unlink(missing_ok=True)
    return bool(living)


def _read_entry(folder: Path) -> CacheEntryInfo:
    description = folder / "space.json"
    try:
        content = json.loads(description.read_text("utf-8"))
        facts = content["facts"] | {"shape": content["shape"], "dtype": content["dtype"]}
        last_used = description.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):  # by a process that died at once: there are no rows yet
        facts, last_used = {}, 0.0
    files = [path for path in folder.glob("*") if path.suffix in (".shard", ".tmp", ".damaged", ".json")]
    rows = sum(count_rows(path) for path in files if path.suffix == ".shard")
    return CacheEntryInfo(folder.name, facts, rows, sum(_size(path) for path in files), last_used)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _format_bytes(count: int) -> str:
    if count < 1e6:
        return f"{count:,} bytes"
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def list_cache() -> CacheResult:
    cache, pngs = ActivationCache(), list_pngs()
    entries = cache.list_entries()
    if pngs:
        size, last = sum(status.st_size for _, status in pngs), pngs[-1][1].st_mtime
        entries.append(CacheEntryInfo("png", _PNGS, len(pngs), size, last))
    return CacheResult(str(cache.root), sum(entry.bytes for entry in entries), tuple(entries))


def prune_cache(*, max_gb: float | None = None, unused_days: float | None = None) -> PruneResult:
    """Remove entries of the activation cache by size (least recently used first), by age, or both.

    Images that were made PNG get the room that activations leave.
    """
    max_bytes, cache = None if max_gb is None else int(max_gb * 1e9), ActivationCache()
    removed = cache.prune(max_bytes, None if unused_days is None else unused_days * 86_400)
    room = math.inf if max_bytes is None else max_bytes - sum(entry.bytes for entry in cache.list_entries())
    count, size = prune_pngs(room, 0.0 if unused_days is None else time.time() - unused_days * 86_400)
    removed += [CacheEntryInfo("png", _PNGS, count, size, 0.0)] if count else []
    return PruneResult(tuple(removed), sum(entry.bytes for entry in removed))
