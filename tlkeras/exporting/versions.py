"""A folder of numbered versions, as TensorFlow Serving watches it: BASE/<integer>/."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from filelock import FileLock

from tlkeras.errors import ExportError, ResourceError

VERSIONS_FILE = "versions.json"
CONFIG = "models.config"
_ASIDE = ".tmp-"
_OWN = {VERSIONS_FILE, CONFIG}
_STALE_SECONDS = 86_400


def check_target(target: Path) -> None:
    """Refuse a folder that is somebody else's.

    Raises:
        ExportError: It holds more than versions; what is named.
        ResourceError: It is no folder.
    """
    if target.exists() and not target.is_dir():
        raise ResourceError(f"{target} must be a writable folder on a disk with room.", "a file of that name")
    if not target.is_dir() or (target / VERSIONS_FILE).is_file():
        return
    strange = [
        path.name
        for path in sorted(target.iterdir())
        if not path.name.startswith(".") and path.name not in _OWN and not _is_version(path)
    ]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ExportError(
            f"{target} must be new, empty, or a folder of exported versions.",
            ", ".join(strange[:3]) + more,
            "Nothing there was changed. Choose another folder with --to.",
        )


def _is_version(path: Path) -> bool:
    return path.name.isdecimal() and (path / "saved_model.pb").is_file()


def list_versions(target: Path) -> list[int]:
    """Return the numbers of the versions in a folder, the lowest first."""
    if not target.is_dir():
        return []
    return sorted(int(path.name) for path in target.iterdir() if path.name.isdecimal() and path.is_dir())


@contextmanager
def writing_aside(target: Path) -> Iterator[Path]:
    """Yield a folder inside `target` that no server looks at; whatever is left of it at the end is removed.

    Raises:
        ResourceError: The folder cannot be written, or the disk is full.
    """
    aside = target / f"{_ASIDE}{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        yield aside
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise ResourceError(
            f"{target} must be a writable folder on a disk with room.", reason, "Nothing there was changed."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(target: Path) -> None:
    """Remove what killed exports left a day ago or longer."""
    for path in target.glob(f"{_ASIDE}*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def publish(aside: Path, target: Path, facts: Mapping[str, Any]) -> int:
    """Rename a finished folder to the next integer, which no version ever had, and note it in the ledger.

    Raises:
        ExportError: The ledger cannot be read.
    """
    sync(aside)
    with FileLock(target / ".lock"):
        ledger = _read_ledger(target)
        version = max([ledger["last"], *list_versions(target)]) + 1
        ledger = {"last": version, "versions": {**ledger["versions"], str(version): dict(facts)}}
        replace(target / VERSIONS_FILE, json.dumps(ledger, indent=2) + "\n")  # a number is spent before it is used
        os.rename(aside, target / str(version))
        _sync_one(target)
    return version


def _read_ledger(target: Path) -> dict[str, Any]:
    path = target / VERSIONS_FILE
    if not path.exists():
        return {"last": 0, "versions": {}}
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        return {"last": int(ledger["last"]), "versions": dict(ledger["versions"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} must say which version was the last.",
            error,
            'Correct it, as in {"last": 7, "versions": {}}: a number that was served must not come again.',
        ) from None


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        _sync_one(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Force every file and folder to the disk, so that a crash cannot leave a half-written version."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle for a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
