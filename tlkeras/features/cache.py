"""Frozen activations on disk, found by content: the image's bytes and all that was done to it.

    ROOT/activations/SPACE KEY/space.json     what the rows are
                               NAME.shard     the rows, see shards.py
                               NAME.tmp       a shard in the making
                               NAME.lock      held by a process that has the space open
                               NAME.damaged   a shard that failed its check, set aside

An image's row is found by the SHA-256 of its file, within a space whose key is the SHA-256 of the facts that
the rows depend on. The engine is not among them: engines agree to 1e-5 of the largest value where float16
rounds by 5e-4, and so a laptop's rows stay good on a server.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tlkeras.errors import ResourceError
from tlkeras.features.shards import count_rows, sync_folder
from tlkeras.features.store import ActivationStore

_FORMAT = 1
_WAY_OUT = "Free some with `tlkeras cache prune`, raise the budget, or set TLKERAS_CACHE to a larger disk."


@dataclass(frozen=True)
class Namespace:
    """What activation rows depend on besides the image's bytes.

    Args:
        facts: JSON values: weights fingerprint, cut, pooling, image size, fit, decoder, view ...
        shape: The shape of one row.
        dtype: "float16" or "float32".
    """

    facts: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"The dtype of a space must be float16 or float32. Received: {self.dtype!r}.")

    @cached_property
    def content(self) -> str:
        """The space as canonical JSON."""
        facts = {"format": _FORMAT, "facts": dict(self.facts), "shape": self.shape, "dtype": self.dtype}
        return json.dumps(facts, sort_keys=True)

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the content, in hex."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def row_bytes(self) -> int:
        """What one row takes on disk, its digest included."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape) + 32


@dataclass(frozen=True)
class CacheEntryInfo:
    """One line of `tlkeras cache ls`; `last_used` in seconds since 1970."""

    key: str
    facts: Mapping[str, Any]
    rows: int
    bytes: int
    last_used: float


class ActivationCache:
    """All spaces under one folder, shared by every process of the user.

    Args:
        root: The folder, made when first needed; `default_root()` if None.
        budget_bytes: The most that all spaces together may take, asked for by `check_space`; None: the disk.
    """

    def __init__(self, root: str | os.PathLike | None = None, budget_bytes: int | None = None):
        self.root = Path(root) if root is not None else default_root()
        self.budget_bytes = budget_bytes
        self._folder = self.root / "activations"

    def open(self, space: Namespace) -> ActivationStore:
        """Open a space for reading and writing; while the store is open, nothing prunes it.

        Damaged shards are set aside with a warning, and what killed processes left is removed.

        Raises:
            ResourceError: The folder cannot be made or written.
        """
        folder = self._folder / space.key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                folder.mkdir(exist_ok=True)
                _sweep(folder)
                owner = f"{os.getpid()}-{secrets.token_hex(4)}"
                lock = FileLock(folder / f"{owner}.lock", thread_local=False)
                lock.acquire()
                _write_description(folder / "space.json", space.content, owner)
        except (OSError, NotImplementedError) as problem:  # the latter: a file system without locks
            raise ResourceError(
                "The cache folder must be writable, on a file system with locks.",
                f"{folder}: {getattr(problem, 'strerror', None) or problem}",
                "Set TLKERAS_CACHE to a folder of your own.",
            ) from problem
        return ActivationStore(folder, owner, lock, shape=space.shape, dtype=space.dtype)

    def check_space(self, needed_bytes: int) -> None:
        """See to it before the work starts that so many bytes fit the budget and the disk.

        Raises:
            ResourceError: They do not.
        """
        if self.budget_bytes is not None:
            used = sum(space.bytes for space in self.list_spaces())
            if used + needed_bytes > self.budget_bytes:
                raise ResourceError(
                    f"New activations must fit the cache's budget of {_say(self.budget_bytes)}.",
                    f"{_say(needed_bytes)} beside the {_say(used)} that {self.root} holds",
                    _WAY_OUT,
                )
        root = self.root.absolute()
        free = shutil.disk_usage(next(folder for folder in [root, *root.parents] if folder.exists())).free
        if needed_bytes > free:
            raise ResourceError(
                "New activations must fit the disk.",
                f"{_say(needed_bytes)} for {self.root}, which has {_say(free)} free",
                _WAY_OUT,
            )

    def list_spaces(self) -> list[CacheEntryInfo]:
        """Return all spaces, the most recently used first."""
        folders = [path for path in self._folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
        return sorted(map(_summarise, folders), key=lambda space: -space.last_used)

    def prune(self, max_bytes: int | None = None, unused_seconds: float | None = None) -> list[CacheEntryInfo]:
        """Remove spaces and return them; a space that a living process has open is never removed.

        Damaged shards and what killed processes left go in any case.

        Args:
            max_bytes: Then remove the least recently used ones until the rest takes no more; 0 is everything.
            unused_seconds: First remove the ones not opened for that long.

        Raises:
            ResourceError: The folder cannot be written.
        """
        if not self._folder.exists():
            return []
        try:
            return self._prune(max_bytes, unused_seconds)
        except OSError as problem:
            raise ResourceError(
                "The cache folder must be writable.", f"{self._folder}: {problem.strerror or problem}"
            ) from problem

    def _prune(self, max_bytes: int | None, unused_seconds: float | None) -> list[CacheEntryInfo]:
        removed = []
        with self._lock():
            free = {path.name for path in self._folder.glob("*") if path.is_dir() and not _sweep(path)}
            for key in free:
                for damaged in (self._folder / key).glob("*.damaged"):
                    damaged.unlink(missing_ok=True)
            spaces = self.list_spaces()
            total = sum(space.bytes for space in spaces)
            for space in reversed(spaces):
                too_old = unused_seconds is not None and time.time() - space.last_used >= unused_seconds
                too_much = max_bytes is not None and total > max_bytes
                if space.key in free and (too_old or too_much):
                    _remove(self._folder / space.key)
                    total -= space.bytes
                    removed.append(space)
        return removed

    def _lock(self) -> FileLock:
        """Held for moments: by whoever opens a space, and by whoever prunes."""
        return FileLock(self._folder / ".lock")


def default_root() -> Path:
    """Return TLKERAS_CACHE if set, else `tlkeras` in the platform's folder for caches."""
    if chosen := os.environ.get("TLKERAS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tlkeras"


def _sweep(folder: Path) -> bool:
    """Remove what dead processes left in a space; return whether a living one has it open."""
    living = set()
    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            living.add(path.stem)
            continue
        lock.release()
        path.unlink(missing_ok=True)
    for path in folder.glob("*.tmp"):
        if path.stem.rpartition("-")[0] not in living:
            path.unlink(missing_ok=True)
    return bool(living)


def _write_description(path: Path, content: str, owner: str) -> None:
    """Write space.json whole, unless it is there; its time of change is when the space was last used."""
    if not path.exists() or path.read_text("utf-8", "replace") != content:
        aside = path.with_name(f"{owner}-space.tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    os.utime(path)


def _summarise(folder: Path) -> CacheEntryInfo:
    description = folder / "space.json"
    try:
        content = json.loads(description.read_text("utf-8"))
        facts = content["facts"] | {"shape": content["shape"], "dtype": content["dtype"]}
        last_used = description.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):  # made by a process that died at once: it holds nothing yet
        facts, last_used = {}, 0.0
    files = [path for path in folder.glob("*") if path.suffix in (".shard", ".tmp", ".damaged", ".json")]
    rows = sum(count_rows(path) for path in files if path.suffix == ".shard")
    return CacheEntryInfo(folder.name, facts, rows, sum(_size(path) for path in files), last_used)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(folder: Path) -> None:
    """Remove a space: renamed first, so that half of one is never seen."""
    doomed = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _say(count: int) -> str:
    if count < 1e6:
        return f"{count:,} bytes"
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def list_cache() -> dict[str, Any]:
    """Where the activation cache lies and what it holds."""
    cache = ActivationCache()
    spaces = [asdict(space) for space in cache.list_spaces()]
    return {"root": str(cache.root), "bytes": sum(space["bytes"] for space in spaces), "spaces": spaces}


def prune_cache(*, max_gb: float | None = None, unused_days: float | None = None) -> dict[str, Any]:
    """The entries removed: by size (least recently used first), by age, or both."""
    removed = ActivationCache().prune(
        max_bytes=None if max_gb is None else int(max_gb * 1e9),
        unused_seconds=None if unused_days is None else unused_days * 86_400,
    )
    return {"removed": [asdict(space) for space in removed], "bytes": sum(space.bytes for space in removed)}
