"""Features of several depths of a backbone, and of several backbones, as one vector of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cuts
from tlkeras.errors import RecipeError, suggest
from tlkeras.features.pooling import pool_tensor


def find_taps(model: keras.Model, taps: Sequence[str | int]) -> list[CutPoint]:
    """The cuts of a backbone whose activations are features, from input to output.

    Taps are blocks by name or index (negative ones count from the output), or cuts by name, or "last". A RecipeError
    lists all that are unknown or named twice.
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
    return keras.layers.Concatenate()([keras.layers.UnitNormalization()(part) for part in parts])


def extract_taps(model: keras.Model, cuts: Sequence[CutPoint], pooling: str) -> keras.Model:
    """A backbone with its taps pooled and concatenated: images to one vector [n, d]."""
    fused = concatenate_normalized([pool_tensor(cut.tensor, pooling) for cut in cuts])
    return keras.Model(model.input, fused, name=f"{model.name}_{pooling}")


def concatenate_backbones(
    first: keras.Model, others: Sequence[keras.Model], layers: Sequence[keras.layers.Layer] = ()
) -> keras.Model:
    """One model from images to the vectors of several backbones, and of layers on images, concatenated.

    The first one's graph stays flat; the others are applied as layers.
    """
    return add_layers(first.input, [first.output, *(other(first.input) for other in others)], layers, first.name)


def part_widths(model: keras.Model) -> list[int]:
    """The widths of the vectors that are concatenated to a model's output, [] where it is no concatenation."""
    joining = model.output._keras_history.operation
    return [part.shape[-1] for part in joining.input] if isinstance(joining, keras.layers.Concatenate) else []


def add_layers(images: Any, parts: Sequence[Any], layers: Sequence[keras.layers.Layer], name: str) -> keras.Model:
    """One model from symbolic images to vectors, concatenated with the outputs of layers on these images."""
    return keras.Model(images, concatenate_normalized([*parts, *(layer(images) for layer in layers)]), name=name)
