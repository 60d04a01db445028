"""Several depths of one backbone, and several backbones, side by side as one vector, in one graph and one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tlkeras.backbones.blocks import CutPoint, find_blocks, find_cuts
from tlkeras.errors import RecipeError, suggest
from tlkeras.features.pooling import pool_tensor


def find_taps(model: keras.Model, taps: Sequence[str | int]) -> list[CutPoint]:
    """Return the cuts where a backbone is read, from input to output.

    Args:
        model: The backbone.
        taps: Blocks by name or index (negative ones count from the output), or cuts by name, or "last".

    Raises:
        RecipeError: There is no such block or cut, or one is named twice; all problems are named at once.
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
            problems.append(f"features.taps: {tap!r} is the end of a block that is named already.")
        found[cut.name] = cut
    if problems:
        raise RecipeError.from_problems("The backbone cannot be read there:", problems)
    return sorted(found.values(), key=lambda cut: cut.index)


def concatenate_normalized(parts: Sequence[Any]) -> Any:
    """Return symbolic vectors side by side, each brought to length one where there are several.

    Blocks differ in width and scale; normalised, each has the same say (Evci et al., Head2Toe, ICML 2022).
    """
    if len(parts) == 1:
        return parts[0]
    return keras.layers.Concatenate()([keras.layers.UnitNormalization()(part) for part in parts])


def extract_taps(model: keras.Model, cuts: Sequence[CutPoint], pooling: str) -> keras.Model:
    """Return a backbone with its taps pooled and fused: images to one vector [n, d]."""
    fused = concatenate_normalized([pool_tensor(cut.tensor, pooling) for cut in cuts])
    return keras.Model(model.input, fused, name=f"{model.name}_{pooling}")


def concatenate_backbones(
    first: keras.Model, others: Sequence[keras.Model], layers: Sequence[keras.layers.Layer] = ()
) -> keras.Model:
    """Return one model from images to the vectors of several backbones, fused; the first keeps its graph flat.

    Args:
        layers: More that make a vector of the same images.
    """
    return add_layers(first.input, [first.output, *(other(first.input) for other in others)], layers, first.name)


def part_widths(model: keras.Model) -> list[int]:
    """Return the widths of the vectors that `fuse` joined last to a model's output, [] where it is not joined."""
    joining = model.output._keras_history.operation
    return [part.shape[-1] for part in joining.input] if isinstance(joining, keras.layers.Concatenate) else []


def add_layers(images: Any, parts: Sequence[Any], layers: Sequence[keras.layers.Layer], name: str) -> keras.Model:
    """Return one model from symbolic images to vectors of them and of layers that see them, fused."""
    return keras.Model(images, concatenate_normalized([*parts, *(layer(images) for layer in layers)]), name=name)
