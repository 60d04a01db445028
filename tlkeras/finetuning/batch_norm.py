"""Recomputed statistics of batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import TlkerasError


def recompute_batch_norm_statistics(
    forward: Callable[[Any], Any], layers: Sequence[keras.Layer], batches: Iterable[Any]
) -> None:
    """Replace the moving statistics of batch norm by those of all batches together; nothing else changes.

    Every layer is measured in the same pass, on inputs that the layers before it have normalised by their batch. The
    variance is the mean of the batches' variances plus the variance of their means, as over one large batch.
    TlkerasError if there is no batch.

    Args:
        forward: Runs the network on a batch, in inference mode: only the measured layers act as in training.
        layers: The batch norms among them are measured; `forward` must reach each.
        batches: Inputs of `forward`, [n, ...] each; examples count the same in batches of any size.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3 (precise batch norm).
    """
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    means, squares, count = [0.0] * len(norms), [0.0] * len(norms), 0
    with _measuring(norms):
        run = tf.function(forward, jit_compile=False, reduce_retracing=True)
        for batch in batches:
            run(tf.convert_to_tensor(batch))
            count += len(batch)
            for index, norm in enumerate(norms):
                mean = norm.moving_mean.numpy().astype(np.float64)
                means[index] += len(batch) * mean
                squares[index] += len(batch) * (norm.moving_variance.numpy().astype(np.float64) + mean**2)
    if not count:
        raise TlkerasError("There are no batches to recompute the statistics of batch norm from.")
    for norm, mean, square in zip(norms, means, squares, strict=True):
        norm.moving_mean.assign(mean / count)
        norm.moving_variance.assign(np.maximum(square / count - (mean / count) ** 2, 0.0))


@contextmanager
def _measuring(norms: Sequence[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Within, each call sets the moving statistics to those of its batch, whatever the mode of the model around it."""
    saved = [(norm.momentum, norm.trainable, vars(norm).get("call")) for norm in norms]
    for norm in norms:
        norm.momentum, norm.trainable = 0.0, True
        vars(norm)["call"] = _act_as_in_training(norm)
    try:
        yield
    finally:
        for norm, (momentum, trainable, call) in zip(norms, saved, strict=True):
            norm.momentum, norm.trainable = momentum, trainable
            del vars(norm)["call"]
            if call is not None:
                vars(norm)["call"] = call


def _act_as_in_training(layer: keras.Layer) -> Callable[..., Any]:
    call = type(layer).call

    def train(*args: Any, **kwargs: Any) -> Any:
        return call(layer, *args, **{**kwargs, "training": True})

    return train
