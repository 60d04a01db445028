"""Features as one vector: poolings of a map, by their names in recipes, and several depths or backbones joined."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cuts
from tlkeras.errors import RecipeError, TlkerasError, suggest

_EPSILON = 1e-6


@keras.saving.register_keras_serializable("tlkeras")
class GeneralizedMean(layers.Layer):
    """From maps (n, h, w, c) to (mean over positions of x^p)^(1/p), (n, c), of a power p above 0; x is at least 1e-6.

    Between the average (p = 1) and the maximum (p large): Radenovic et al., PAMI 2019, whose p trains from 3 on.
    """

    def __init__(self, power: float = 3.0, **options: Any):
        super().__init__(**options)
        self.power = power

    def call(self, inputs: Any) -> Any:
        powers = ops.power(ops.maximum(inputs, _EPSILON), self.power)
        return ops.power(ops.mean(powers, axis=(1, 2)), 1 / self.power)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("tlkeras")
class CompactBilinear(layers.Layer):
    """From maps (n, h, w, c) to a sketch of the products of all pairs of channels, summed over positions, (n, width).

    The Tensor Sketch of Gao et al. (CVPR 2016): two count sketches of each position, drawn by the seed, are convolved
    circularly, as a product of their Fourier transforms; then the signed square root and length one. The sum over
    positions precedes the inverse transform, so that all is matrix products. The paper's even width is 8,192.
    """

    def __init__(self, width: int = 1024, seed: int = 0, **options: Any):
        super().__init__(**options)
        self.width, self.seed = width, seed

    def build(self, input_shape: tuple) -> None:
        """Draw the hashes, which are no weights."""
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


def find_taps(model: keras.Model, taps: Sequence[str | int]) -> list[CutPoint]:
    """The cuts of a backbone whose activations are features, from input to output.

    Taps are blocks by name or index (negative ones from the end), cuts by name, or "last", else a RecipeError.
    """
    blocks, cuts = find_blocks(model), find_cuts(model)
    known = {**{cut.name: cut for cut in cuts}, **{block.name: block.cut for block in blocks}, "last": cuts[-1]}
    found: dict[str, CutPoint] = {}
    problems = []
    for tap in taps:
        if isinstance(tap, int) and -len(blocks) <= tap < len(blocks):
            cut = blocks[tap].cut
        elif isinstance(tap, str) and tap in known:
            cut = known[tap]
        else:
            names = [block.name for block in blocks]
            way = suggest(tap, names) if isinstance(tap, str) else f"It has blocks 0 to {len(blocks) - 1}."
            problems.append(f"features.taps: {model.name} has no block or cut {tap!r}. {way}")
            continue
        if cut.name in found:
            problems.append(f"features.taps: {tap!r} is the end of a block that is listed already.")
        found[cut.name] = cut
    if problems:
        raise RecipeError.from_problems("The taps do not fit the backbone:", problems)
    return sorted(found.values(), key=lambda cut: cut.index)


def concatenate_normalized(parts: Sequence[Any]) -> Any:
    """Symbolic vectors concatenated, each normalised to length one where there are several.

    Blocks differ in width and scale; normalised, each has the same weight (Evci et al., Head2Toe, ICML 2022).
    """
    if len(parts) == 1:
        return parts[0]
    return layers.Concatenate()([layers.UnitNormalization()(part) for part in parts])


def extract_taps(model: keras.Model, cuts: Sequence[CutPoint], pooling: str) -> keras.Model:
    """A backbone with its taps pooled and concatenated: images to one vector [n, d]."""
    fused = concatenate_normalized([pool_tensor(cut.tensor, pooling) for cut in cuts])
    return keras.Model(model.input, fused, name=f"{model.name}_{pooling}")


def concatenate_backbones(
    first: keras.Model, others: Sequence[keras.Model], parts: Sequence[layers.Layer] = ()
) -> keras.Model:
    """One model from images to the vectors of a flat graph, of others as layers, and of layers, concatenated."""
    return add_layers(first.input, [first.output, *(other(first.input) for other in others)], parts, first.name)


def part_widths(model: keras.Model) -> list[int]:
    """The widths of the vectors that are concatenated to a model's output, [] where it is no concatenation."""
    joining = model.output._keras_history.operation
    return [part.shape[-1] for part in joining.input] if isinstance(joining, layers.Concatenate) else []


def add_layers(images: Any, vectors: Sequence[Any], parts: Sequence[layers.Layer], name: str) -> keras.Model:
    """One model from symbolic images to vectors, concatenated with the outputs of layers on these images."""
    return keras.Model(images, concatenate_normalized([*vectors, *(layer(images) for layer in parts)]), name=name)
