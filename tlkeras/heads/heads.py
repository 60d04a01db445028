"""The registry of heads, and models of an extractor with heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tlkeras.errors import RecipeError, suggest
from tlkeras.heads.base import BaseHead
from tlkeras.heads.deep import AttentionHead, MLPHead, RecurrentHead, TransformerHead
from tlkeras.heads.kernel import KernelHead
from tlkeras.heads.linear import LinearHead, LinearSVMHead, RidgeHead, RidgeRegressionHead
from tlkeras.heads.prototypes import CentroidHead, CosineHead, LdaHead

if TYPE_CHECKING:
    import keras


Head = BaseHead | RidgeRegressionHead
"""A head of any kind: fitted on features like a scikit-learn estimator, and turned into Keras layers."""

_VECTOR_HEADS = (LinearHead, RidgeHead, LinearSVMHead, CentroidHead, LdaHead, CosineHead, KernelHead)
_KERAS_HEADS = (MLPHead, RecurrentHead, AttentionHead, TransformerHead)
HEADS: dict[str, type[Any]] = {head.kind: head for head in (*_VECTOR_HEADS, *_KERAS_HEADS)}
"""Heads by the word of a recipe, `head.kind`."""


def make_head(kind: str, **options: Any) -> Head:
    """An unfitted head by its kind; RecipeError with the nearest if there is no such kind."""
    if kind not in HEADS:
        raise RecipeError(f"Unknown head {kind!r}.", way_out=suggest(kind, HEADS))
    return HEADS[kind](**options)


def attach_heads(extractor: keras.Model, heads: Head | Mapping[str, Head], name: str) -> keras.Model:
    """One flat functional model, images to probabilities (n, k); of several tasks, to those of each by name.

    The extractor leads from uint8 images (n, h, w, 3) to the features that the heads, or the only one, are fitted on.
    """
    import keras

    layers = list_layers(heads if isinstance(heads, Mapping) else {name: heads})
    outputs = {}
    for task, of_task in layers.items():
        (tensor,) = extractor.outputs
        for layer in of_task:
            tensor = layer(tensor)
        outputs[task] = tensor
    return keras.Model(extractor.input, outputs_by_task(outputs), name=name)


def list_layers(heads: Mapping[str, Head]) -> dict[str, list[keras.layers.Layer]]:
    """Layers of each task's head; their names begin with the task's in all heads but the first."""
    layers = {task: head.to_layers() for task, head in heads.items()}
    for task in list(layers)[1:]:
        for layer in layers[task]:
            layer.name = f"{task}_{layer.name}"
    return layers


def outputs_by_task(outputs: Mapping[str, Any]) -> Any:
    """The output itself where it is the only one, else the outputs by task."""
    return dict(outputs) if len(outputs) > 1 else next(iter(outputs.values()))


def order_outputs(model: keras.Model, tasks: Sequence[str]) -> keras.Model:
    """The model with a list of outputs in the order of the tasks, not by name; that of one task as it is."""
    import keras

    if not isinstance(model.output, dict):
        return model
    return keras.Model(model.input, [model.output[task] for task in tasks], name=model.name)
