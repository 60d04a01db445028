"""A functional Keras model as a list of calls in topological order, and the rewriting of it: nothing else reads it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import layers, ops

from tlkeras.errors import BackboneError

OPERATIONS: Mapping[type, Callable[..., Any]] = {
    layers.Conv2D: ops.conv,
    layers.DepthwiseConv2D: ops.depthwise_conv,
    layers.SeparableConv2D: ops.separable_conv,
}
"""The convolution, by type of layer."""


@dataclass(frozen=True)
class Node:
    """One use of one operation; a layer that is used twice makes two nodes."""

    operation: Any
    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arguments: Any = None  # of the call, as Keras keeps them: `fill_in` puts other tensors in place of its own


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
        calls.append(Node(node.operation, numbered, tuple(node.input_tensors), tuple(node.outputs), node.arguments))
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


def open_nested(model: keras.Model) -> keras.Model:
    """The model with the layers of all functional models within it in place of these; it shares its variables.

    A flat functional model is returned itself, of a built Sequential the graph inside. A BackboneError is raised for
    other models, and where two layers share a name.
    """
    calls, graph = trace_calls(model), getattr(model, "_functional", None) or model
    if not any(_find_graph(call.operation) for call in calls):
        return graph
    if graph in _OPENED:
        return _OPENED[graph]

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        inner = _find_graph(operation)
        if inner is not None:
            return clone_graph(inner, arguments[0], call)
        options.pop("training", None)  # which the model around it decides, as Keras has it
        return operation(*arguments, **options)

    _check_names(model)
    inputs = keras.tree.map_structure(lambda one: keras.Input(batch_shape=one.shape, dtype=one.dtype), graph.input)
    _OPENED[graph] = opened = keras.Model(inputs, clone_graph(graph, inputs, call), name=model.name)
    return opened


_OPENED: MutableMapping[keras.Model, keras.Model] = WeakKeyDictionary()  # a graph takes seconds to build


def _find_graph(operation: Any) -> Any | None:
    """The graph of a functional model that is a layer of another; None of all else, also of a `call` of its own."""
    graph = getattr(operation, "_functional", None) or operation
    is_plain = type(operation).call.__module__.startswith("keras.")
    return graph if is_plain and isinstance(graph, keras.Model) and hasattr(graph, "_nodes_by_depth") else None


def _check_names(model: keras.Model) -> None:
    def walk(graph: keras.Model) -> Iterator[Any]:
        for call in trace_calls(graph):
            inner = _find_graph(call.operation)
            yield from [call.operation] if inner is None else walk(inner)

    different = {id(operation): operation.name for operation in walk(model)}
    repeated = [name for name, count in Counter(different.values()).items() if count > 1]
    if repeated:
        rule = "Layers of the model and of the models within it share a name, so that they cannot stand in one graph."
        way_out = f"Rename one of them: `model.get_layer({repeated[0]!r}).name = ...`."
        raise BackboneError(rule, f"{', '.join(map(repr, repeated[:3]))} in {model.name}", way_out)


def continue_graph(model: keras.Model, tensor: Any, name: str) -> keras.Model:
    """The functional model from a tensor that alone carries all data to the outputs, perhaps the identity."""
    start = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
    known = {id(tensor): start}
    for call in trace_calls(model):
        # what lies before the tensor needs others; of a layer that is used twice, only the second use is repeated
        if all(id(one) in known for one in call.inputs) and not any(id(one) in known for one in call.outputs):
            arguments, options = call.arguments.fill_in(known)
            outputs = keras.tree.flatten(call.operation(*arguments, **options))
            known |= {id(one): output for one, output in zip(call.outputs, outputs, strict=True)}
    return keras.Model(start, keras.tree.map_structure(lambda one: known[id(one)], model.output), name=name)


def max_batch_size(model: keras.Model, most: int) -> int:
    """The number of images, at least one, of which a model makes at most `most` rows, counting each `batch_factor`."""
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


def fold_batch_norm(model: keras.Model) -> Callable[[Any], Any]:
    """The model's inference function, from a tensor [n, ...], with batch norms folded; it does not change the model.

    With s = gamma / sqrt(variance + epsilon), the constant kernels are kernel * s, biases (bias - mean) * s + beta.
    """
    stand_ins: dict[int, Callable[..., Any]] = {}
    for convolution, norm in find_pairs(model):
        stand_ins[id(convolution)] = fold(convolution, norm)
        stand_ins[id(norm)] = pass_on

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return stand_ins.get(id(operation), operation)(*args, **kwargs)

    return lambda inputs: clone_graph(model, inputs, call)


def find_pairs(model: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """All pairs (convolution, batch norm) that compute the same when folded: no other layer uses the convolution."""
    calls = trace_calls(model)
    uses = Counter(id(call.operation) for call in calls)
    producers = {id(tensor): call.operation for call in calls for tensor in call.outputs}
    consumers = Counter(id(tensor) for call in calls for tensor in call.inputs)
    consumers.update(id(tensor) for tensor in model.outputs)
    pairs = []
    for call in calls:
        norm, tensor = call.operation, call.inputs[0]
        if type(norm) is not layers.BatchNormalization or uses[id(norm)] > 1:
            continue
        convolution = producers.get(id(tensor))
        alone = uses[id(convolution)] == 1 and consumers[id(tensor)] == 1
        if alone and _is_foldable(convolution) and norm.axis in (-1, len(tensor.shape) - 1):
            pairs.append((convolution, norm))
    return pairs


def _is_foldable(layer: Any) -> bool:
    if type(layer) not in OPERATIONS or layer.activation is not keras.activations.linear:
        return False
    return layer.data_format == "channels_last" and layer.compute_dtype == "float32"


def fold(
    layer: keras.Layer, norm: keras.Layer, xp: Any = np, operations: Mapping[type, Callable[..., Any]] = OPERATIONS
) -> Callable[..., Any]:
    """The convolution of a pair from `find_pairs`, followed by its batch norm, as one function of a tensor.

    `xp` computes kernel and bias: numpy once, to constants; `keras.ops` while tracing, so that gradients reach them.
    """
    scale = (xp.array(norm.gamma) if norm.scale else 1.0) / xp.sqrt(xp.array(norm.moving_variance) + norm.epsilon)
    bias = ((xp.array(layer.bias) if layer.use_bias else 0.0) - xp.array(norm.moving_mean)) * scale
    if norm.center:
        bias = bias + xp.array(norm.beta)
    kernels = _scale_kernels(layer, scale, xp)
    options = {name: getattr(layer, name) for name in ("strides", "padding", "data_format", "dilation_rate")}
    return lambda inputs, **_: operations[type(layer)](inputs, **kernels, **options) + bias


def _scale_kernels(layer: Any, scale: Any, xp: Any) -> dict[str, Any]:
    if isinstance(layer, layers.SeparableConv2D):
        depthwise, pointwise = xp.array(layer.depthwise_kernel), xp.array(layer.pointwise_kernel)
        return {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise * scale}
    kernel = xp.array(layer.kernel)
    if isinstance(layer, layers.DepthwiseConv2D):
        scale = xp.reshape(scale, kernel.shape[2:])  # [channels, multiplier]
    return {"kernel": kernel * scale}


def pass_on(inputs: Any, **_: Any) -> Any:
    """The inputs, of a batch norm that is folded into its convolution."""
    return inputs
