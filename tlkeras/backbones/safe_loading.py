"""The check of a `.keras` archive before it is loaded: it holds layers and weights, and no code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlkeras.backbones.keras_files import CONFIG, MAX_CONFIG_BYTES, WEIGHTS, check_hdf5
from tlkeras.errors import BackboneError

_MEMBERS = {WEIGHTS, CONFIG, "metadata.json"}
_MODULES = ("keras", "tlkeras", "builtins")
# Layers that run code or files from outside the archive; Keras refuses some of them, and some only in safe mode.
_RUNNING_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def check_archive(path: Path) -> None:
    """Check that an archive names no code, files or data outside itself; nothing in it is constructed.

    Raises:
        BackboneError: It does, or holds more than its size.
        OSError, ValueError, KeyError, zipfile.BadZipFile: It is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unexpected = [item.filename for item in archive.infolist() if not _is_expected(item.filename)]
        if unexpected:
            raise _distrust_archive(path, f"a member {unexpected[0]!r}")
        declared = sum(item.file_size for item in archive.infolist())
        if declared > size + MAX_CONFIG_BYTES or archive.getinfo(CONFIG).file_size > MAX_CONFIG_BYTES:
            raise _distrust_archive(path, f"{declared:,} bytes in a file of {size:,} bytes")
        for found in _list_suspicious(json.loads(archive.read(CONFIG))):
            raise _distrust_archive(path, found)
        weights = archive.read(WEIGHTS)
    check_hdf5(io.BytesIO(weights), len(weights))


def _is_expected(name: str) -> bool:
    parts = name.split("/")
    return name in _MEMBERS or (parts[0] == "assets" and ".." not in parts and "\\" not in name)


def _list_suspicious(config: Any) -> Iterator[str]:
    """The layers and modules that a configuration should not name, nested ones included."""
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


def _distrust_archive(path: Path, received: str) -> BackboneError:
    rule = "A saved model holds more than layers of keras and tlkeras and their weights."
    way_out = "Do not use it unless you trust its origin: loading it could run code."
    return BackboneError(rule, f"{path} with {received}", way_out)
