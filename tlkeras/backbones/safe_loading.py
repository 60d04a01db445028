"""A `.keras` archive before it is loaded: whether it could do more than describe layers and hold their weights."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlkeras.backbones.keras_files import check_hdf5
from tlkeras.errors import BackboneError

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_MEMBERS = {_WEIGHTS, _CONFIG, "metadata.json"}
_MAX_CONFIG_BYTES = 64 * 2**20
_MODULES = ("keras", "tlkeras", "builtins")
# Layers that run code or files from outside the archive; keras refuses some of them, and some only in safe mode.
_RUNNING_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def check_archive(path: Path) -> None:
    """Refuse an archive that names code, files or data outside itself; nothing of it is made.

    Raises:
        BackboneError: What is wrong with it.
        OSError, ValueError, KeyError, zipfile.BadZipFile: It is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        strange = [item.filename for item in archive.infolist() if not _is_expected(item.filename)]
        if strange:
            raise _refuse(path, f"a member {strange[0]!r}")
        declared = sum(item.file_size for item in archive.infolist())
        if declared > size + _MAX_CONFIG_BYTES or archive.getinfo(_CONFIG).file_size > _MAX_CONFIG_BYTES:
            raise _refuse(path, f"{declared:,} bytes in a file of {size:,} bytes")
        for found in _list_suspicious(json.loads(archive.read(_CONFIG))):
            raise _refuse(path, found)
        weights = archive.read(_WEIGHTS)
    check_hdf5(io.BytesIO(weights), len(weights))


def _is_expected(name: str) -> bool:
    parts = name.split("/")
    return name in _MEMBERS or (parts[0] == "assets" and ".." not in parts and "\\" not in name)


def _list_suspicious(config: Any) -> Iterator[str]:
    """Yield what a configuration should not hold, layer within layer."""
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
            kind, module = item.get("class_name"), item.get("module")
            if kind in _RUNNING_CODE:
                yield f"a layer {kind}, which runs code"
            if kind is not None and isinstance(module, str) and module.partition(".")[0] not in _MODULES:
                yield f"{kind!r} of the module {module!r}"


def _refuse(path: Path, received: str) -> BackboneError:
    return BackboneError(
        "A saved model must hold layers of keras and tlkeras, and their weights, and nothing else.",
        f"{path} with {received}",
        "Do not use it unless you trust its origin: loading it could run code.",
    )
