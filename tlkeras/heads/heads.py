"""The heads by the one word that a recipe names them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tlkeras.errors import RecipeError, suggest
from tlkeras.heads.deep import MLPHead
from tlkeras.heads.kernel import KernelHead
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.prototypes import CentroidHead, CosineHead, LdaHead
from tlkeras.heads.ridge import RidgeHead
from tlkeras.heads.spatial import AttentionHead, RecurrentHead, TransformerHead
from tlkeras.heads.svm import LinearSVMHead

if TYPE_CHECKING:
    import keras


class Head(Protocol):
    """What every head can do: fit on features like a scikit-learn classifier, and become Keras layers.

    Attributes:
        kind: The word of a recipe.
        eats: "vector" for features (n, d), "map" for feature maps (n, height, width, channels).
        labels: Whether a row can have several labels.
        classes_: Class values of a fitted head, (k,).
    """

    classes_: np.ndarray

    @property
    def kind(self) -> str: ...

    @property
    def eats(self) -> Literal["vector", "map"]: ...

    @property
    def labels(self) -> bool: ...

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        groups: np.ndarray | None = None,
    ) -> Any: ...

    def predict_proba(self, X: np.ndarray) -> np.ndarray: ...

    def to_layers(self) -> list[keras.layers.Layer]: ...

    def describe(self) -> dict[str, Any]: ...

    def history(self) -> dict[str, list[float]]: ...


_ALL: tuple[type[Any], ...] = (
    LinearHead,
    RidgeHead,
    LinearSVMHead,
    CentroidHead,
    LdaHead,
    CosineHead,
    KernelHead,
    MLPHead,
    RecurrentHead,
    AttentionHead,
    TransformerHead,
)
HEADS: dict[str, type[Any]] = {head.kind: head for head in _ALL}


def make_head(kind: str, **options: Any) -> Head:
    """Return an unfitted head by its kind.

    Raises:
        RecipeError: There is no such kind; the nearest is told.
    """
    if kind not in HEADS:
        raise RecipeError(f"A head is one of {', '.join(HEADS)}.", repr(kind), suggest(kind, HEADS))
    return HEADS[kind](**options)


def attach_heads(prefix: keras.Model, heads: Head | Mapping[str, Head], name: str) -> keras.Model:
    """Return one flat functional model: the prefix's input to the heads' probabilities.

    Args:
        prefix: uint8 images (n, h, w, 3) to what the heads eat.
        heads: A fitted head for that, or that of each task by name.
        name: Name of the model.

    Returns:
        A model that answers with probabilities (n, k), or where there are several tasks with those of each by name.
    """
    import keras

    layers = list_layers(heads if isinstance(heads, Mapping) else {name: heads})
    outputs = {}
    for task, of_task in layers.items():
        (tensor,) = prefix.outputs
        for layer in of_task:
            tensor = layer(tensor)
        outputs[task] = tensor
    return keras.Model(prefix.input, outputs_by_task(outputs), name=name)


def list_layers(heads: Mapping[str, Head]) -> dict[str, list[keras.layers.Layer]]:
    """Return the layers of each task's head; those of all heads but the first bear the task's name before their own."""
    layers = {task: head.to_layers() for task, head in heads.items()}
    for task in list(layers)[1:]:
        for layer in layers[task]:
            layer.name = f"{task}_{layer.name}"
    return layers


def outputs_by_task(outputs: Mapping[str, Any]) -> Any:
    """Return what a model with an output per task returns: the output itself where it is the only one, else by name."""
    return dict(outputs) if len(outputs) > 1 else next(iter(outputs.values()))


def order_outputs(model: keras.Model, tasks: Sequence[str]) -> keras.Model:
    """Return the model with its outputs in the order of the tasks, not by name; that of one task as it is."""
    import keras

    if not isinstance(model.output, dict):
        return model
    return keras.Model(model.input, [model.output[task] for task in tasks], name=model.name)
