"""PNGs of images that the decoder does not read, kept by the digest of the file: CACHE/png-1/ab/abc....png.

What is used least recently goes first when there is no room. A PNG that is cut off is never read.
"""

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tlkeras.files import cache_folder

MAX_BYTES = 10 * 10**9
_FOLDER = "png-1"  # another number whenever the same file gives another PNG
_LEAST_FREE = 10**9  # bytes that stay free on the disk
_END = b"\0\0\0\0IEND\xaeB`\x82"
_lock = threading.Lock()
_known: dict[Path, int] = {}  # bytes in each folder that this process has written to


def keep_png(data: bytes, transcode: Callable[[], bytes]) -> bytes:
    """The PNG of an image file's bytes, from the store or made now; a store that cannot be written is left alone."""
    digest = hashlib.sha256(data).hexdigest()
    path = cache_folder() / _FOLDER / digest[:2] / f"{digest}.png"
    with suppress(OSError):
        kept = path.read_bytes()
        if kept.endswith(_END):
            os.utime(path)  # the time of last use
            return kept
    png = transcode()
    with suppress(OSError):
        _write(path, png)
    return png


def list_pngs() -> list[tuple[Path, os.stat_result]]:
    """All PNGs that are kept, the least recently used first."""
    found = []
    for path in (cache_folder() / _FOLDER).glob("*/*"):
        with suppress(OSError):
            found.append((path, path.stat()))
    return sorted(found, key=lambda one: one[1].st_mtime)


def prune_pngs(max_bytes: float, used_before: float = 0.0) -> tuple[int, int]:
    """Remove PNGs used before a time, then the least recently used until the rest fits; number and bytes removed."""
    found = list_pngs()
    total, count, size = sum(status.st_size for _, status in found), 0, 0
    for path, status in found:
        if total - size > max_bytes or status.st_mtime < used_before:
            with suppress(OSError):
                path.unlink()
                count, size = count + 1, size + status.st_size
    with _lock:
        _known.clear()
    return count, size


def _write(path: Path, png: bytes) -> None:
    folder = path.parent.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < len(png) + _LEAST_FREE or len(png) > MAX_BYTES // 10:
        return
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(png)
        os.replace(temporary, path)  # without waiting for the disk: what a crash cuts off is not read
    finally:
        temporary.unlink(missing_ok=True)
    with _lock:
        if folder not in _known:
            _known[folder] = sum(status.st_size for _, status in list_pngs())
        _known[folder] += len(png)
        full = _known[folder] > MAX_BYTES
    if full:
        prune_pngs(MAX_BYTES // 2)
