"""The layers of any functional model in groups: the blocks of its backbone, and its head."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras

from tlkeras.backbones.blocks import Block, find_blocks, find_cuts
from tlkeras.backbones.graph import Node, has_weights, open_nested, trace_calls
from tlkeras.errors import BackboneError, suggest


@dataclass(frozen=True)
class LayerGroup:
    """Layers that train or rest together, from input to output."""

    name: str
    layers: tuple[keras.Layer, ...] = field(repr=False)


@dataclass(frozen=True)
class Groups:
    """A model's layers; each that owns weights is in exactly one group.

    Layers with weights before the backbone belong to the first block; layers before the first weights, such as
    augmentation, to none.
    """

    model: keras.Model = field(repr=False)  # the owner of the layers
    blocks: tuple[LayerGroup, ...]  # of the backbone, from input to output, as `find_blocks` finds them
    head: LayerGroup  # the layers after the backbone that own weights or act differently in training


def group_layers(model: keras.Model, head: Sequence[str] | None = None) -> Groups:
    """The layers of a model with a backbone, which may be one of its layers or a part of its graph.

    A nested model with most of the variables is the backbone. In a flat graph the backbone ends with the last map
    [n, h, w, c] that everything flows through, so that pooling or flattening begins the head.
    The model is functional, with images of a fixed size; `head` names the layers of the head of a flat graph in which
    it begins elsewhere. BackboneError if there is no such layer, no map to end the backbone with, or no head with
    weights.
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
            "The model has no head with weights behind its backbone.",
            f"{model.name}, whose backbone ends with {end.name!r}",
            "Name the layers of the head where it begins earlier: head=[...].",
        )
    return Groups(model, blocks, LayerGroup("head", layers))


def layerwise_lr_decay(groups: Groups, multipliers: Sequence[float]) -> dict[str, float]:
    """Learning-rate multiplier of each variable that trains in the backbone, by its path.

        multipliers = layerwise_lr_decay(groups, Stage("all", "all", 1e-4, epochs=5, layer_decay=0.75).multipliers(8))
        model.compile(scale_learning_rates(keras.optimizers.AdamW(), multipliers), ...)

    Multipliers are one per block, from input to output, else a BackboneError; the head keeps its full rate.
    """
    if len(multipliers) != len(groups.blocks):
        raise BackboneError("There is not one multiplier per block.", f"{len(multipliers)} for {len(groups.blocks)}")
    pairs = zip(groups.blocks, multipliers, strict=True)
    layers = ((layer, multiplier) for block, multiplier in pairs for layer in block.layers)
    return {variable.path: multiplier for layer, multiplier in layers for variable in layer.trainable_variables}


def _find_nested(calls: Sequence[Node]) -> Node | None:
    owners = {id(call.operation): call.operation for call in calls if has_weights(call)}
    total = sum(len(layer.weights) for layer in owners.values())
    models = (call for call in calls if isinstance(call.operation, keras.Model))
    return next((call for call in models if 2 * len(call.operation.weights) > total), None)


def _find_end(model: keras.Model, calls: Sequence[Node], head: Sequence[str] | None) -> keras.KerasTensor:
    """The output of the backbone in a flat graph."""
    tensors = [cut.tensor for cut in find_cuts(model, nested=False)]
    if head is None:
        found = [tensor for tensor in tensors if len(tensor.shape) > 2]
    else:
        places = {id(tensor): place for place, call in enumerate(calls) for tensor in call.outputs}
        first = min(_locate_layers(model, calls, head))
        found = [tensor for tensor in tensors if places[id(tensor)] < first]
    if not found:
        rule = "There is no tensor before the head that everything flows through."
        raise BackboneError(rule, model.name, "Name the layers of the head: head=[...].")
    return found[-1]


def _locate_layers(model: keras.Model, calls: Sequence[Node], names: Sequence[str]) -> list[int]:
    places = {call.name: place for place, call in enumerate(calls)}
    for name in names:
        if name not in places:
            raise BackboneError(f"{model.name} has no layer of this name.", repr(name), suggest(name, places))
    return [places[name] for name in names]


def _make_blocks(below: keras.Model, backbone: keras.Model) -> tuple[LayerGroup, ...]:
    opened = open_nested(backbone)
    calls = trace_calls(opened)
    first = next((place for place, call in enumerate(calls) if has_weights(call)), 0)
    layers = {call.operation.name: call.operation for call in calls[first:] if isinstance(call.operation, keras.Layer)}
    blocks = group_blocks(find_blocks(opened), layers)
    if backbone is not below:
        others = [call.operation for call in trace_calls(below) if has_weights(call)]
        before = tuple(layer for layer in others if layer is not backbone)
        blocks[0] = LayerGroup(blocks[0].name, before + blocks[0].layers)
    return tuple(blocks)


def group_blocks(blocks: Sequence[Block], layers: Mapping[str, keras.Layer]) -> list[LayerGroup]:
    """A group for each block, of those of its layers that are among the given ones, which are by name."""
    return [LayerGroup(one.name, tuple(layers[name] for name in one.layers if name in layers)) for one in blocks]


def _matters(layer: keras.Layer) -> bool:
    return bool(layer.weights) or "training" in inspect.signature(layer.call).parameters
