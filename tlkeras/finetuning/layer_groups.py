"""The layers of any functional model in groups: the blocks of its backbone, and its head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import keras

from tlkeras.backbones.blocks import find_blocks, find_cuts
from tlkeras.backbones.graph import Node, has_weights, trace_calls
from tlkeras.errors import BackboneError, suggest


@dataclass(frozen=True)
class LayerGroup:
    """Layers that train or rest together, from input to output."""

    name: str
    layers: tuple[keras.Layer, ...] = field(repr=False)


@dataclass(frozen=True)
class Groups:
    """A model's layers; each that owns weights is in exactly one group.

    Attributes:
        model: Whose layers they are.
        blocks: Of the backbone, from input to output, as `find_blocks` finds them. What has weights and comes before
            the backbone belongs to the first one; what comes before the first weights, augmentation for instance, to
            none.
        head: What comes after the backbone and owns weights or acts differently in training.
    """

    model: keras.Model = field(repr=False)
    blocks: tuple[LayerGroup, ...]
    head: LayerGroup


def group_layers(model: keras.Model, head: Sequence[str] | None = None) -> Groups:
    """Group the layers of a model with a backbone, which may be one of its layers or a part of its graph.

    A nested model with most of the variables is the backbone. In a flat graph the backbone ends
    with the last map [n, h, w, c] that everything flows through, so that pooling or flattening begins the head.

    Args:
        model: Functional, with images of a fixed size.
        head: Names of the layers of the head, for a flat graph in which it begins elsewhere.

    Raises:
        BackboneError: There is no such layer, no map to end the backbone with, or no head with weights.
    """
    calls = trace_calls(model)
    nested = _find_nested(calls)
    end = nested.outputs[0] if nested else _find_end(model, calls, head)
    below = keras.Model(model.inputs, end)
    blocks = _make_blocks(below, nested.operation if nested else below)
    known = {id(call.operation) for call in trace_calls(below)}
    above = {id(call.operation): call.operation for call in calls if id(call.operation) not in known}
    layers = tuple(layer for layer in above.values() if isinstance(layer, keras.Layer) and _matters(layer))
    if not any(layer.weights for layer in layers):
        raise BackboneError(
            "A model to fine-tune needs a head with weights behind its backbone.",
            f"{model.name}, with none behind {end.name!r}",
            "Name the layers of the head where it begins earlier: head=[...].",
        )
    return Groups(model, blocks, LayerGroup("head", layers))


def layerwise_lr_decay(groups: Groups, multipliers: Sequence[float]) -> dict[str, float]:
    """Return the learning-rate multiplier of each variable that trains in the backbone, by its path.

        multipliers = decay_by_block(groups, Stage("all", "all", 1e-4, epochs=5, layer_decay=0.75).multipliers(8))
        model.compile(scale_learning_rates(keras.optimizers.AdamW(), multipliers), ...)

    Args:
        groups: Of a model, from `group_layers`.
        multipliers: One per block, from input to output; the head keeps its full rate.

    Raises:
        BackboneError: There is not one multiplier per block.
    """
    if len(multipliers) != len(groups.blocks):
        raise BackboneError("There must be one multiplier per block.", f"{len(multipliers)} for {len(groups.blocks)}")
    pairs = zip(groups.blocks, multipliers, strict=True)
    layers = ((layer, multiplier) for block, multiplier in pairs for layer in block.layers)
    return {variable.path: multiplier for layer, multiplier in layers for variable in layer.trainable_variables}


def _find_nested(calls: Sequence[Node]) -> Node | None:
    """Return the call of the model that has most of the variables, if there is one."""
    owners = {id(call.operation): call.operation for call in calls if has_weights(call)}
    total = sum(len(layer.weights) for layer in owners.values())
    models = (call for call in calls if isinstance(call.operation, keras.Model))
    return next((call for call in models if 2 * len(call.operation.weights) > total), None)


def _find_end(model: keras.Model, calls: Sequence[Node], head: Sequence[str] | None) -> keras.KerasTensor:
    """Return the output of the backbone in a flat graph."""
    tensors = [cut.tensor for cut in find_cuts(model)]
    if head is None:
        found = [tensor for tensor in tensors if len(tensor.shape) > 2]
    else:
        places = _place_outputs(calls)
        first = min(_locate_layers(model, calls, head))
        found = [tensor for tensor in tensors if places[id(tensor)] < first]
    if not found:
        raise BackboneError(
            "The backbone must end with one tensor that everything flows through.",
            f"{model.name}, where there is none before its head",
            "Name the layers of the head: head=[...].",
        )
    return found[-1]


def _place_outputs(calls: Sequence[Node]) -> dict[int, int]:
    return {id(tensor): place for place, call in enumerate(calls) for tensor in call.outputs}


def _locate_layers(model: keras.Model, calls: Sequence[Node], names: Sequence[str]) -> list[int]:
    """Return the position of the first call of each layer."""
    places = {call.name: place for place, call in enumerate(calls)}
    for name in names:
        if name not in places:
            raise BackboneError(f"The head must be layers of {model.name}.", repr(name), suggest(name, places))
    return [places[name] for name in names]


def _make_blocks(below: keras.Model, backbone: keras.Model) -> tuple[LayerGroup, ...]:
    """Make a group of each block, without the layers before the first weights."""
    layers = {call.operation.name: call.operation for call in _skip_leading(trace_calls(backbone))}
    blocks = [
        LayerGroup(
            block.name, tuple(layers[name] for name in block.layers if isinstance(layers.get(name), keras.Layer))
        )
        for block in find_blocks(backbone)
    ]
    if backbone is not below:
        before = tuple(
            call.operation for call in trace_calls(below) if call.operation is not backbone and has_weights(call)
        )
        blocks[0] = LayerGroup(blocks[0].name, before + blocks[0].layers)
    return tuple(blocks)


def _skip_leading(calls: Sequence[Node]) -> Sequence[Node]:
    first = next((place for place, call in enumerate(calls) if has_weights(call)), 0)
    return calls[first:]


def _matters(layer: keras.Layer) -> bool:
    return bool(layer.weights) or "training" in inspect.signature(layer.call).parameters
