"""What trains, what rests, and how batch norm behaves meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.finetuning.schedule import BatchNorm


def run_in_inference(layer: keras.Layer, on: bool) -> None:
    """Let a layer act as in inference even while the model around it trains, or undo that.

    `trainable = False` does this for batch norm only: dropout and stochastic depth of a frozen layer would go on.
    """
    vars(layer).pop("call", None)
    if not on or "training" not in inspect.signature(layer.call).parameters:
        return
    call = layer.call

    def infer(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": False})

    vars(layer)["call"] = infer


def freeze(layers: Iterable[keras.Layer]) -> None:
    """Fix the weights of layers, and let them act as in inference."""
    for layer in _list_leaves(layers):
        layer.trainable = False
        run_in_inference(layer, True)


def unfreeze(layers: Iterable[keras.Layer], batch_norm: BatchNorm = "train") -> None:
    """Let layers train; what batch norm does among them is said apart, see `Stage`."""
    for layer in _list_leaves(layers):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not is_norm or batch_norm in ("affine", "train")
        run_in_inference(layer, is_norm and batch_norm != "train")


def reestimate_statistics(forward: Callable[[Any], Any], layers: Sequence[keras.Layer], batches: Iterable[Any]) -> None:
    """Replace the moving statistics of batch norm by their averages over all batches; nothing else changes.

    Args:
        forward: Runs the network on a batch, in training mode.
        layers: The batch norms among them are measured.
        batches: What `forward` takes.
    """
    norms = [layer for layer in _list_leaves(layers) if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    sums = [np.zeros((2, norm.moving_mean.shape[0])) for norm in norms]
    count = 0
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics become those of the batch
        norm.trainable = True
        run_in_inference(norm, False)
    for batch in batches:
        forward(tf.convert_to_tensor(batch))
        count += 1
        for norm, total in zip(norms, sums, strict=True):
            for row, part in enumerate((norm.moving_mean, norm.moving_variance)):
                total[row] += keras.ops.convert_to_numpy(part)
    for norm, momentum, total in zip(norms, momenta, sums, strict=True):
        norm.momentum = momentum
        norm.trainable = False
        run_in_inference(norm, True)
        norm.moving_mean.assign(total[0] / count)
        norm.moving_variance.assign(total[1] / count)


def _list_leaves(layers: Iterable[keras.Layer]) -> Iterator[keras.Layer]:
    for layer in layers:
        parts = [part for part in layer._flatten_layers() if not list(part._flatten_layers(include_self=False))]
        yield from parts or [layer]
