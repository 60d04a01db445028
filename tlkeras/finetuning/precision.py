"""Mixed precision: layers compute in 16 bits while weights, and values that need the range, stay in 32.

float16 has 11 significant bits but no magnitude below 6e-8, so that losses are scaled up while gradients are computed;
bfloat16 has the range of float32 and needs no such care, but only 8 bits (Micikevicius et al., Mixed Precision
Training, ICLR 2018; Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from tlkeras.errors import TlkerasError, suggest

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

# Of 8 bits little is left after a mean is subtracted from a pixel; at three channels float32 costs nothing.
_DELICATE = (keras.layers.Rescaling, keras.layers.Normalization)


def choose_precision(precision: str = "auto") -> str:
    """The precision to compute in: "float32", "bfloat16" or "float16".

    "auto" is, on an NVIDIA GPU, bfloat16 from compute capability 8.0 (Ampere) on and float16 from 7.0 (Volta), the
    first with units for them, elsewhere float32. On a CPU bfloat16 was measured to take 1.6 to 2 times as long.
    TlkerasError if there is no such precision; the nearest is named.

    Source: NVIDIA, Train With Mixed Precision; Keras, Mixed precision (guide).
    """
    if precision not in PRECISIONS:
        raise TlkerasError("Unknown precision.", repr(precision), suggest(precision, PRECISIONS))
    if precision != "auto":
        return precision
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "float32"
    # the first one is what TensorFlow computes on; GPUs of other makers report no capability
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"


@contextmanager
def computing_in(precision: str, layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Within, layers compute in a precision; weights stay as they are.

    Keras reads a layer's policy when the layer is traced, so functions must be traced within; a functional model that
    holds the layers needs no change. Batch norm takes its statistics in float32 whatever its policy is, and layers that
    rescale pixels are left alone. A layer in float32 behind the others casts its inputs.
    """
    policy = precision if precision == "float32" else f"mixed_{precision}"
    parts = [part for layer in layers for part in layer._flatten_layers() if not isinstance(part, _DELICATE)]
    saved = [part.dtype_policy for part in parts]
    for part in parts:
        part.dtype_policy = policy
    try:
        yield
    finally:
        for part, before in zip(parts, saved, strict=True):
            part.dtype_policy = before


def scale_losses(optimizer: keras.optimizers.Optimizer, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer, for float16 within Keras' loss scaling: the scale is found while training and saved.

    The scale starts at 2^15; a step whose gradients overflow is left out and halves it.
    """
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "float16" else optimizer
