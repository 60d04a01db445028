"""Files written whole or not at all, digests of files, and the folder of what can be made again."""

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the target's place on success, durably, and is removed on failure.

    Readers see the old file or the new one, never a part of either. The temporary file is hidden and in the target's
    folder, so that the rename stays within one file system. OSError if there is no room or no permission.
    """
    target = Path(target)
    temporary = _temporary(target)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new empty folder to fill, which becomes the target on success and is removed on failure.

    OSError if the target exists and is not an empty folder, or nothing can be written there.
    """
    target = Path(target)
    temporary = _temporary(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames in a folder durable, where the system can (Windows cannot)."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """TLKERAS_CACHE if set, else `tlkeras` in the platform's folder for caches."""
    if chosen := os.environ.get("TLKERAS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tlkeras"


def _temporary(target: Path) -> Path:
    return target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{target.name}")  # the ending tells the format
