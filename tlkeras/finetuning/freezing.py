"""How layers act: frozen or trained, as in inference or in training; and batch norm's modes and statistics."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import TlkerasError
from tlkeras.finetuning.schedule import BatchNorm
from tlkeras.lazy_tensorflow import check_backend


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


def run_in_inference(layer: keras.Layer, on: bool) -> None:
    """Let a layer act as in inference while the model around it trains, or undo that.

    `trainable = False` does this for batch norm only: dropout and stochastic depth of a frozen layer would stay active.
    """
    vars(layer).pop("call", None)
    if on and "training" in inspect.signature(layer.call).parameters:
        vars(layer)["call"] = _fix_training(layer.call, False)


def take_forced(layers: Iterable[keras.Layer]) -> list[tuple[keras.Layer, Callable[..., Any]]]:
    """The layers that act as in inference, with the call that forces them, for `calling`; they act plainly then."""
    return [(part, vars(part).pop("call")) for part in _list_parts(layers) if runs_in_inference(part)]


def runs_in_inference(layer: keras.Layer) -> bool:
    return "call" in vars(layer)


def _fix_training(call: Callable[..., Any], training: bool) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(*args, **{**kwargs, "training": training})


@contextmanager
def calling(stand_ins: Sequence[tuple[keras.Layer, Callable[..., Any]]]) -> Iterator[None]:
    """Within, layers are called as these functions; what was set on them before comes back."""
    saved = [vars(layer).get("call") for layer, _ in stand_ins]
    for layer, call in stand_ins:
        vars(layer)["call"] = call
    try:
        yield
    finally:
        for (layer, _), before in zip(stand_ins, saved, strict=True):
            del vars(layer)["call"]
            if before is not None:
                vars(layer)["call"] = before


def recompute_batch_norm_statistics(
    forward: Callable[[Any], Any], layers: Sequence[keras.Layer], batches: Iterable[Any]
) -> None:
    """Replace the moving statistics of batch norm by those of all batches together; nothing else changes.

    Every layer is measured in the same pass, on inputs that the layers before it have normalised by their batch. The
    variance is the mean of the batches' variances plus the variance of their means, as over one large batch.
    `forward` runs the network on a batch [n, ...], in inference mode, and must reach each batch norm among the layers:
    these alone act as in training. Of batches (images, targets, ...), as `fit` takes them, only the images are read.
    Examples count the same in batches of any size. TlkerasError if there is no batch.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3 (precise batch norm).
    """
    check_backend("recompute_batch_norm_statistics")
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    means, squares, count = [0.0] * len(norms), [0.0] * len(norms), 0
    with _measuring(norms):
        run = tf.function(forward, jit_compile=False, reduce_retracing=True)
        for batch in batches:
            images = tf.convert_to_tensor(batch[0] if isinstance(batch, tuple) else batch)
            run(images)
            count += len(images)
            for index, norm in enumerate(norms):
                mean = norm.moving_mean.numpy().astype(np.float64)
                means[index] += len(images) * mean
                squares[index] += len(images) * (norm.moving_variance.numpy().astype(np.float64) + mean**2)
    if not count:
        raise TlkerasError("There are no batches to recompute the statistics of batch norm from.")
    for norm, mean, square in zip(norms, means, squares, strict=True):
        norm.moving_mean.assign(mean / count)
        norm.moving_variance.assign(np.maximum(square / count - (mean / count) ** 2, 0.0))


@contextmanager
def _measuring(norms: Sequence[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Within, each call sets the moving statistics to those of its batch, whatever the mode of the model around it."""
    saved = [(norm.momentum, norm.trainable) for norm in norms]
    for norm in norms:
        norm.momentum, norm.trainable = 0.0, True
    try:
        # the class's own call: a layer under `run_in_inference` has another
        with calling([(norm, _fix_training(type(norm).call.__get__(norm), True)) for norm in norms]):
            yield
    finally:
        for norm, (momentum, trainable) in zip(norms, saved, strict=True):
            norm.momentum, norm.trainable = momentum, trainable
