"""The cuts and the blocks of a backbone, read from its graph, with no table per backbone."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import keras
from keras import layers

from tlkeras.backbones.graph import (
    Node,
    continue_graph,
    count_call,
    has_weights,
    is_encoder_block,
    is_named_by_keras,
    open_nested,
    trace_calls,
)
from tlkeras.errors import BackboneError, suggest

_MIXING = (layers.Conv2D, layers.SeparableConv2D, layers.Dense, layers.EinsumDense, keras.Model)


@dataclass(frozen=True)
class CutPoint:
    """A tensor through which everything flows, [n, *shape], by its number from the images and the name of its layer."""

    index: int
    name: str
    tensor: Any = field(repr=False, compare=False)
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the activations of one image in float16."""
        return 2 * self.elements


@dataclass(frozen=True)
class Block:
    """Layers that are frozen or trained together, named by the words that their names share; `cut` is their output.

    `layers` are names, from input to output, those without weights included; multiply-adds are per image.
    """

    index: int
    name: str
    layers: tuple[str, ...]
    cut: CutPoint
    parameters: int
    multiply_adds: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cut.shape


def find_cuts(model: keras.Model, *, nested: bool = True) -> list[CutPoint]:
    """Every tensor that alone carries all data, from input to output.

    Those inside models that are layers of the model are found, too, and are tensors of `open_nested(model)`; without
    `nested`, only those of the model's own graph. There is none after the first branch to an output, nor where an image
    has several rows, one for each orientation. A BackboneError is raised for several inputs, or image sizes that are
    not fixed.

    >>> inputs = keras.Input((4, 4, 3))
    >>> outputs = keras.layers.Flatten(name="flat")(keras.layers.Conv2D(2, 3, name="conv")(inputs))
    >>> [cut.name for cut in find_cuts(keras.Model(inputs, outputs))]
    ['conv', 'flat']
    """
    model = open_nested(model) if nested else model
    return [cut for cut, _ in _locate_cuts(model, trace_calls(model))]


def find_cut(model: keras.Model, cut: CutPoint | str | int) -> CutPoint:
    """A cut by its layer, its index (negative ones from the output) or "last"; a BackboneError names the nearest."""
    cuts = find_cuts(model)
    if cut == "last":
        return cuts[-1]
    if isinstance(cut, int):
        if -len(cuts) <= cut < len(cuts):
            return cuts[cut]
        way_out = f"Give a number from 0 to {len(cuts) - 1}, which is the output."
        raise BackboneError(f"{model.name} has no such cut.", cut, way_out)
    name = cut.name if isinstance(cut, CutPoint) else cut
    by_name = {found.name: found for found in cuts}
    if name not in by_name:
        raise BackboneError(f"{model.name} has no cut of that name.", repr(name), suggest(name, [*by_name, "last"]))
    return by_name[name]


def split(model: keras.Model, cut: CutPoint | str | int) -> tuple[keras.Model, keras.Model]:
    """The models from the input to a cut and from there to the output, perhaps the identity; they share variables.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(2)])
    >>> prefix, suffix = split(model, "one")
    >>> prefix.output_shape, suffix.output_shape
    ((None, 3), (None, 2))
    """
    opened = open_nested(model)
    tensor = find_cut(opened, cut).tensor
    prefix = keras.Model(opened.input, tensor, name=f"{model.name}_prefix")
    return prefix, continue_graph(opened, tensor, f"{model.name}_suffix")


def find_blocks(model: keras.Model) -> list[Block]:
    """The blocks of a model, also inside models that are layers of it; each layer with weights is in exactly one.

    A block holds a spatial operation (a convolution with a window, depthwise ones included, or a merge of branches)
    and the layers that mix channels after it; it ends at the narrowest cut before the next spatial operation, the
    deepest where several are equally narrow. So a bottleneck, a residual or dense unit, an Inception module each become
    one block. Layers behind the last narrow cut are a block of their own if one is a convolution or dense layer. A
    model with several outputs has none.
    """
    model = open_nested(model)
    calls = trace_calls(model)
    located = _locate_cuts(model, calls)
    if not located or located[-1][1] != len(calls):
        raise BackboneError("Only a model with one output has blocks.", f"{len(model.outputs)} outputs")
    located = _drop_straddled(calls, located)
    segments = [calls[start:end] for start, end in pairwise([0, *(end for _, end in located)])]
    ends = _choose_ends(segments, [cut for cut, _ in located])
    groups = [calls[start:end] for start, end in pairwise([0, *(located[last][1] for last in ends)])]
    shared = [_share_words(group, model.name) for group in groups]
    lasts = [group[-1].name for group in groups]
    names = [name if name and shared.count(name) == 1 else last for name, last in zip(shared, lasts, strict=True)]
    cuts = [located[last][0] for last in ends]
    return list(map(_make_block, range(len(groups)), names, groups, cuts))


def _locate_cuts(model: keras.Model, calls: Sequence[Node]) -> list[tuple[CutPoint, int]]:
    """Each cut with the number of calls up to it."""
    if len(model.inputs) != 1:
        raise BackboneError("Only a model with one input has cuts.", f"{len(model.inputs)} inputs")
    waiting = Counter(id(tensor) for call in calls for tensor in call.inputs)
    waiting.update(id(tensor) for tensor in model.outputs)  # outputs stay alive to the end
    live, factor = {id(model.inputs[0])}, 1.0
    found: list[tuple[CutPoint, int]] = []
    for position, call in enumerate(calls, start=1):
        factor *= getattr(call.operation, "batch_factor", 1)
        waiting.subtract(id(tensor) for tensor in call.inputs)
        live.update(id(tensor) for tensor in call.outputs)
        live = {tensor for tensor in live if waiting[tensor]}
        if len(live) == 1 and factor == 1:
            tensor = next((tensor for tensor in call.outputs if id(tensor) in live), None)
            if tensor is not None:
                cut = CutPoint(len(found), call.name, tensor, tuple(tensor.shape[1:]))
                if None in cut.shape:
                    rule = "The model takes images of any size, so that the shapes of its cuts are unknown."
                    received = f"a tensor of shape {cut.shape} after {cut.name}"
                    raise BackboneError(rule, received, "Build the backbone with a size.")
                found.append((cut, position))
    return found


def _drop_straddled(calls: Sequence[Node], located: Sequence[tuple[CutPoint, int]]) -> list[tuple[CutPoint, int]]:
    """The cuts that do not lie between two uses of one layer, which would stand in two blocks."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, call in enumerate(calls):
        if has_weights(call):
            first.setdefault(id(call.operation), position)
            last[id(call.operation)] = position
    spans = [(start, last[key]) for key, start in first.items() if last[key] > start]
    return [(cut, end) for cut, end in located if not any(start < end <= stop for start, stop in spans)]


def _choose_ends(segments: Sequence[Sequence[Node]], cuts: Sequence[CutPoint]) -> list[int]:
    """The index of the last segment of each block."""
    ends = []
    complete: int | None = None  # the first segment after which the open block has spatial and mixing layers
    spatial = False
    for index, segment in enumerate(segments):
        is_spatial = any(_is_spatial(call) for call in segment)
        if is_spatial and complete is not None:
            ends.append(_narrowest(segments, cuts, complete, index - 1))
            complete, spatial = None, False
        spatial = spatial or is_spatial
        if complete is None and spatial and any(_mixes(call) for call in segment):
            complete = index
    end = len(segments) - 1
    if complete is not None:
        narrowest = _narrowest(segments, cuts, complete, end)
        if any(_mixes(call) for segment in segments[narrowest + 1 :] for call in segment):
            ends.append(narrowest)
    return [*ends, end]


def _narrowest(segments: Sequence[Sequence[Node]], cuts: Sequence[CutPoint], first: int, last: int) -> int:
    """The deepest of the narrowest cuts, but before a normalisation that begins the next block."""
    least = min(cuts[index].elements for index in range(first, last + 1))
    ties = [index for index in range(first, last + 1) if cuts[index].elements == least]
    best = ties[0]
    for tie in ties[1:]:
        weighted = any(has_weights(call) for segment in segments[best + 1 : tie + 1] for call in segment)
        end = segments[best][-1]
        pools = isinstance(end.operation, (layers.MaxPooling2D, layers.AveragePooling2D))
        if weighted and (pools or len(end.inputs) > 1):
            break
        best = tie
    return best


def _is_spatial(call: Node) -> bool:
    """Whether a call has a window larger than a pixel or joins branches."""
    window = getattr(call.operation, "kernel_size", (1,))
    return is_encoder_block(call.operation) or max(window) > 1 or len({id(tensor) for tensor in call.inputs}) > 1


def _mixes(call: Node) -> bool:
    layer = call.operation
    by_channel = isinstance(layer, layers.DepthwiseConv2D) or getattr(layer, "groups", 1) > 1
    return is_encoder_block(layer) or (isinstance(layer, _MIXING) and not by_channel)


def _make_block(index: int, name: str, members: Sequence[Node], cut: CutPoint) -> Block:
    weighted = {id(call.operation): call.operation for call in members if has_weights(call)}
    names = tuple(dict.fromkeys(call.operation.name for call in members))
    parameters = sum(layer.count_params() for layer in weighted.values())
    return Block(index, name, names, cut, parameters, sum(count_call(call) for call in members))


def _share_words(group: Sequence[Node], model_name: str) -> str:
    """The longest run of words with which more than half of the layers' names begin."""
    named = [call.operation.name for call in group if has_weights(call) and not is_named_by_keras(call.operation)]
    names = [name.removeprefix(f"{model_name}_").split("_") for name in named]
    shared: list[str] = []
    for words in names:
        for length in range(len(shared) + 1, len(words) + 1):
            if sum(other[:length] == words[:length] for other in names) * 2 > len(names):
                shared = words[:length]
    return "_".join(shared)
