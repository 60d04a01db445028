"""Poolings of a feature map to a vector, by their names in recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tlkeras.errors import TlkerasError, suggest

_EPSILON = 1e-6


@keras.saving.register_keras_serializable("tlkeras")
class GeneralizedMean(layers.Layer):
    """From maps (n, h, w, c) to (mean over positions of x^p)^(1/p), (n, c); values below 1e-6 count as that.

    Between the average (p = 1) and the maximum (p large): Radenovic et al., PAMI 2019, whose p starts at 3. Here the
    power p, above 0, does not train.
    """

    def __init__(self, power: float = 3.0, **options: Any):
        super().__init__(**options)
        self.power = power

    def call(self, inputs: Any) -> Any:
        powers = ops.power(ops.maximum(inputs, _EPSILON), self.power)
        return ops.power(ops.mean(powers, axis=(1, 2)), 1 / self.power)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("tlkeras")
class CompactBilinear(layers.Layer):
    """From maps (n, h, w, c) to a sketch of the products of all pairs of channels, summed over positions, (n, width).

    The Tensor Sketch of Gao et al. (CVPR 2016): two count sketches of each position are convolved circularly, which is
    a product of their Fourier transforms; then the signed square root and length one. The transforms of the sketches
    are one matrix each and the sum over positions precedes the inverse transform, so that only matrix products are
    needed. The width is even; the paper's 8,192 is close to the full product. The seed is that of the two hashes.
    """

    def __init__(self, width: int = 1024, seed: int = 0, **options: Any):
        super().__init__(**options)
        self.width, self.seed = width, seed

    def build(self, input_shape: tuple) -> None:
        """Draw the hashes, which the seed determines and which are no weights."""
        random = np.random.default_rng(self.seed)
        self._transforms = []
        for _ in range(2):
            sketch = draw_sketch(input_shape[-1], self.width, random)
            spectrum = np.fft.rfft(sketch, axis=1)
            self._transforms.append((spectrum.real.astype("float32"), spectrum.imag.astype("float32")))
        unit = np.eye(self.width // 2 + 1)
        self._back_real = np.fft.irfft(unit, self.width, axis=1).astype("float32")
        self._back_imaginary = np.fft.irfft(1j * unit, self.width, axis=1).astype("float32")

    def call(self, inputs: Any) -> Any:
        _, height, width, channels = inputs.shape
        positions = ops.reshape(inputs, (-1, height * width, channels))
        (a, b), (c, d) = ((ops.matmul(positions, part) for part in pair) for pair in self._transforms)
        real, imaginary = ops.sum(a * c - b * d, axis=1), ops.sum(a * d + b * c, axis=1)
        sketch = ops.matmul(real, self._back_real) + ops.matmul(imaginary, self._back_imaginary)
        rooted = ops.sign(sketch) * ops.sqrt(ops.abs(sketch))
        return rooted / ops.maximum(ops.sqrt(ops.sum(rooted**2, axis=1, keepdims=True)), _EPSILON)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.width)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "seed": self.seed}


def draw_sketch(channels: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A count sketch as a matrix (channels, width): in each row one 1 or -1 (Charikar et al., 2002)."""
    sketch = np.zeros((channels, width))
    columns, signs = random.integers(0, width, channels), random.choice([-1.0, 1.0], channels)
    sketch[np.arange(channels), columns] = signs
    return sketch


def _average_and_max(tensor: Any) -> Any:
    return layers.Concatenate()([layers.GlobalAveragePooling2D()(tensor), layers.GlobalMaxPooling2D()(tensor)])


POOLINGS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "average": layers.GlobalAveragePooling2D,
    "max": layers.GlobalMaxPooling2D,
    "both": lambda: _average_and_max,
    "gem": GeneralizedMean,
    "compact_bilinear": CompactBilinear,
    "none": layers.Identity,
}


def pool_tensor(tensor: Any, pooling: str) -> Any:
    """A symbolic map [n, height, width, channels] pooled to a vector; a vector as it is.

    Tokens [n, tokens, channels] are a map that is one position wide, also for the pooling "none".
    """
    if pooling not in POOLINGS:
        raise TlkerasError(f"Unknown pooling {pooling!r}.", way_out=suggest(pooling, POOLINGS))
    if len(tensor.shape) == 3:
        tensor = layers.Reshape((tensor.shape[1], 1, tensor.shape[2]))(tensor)
    return tensor if len(tensor.shape) != 4 or pooling == "none" else POOLINGS[pooling]()(tensor)


def pool(model: keras.Model, pooling: str) -> keras.Model:
    """The model with each output that is a map or tokens pooled to a vector, see `pool_tensor`."""
    outputs = [pool_tensor(output, pooling) for output in model.outputs]
    if all(pooled is output for pooled, output in zip(outputs, model.outputs, strict=True)):
        return model
    only = outputs[0] if len(outputs) == 1 else outputs  # Keras keeps a list of one as a list
    return keras.Model(model.input, only, name=f"{model.name}_{pooling}")
