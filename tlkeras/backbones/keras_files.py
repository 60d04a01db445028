"""Files of Keras weights and models, read and checked: no layer, function or class that a file names is constructed."""

import contextlib
import io
import itertools
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from tlkeras.backbones.graph import number_kinds
from tlkeras.errors import BackboneError

_HDF5, _ZIP, _PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"
WEIGHTS, CONFIG = "model.weights.h5", "config.json"
MAX_CONFIG_BYTES = 64 * 2**20
_MEMBERS = {WEIGHTS, CONFIG, "metadata.json"}
_MODULES = ("keras", "tlkeras", "builtins")
# Layers that run code or files from outside the archive; Keras refuses some of them, and some only in safe mode.
_RUNNING_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_FORMATS = "Give a .weights.h5, .h5, .keras or .pth file."


@dataclass(frozen=True)
class LayerWeights:
    """Weights by layer in the order of a file: by name, or by Keras' keys in files ("conv2d_1": the second Conv2D)."""

    arrays: dict[str, list[np.ndarray]]
    named: bool


def detect_format(path: Path) -> str:
    """The format of a file by its content: "hdf5", "keras" or "pth"; a BackboneError if it is none of these."""
    if not path.is_file():
        received = "is a folder, not a file of weights." if path.is_dir() else "does not exist."
        raise BackboneError(f"{path} {received}", way_out=_FORMATS)
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_HDF5):
        return "hdf5"
    if head.startswith(_ZIP):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return "keras" if WEIGHTS in archive.namelist() else "pth"
        return "pth"
    if head.startswith(_PICKLE):
        return "pth"
    received = "an empty file" if not head else f"a file that begins with {head!r}"
    raise BackboneError("Unknown format of a weights file.", f"{path}, {received}", _FORMATS)


def read_keras(path: Path) -> list[LayerWeights]:
    """The sets of layers in a `.keras` archive or an HDF5 file, also of a whole saved classifier.

    One of the sets may be the backbone; there is one for each nested model if their names are not known. A
    BackboneError is raised if the file is damaged, reaches outside itself, or claims to hold more than it does.
    """
    try:
        if detect_format(path) == "hdf5":
            with path.open("rb") as file:
                return _read_hdf5(file, path.stat().st_size, {})
        with zipfile.ZipFile(path) as archive:
            weights = _read_member(archive, WEIGHTS, path.stat().st_size)
            names = _name_layers(json.loads(_read_member(archive, CONFIG, MAX_CONFIG_BYTES)))
        return _read_hdf5(io.BytesIO(weights), len(weights), names)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, zipfile.BadZipFile) as error:
        rule, received = "The weights file is damaged or incomplete.", f"{path}: {type(error).__name__}: {error}"
        raise BackboneError(rule, received, "Download or save it again.") from error


def _read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if (declared := archive.getinfo(name).file_size) > limit:
        raise _distrust(f"{name} of {declared:,} bytes in {archive.filename}")
    return archive.read(name)


def _read_hdf5(file: BinaryIO, size: int, names: Mapping[str, str]) -> list[LayerWeights]:
    check_hdf5(file, size)
    with h5py.File(file, "r") as root:
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            return [_read_legacy(root)]
        if "model_weights" in root:
            return [_read_legacy(root["model_weights"])]
        return _read_current(root, names)


def check_hdf5(file: BinaryIO, size: int) -> None:
    """Check that an HDF5 file holds its own data and no more than its size; a BackboneError says where it does not."""
    total = 0

    def find_link(name: Any, link: Any) -> str | None:  # h5py does not pass on exceptions from here
        return None if isinstance(link, h5py.HardLink) else f"{type(link).__name__} {name}"

    def find_foreign(name: str, item: Any) -> str | None:
        nonlocal total
        if not isinstance(item, h5py.Dataset):
            return None
        total += math.prod(item.shape or ()) * item.dtype.itemsize
        return f"dataset {name} whose data lie in other files" if item.external or item.is_virtual else None

    with h5py.File(file, "r") as root:
        if found := root.visititems_links(find_link) or root.visititems(find_foreign):
            raise _distrust(found)
    if total > size:
        raise _distrust(f"arrays of {total:,} bytes in a file of {size:,} bytes")


def _distrust(received: str) -> BackboneError:
    rule = "A weights file refers to other files, or is smaller than its contents."
    return BackboneError(rule, received, "Do not use it unless you trust its origin.")


def _read_current(root: h5py.File, names: Mapping[str, str]) -> list[LayerWeights]:
    """Weights in the format of Keras 3: `layers/conv2d_1/vars/0`, nested models as `layers/functional/layers/...`."""
    paths: list[str] = []
    root.visit(paths.append)
    owners = [path.removesuffix("/vars") for path in paths if path.endswith("/vars")]
    groups = {owner: group for owner in owners if owner != "optimizer" and len(group := root[f"{owner}/vars"])}
    found = {owner: [_read_array(group[str(at)]) for at in range(len(group))] for owner, group in groups.items()}
    if names:
        merged: dict[str, list[np.ndarray]] = {}
        for path in filter(found.__contains__, names):
            merged.setdefault(names[path], found[path])
        return [LayerWeights(merged, named=True)]
    containers: dict[str, dict[str, list[np.ndarray]]] = {}
    for path, arrays in found.items():
        container, _, key = path.rpartition("/")
        containers.setdefault(container, {})[key] = arrays
    return [LayerWeights(arrays, named=False) for arrays in containers.values()]


def _read_legacy(root: h5py.Group) -> LayerWeights:
    """Weights in the format of Keras 1 and 2: one group per layer, whose attributes give the order."""
    arrays: dict[str, list[np.ndarray]] = {}
    for group_name in _read_words(root, "layer_names"):
        group = root[group_name]
        weight_names = _read_words(group, "weight_names")
        owners = [name.split("/")[-2] if "/" in name else group_name for name in weight_names]
        for name, owner in zip(weight_names, owners, strict=True):
            # a nested model has the weights of many layers in one group
            layer = owner if len(set(owners)) > 1 else group_name
            arrays.setdefault(layer, []).append(_read_array(group[name]))
    return LayerWeights(arrays, named=True)


def _read_words(group: h5py.Group, attribute: str) -> list[str]:
    """A list of words; Keras divides long ones into attributes with a number behind the name."""
    numbered = itertools.takewhile(group.attrs.__contains__, (f"{attribute}{number}" for number in itertools.count()))
    words = [word for piece in ([attribute] if attribute in group.attrs else numbered) for word in group.attrs[piece]]
    return [word.decode() if isinstance(word, bytes) else str(word) for word in words]


def _read_array(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset)
    if dataset.attrs.get("dtype") == "bfloat16":
        return widen_bfloat16(array.view(np.uint16))
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{dataset.name} holds {array.dtype}, not numbers")
    return array


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers whose upper half are the bits of bfloat16 numbers, uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _name_layers(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The name of each layer by its path in the archive's weights, in order, nested models included."""
    names: dict[str, str] = {}
    layers = config["config"].get("layers", [])
    keys = number_kinds(layer["class_name"].rpartition(">")[2] for layer in layers)
    for layer, key in zip(layers, keys, strict=True):
        path = f"{prefix}layers/{key}"
        names[path] = layer["config"]["name"]
        if isinstance(layer["config"].get("layers"), list):
            names.update(_name_layers(layer, f"{path}/"))
    return names


def check_archive(path: Path) -> None:
    """Check that a `.keras` archive names no code, files or data outside itself; nothing in it is constructed.

    A BackboneError is raised if it does; an OSError, ValueError, KeyError or BadZipFile if it is damaged.
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
