"""Freeze and unfreeze layers, and set the mode of batch normalisation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tlkeras.finetuning.schedule import BatchNorm


def run_in_inference(layer: keras.Layer, on: bool) -> None:
    """Let a layer act as in inference while the model around it trains, or undo that.

    `trainable = False` does this for batch norm only: dropout and stochastic depth of a frozen layer would stay active.
    """
    vars(layer).pop("call", None)
    if not on or "training" not in inspect.signature(layer.call).parameters:
        return
    call = layer.call

    def infer(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": False})

    vars(layer)["call"] = infer


def runs_in_inference(layer: keras.Layer) -> bool:
    """Whether a layer is under `run_in_inference`."""
    return "call" in vars(layer)


def freeze(layers: Iterable[keras.Layer]) -> None:
    """Fix the weights of layers and of all within them, and let them act as in inference."""
    for layer in _list_parts(layers):
        layer.trainable = False
        run_in_inference(layer, True)


def unfreeze(layers: Iterable[keras.Layer], batch_norm: BatchNorm = "train") -> None:
    """Let layers and all within them train, batch norm among them by its own mode, see `Stage`."""
    for layer in _list_parts(layers):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not is_norm or batch_norm in ("affine", "train")
        run_in_inference(layer, is_norm and batch_norm != "train")


def _list_parts(layers: Iterable[keras.Layer]) -> Iterator[keras.Layer]:
    """Yield each layer before those within it: what is set on it is handed down to them, and then set on each."""
    return (part for layer in layers for part in layer._flatten_layers())
