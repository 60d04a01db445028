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
from tlkeras.files import atomic_write, sync_folder

VERSIONS_FILE = "versions.json"
CONFIG = "models.config"
_STAGING_PREFIX = ".tmp-"
_OWN = {VERSIONS_FILE, CONFIG}
_STALE_SECONDS = 86_400


def check_target(target: Path) -> None:
    """Raise an ExportError if a folder holds anything but exported versions, and a ResourceError if it is a file."""
    if target.exists() and not target.is_dir():
        raise ResourceError(f"Cannot write to {target}: it is a file.", way_out="Choose a folder with --to.")
    if not target.is_dir() or (target / VERSIONS_FILE).is_file():
        return
    others = [
        path.name
        for path in sorted(target.iterdir())
        if not path.name.startswith(".")
        and path.name not in _OWN
        and not (path.name.isdecimal() and (path / "saved_model.pb").is_file())
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ExportError(
            f"{target} already contains other files ({', '.join(others[:3])}{more}).",
            way_out="Nothing there was changed. Choose a new folder, or one of exported versions, with --to.",
        )


def list_versions(target: Path) -> list[int]:
    """Numbers of the versions in a folder, in ascending order."""
    if not target.is_dir():
        return []
    return sorted(int(path.name) for path in target.iterdir() if path.name.isdecimal() and path.is_dir())


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A path inside `target` for a version, hidden from servers; ResourceError if nothing can be written there."""
    staging = target / f"{_STAGING_PREFIX}{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f"{_STAGING_PREFIX}*"):  # by exports that were killed a day ago or longer
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        yield staging
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise ResourceError(f"Cannot write to {target}: {reason}.", way_out="Nothing there was changed.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path, facts: Mapping[str, Any]) -> int:
    """The next unused integer, which becomes a finished folder's name; ExportError if versions.json is damaged."""
    sync(staging)
    with FileLock(target / ".lock"):
        last, recorded = _read_ledger(target)
        version = max([last, *list_versions(target)]) + 1
        ledger = {"last": version, "versions": {**recorded, str(version): dict(facts)}}
        with atomic_write(target / VERSIONS_FILE) as file:  # a number is recorded before it is used
            file.write_text(json.dumps(ledger, indent=2) + "\n", encoding="utf-8")
        os.rename(staging, target / str(version))
        sync_folder(target)
    return version


def _read_ledger(target: Path) -> tuple[int, dict[str, object]]:
    """The last number that was used, and the facts of each version."""
    path = target / VERSIONS_FILE
    if not path.exists():
        return 0, {}
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        return int(ledger["last"]), dict(ledger["versions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} is damaged: the last version's number cannot be read.",
            error,
            'Correct it, as in {"last": 7, "versions": {}}: a number that was served is never used again.',
        ) from None


def sync(folder: Path) -> None:
    """Force every file and folder to the disk, so that a crash cannot leave a half-written version."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
