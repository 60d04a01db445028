"""A functional Keras model as a list of calls in topological order: the only reader of Keras' own graph."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tlkeras.errors import BackboneError


@dataclass(frozen=True)
class Node:
    """One use of one operation; a layer that is used twice makes two nodes."""

    operation: Any
    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def trace_calls(model: keras.Model) -> list[Node]:
    """The calls of a functional model, each after those whose outputs it needs; a BackboneError for other models."""
    graph = getattr(model, "_functional", None) or model  # a built Sequential keeps its graph inside
    depths = getattr(graph, "_nodes_by_depth", None)
    if depths is None:
        way_out = "Build it from keras.Input and keras.Model(inputs, outputs)."
        raise BackboneError("The model is not a functional graph.", f"{model.name}, a {type(model).__name__}", way_out)
    uses: Counter[str] = Counter()
    calls = []
    for node in (node for depth in sorted(depths, reverse=True) for node in depths[depth] if not node.is_input):
        name = node.operation.name
        uses[name] += 1
        numbered = name if uses[name] == 1 else f"{name}:{uses[name]}"
        calls.append(Node(node.operation, numbered, tuple(node.input_tensors), tuple(node.outputs)))
    return calls


def is_named_by_keras(operation: Any) -> bool:
    """Whether an operation bears a name like "conv2d_7", which depends on what else the process has built."""
    return re.fullmatch(rf"{to_snake_case(type(operation).__name__)}(_\d+)?", operation.name) is not None


def to_snake_case(name: str) -> str:
    """A class name as Keras writes it in names of layers: "DepthwiseConv2D" becomes "depthwise_conv2d"."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def number_kinds(class_names: Iterable[str]) -> Iterator[str]:
    """Yield Keras 3's keys of layers in files: "conv2d", "conv2d_1" for the second, in the order of the model."""
    counts: Counter[str] = Counter()
    for kind in map(to_snake_case, class_names):
        yield f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1


def clone_graph(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """The outputs of a functional model's graph on other inputs, with `call(operation, *arguments)` for each use."""
    return model._run_through_graph(inputs, call_fn=call)


def max_batch_size(model: keras.Model, most: int) -> int:
    """The number of images, at least one, of which a functional model makes at most `most` rows.

    A layer with an attribute `batch_factor` multiplies the rows of a batch, such as `DihedralViews`.
    """
    factors = [getattr(call.operation, "batch_factor", 1) for call in trace_calls(model)]
    return max(1, most // round(max(factors, default=1)))


def run_in_parts(function: Callable[[Any], Any], images: np.ndarray, size: int) -> list[np.ndarray]:
    """Each output of a function for images [n, ...], as one array [n, ...]; computed `size` images at a time."""
    starts = range(0, max(1, len(images)), size)
    parts = [keras.tree.flatten(function(images[start : start + size])) for start in starts]
    return [np.concatenate(of_output) for of_output in zip(*parts, strict=True)]


def has_weights(call: Node) -> bool:
    return bool(getattr(call.operation, "weights", None))


def is_encoder_block(operation: Any) -> bool:
    """Whether one layer mixes positions and channels, such as `kerashub.HubLayer`, which says so by an attribute."""
    return getattr(operation, "is_encoder_block", False)


def count_multiply_adds(model: keras.Model) -> int:
    """Multiplications followed by an addition of convolutions and dense layers, for one image of a fixed size."""
    return sum(count_call(call) for call in trace_calls(model))


def count_call(call: Node) -> int:
    layer = call.operation
    if isinstance(layer, keras.Model):
        return count_multiply_adds(layer)
    if isinstance(layer, layers.Dense) or is_encoder_block(layer):
        # in attention, products of two activations are not counted
        positions = math.prod(call.outputs[0].shape[1:-1])
        return positions * sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) > 1)
    if not isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)):
        return 0
    outputs = math.prod(call.outputs[0].shape[1:])
    channels = call.inputs[0].shape[-1]
    window = math.prod(layer.kernel_size)
    if isinstance(layer, layers.DepthwiseConv2D):
        return outputs * window
    if isinstance(layer, layers.SeparableConv2D):
        deepened = channels * layer.depth_multiplier
        return outputs // layer.filters * deepened * window + outputs * deepened
    return outputs * window * channels // layer.groups
