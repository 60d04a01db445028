"""The heads by the one word that a recipe names them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tlkeras.errors import RecipeError, suggest
from tlkeras.mapping.deep import DeepHead
from tlkeras.mapping.linear import LinearHead

if TYPE_CHECKING:
    import keras


class Head(Protocol):
    """What every head can do: fit on a matrix like a scikit-learn classifier, and become Keras layers."""

    classes_: np.ndarray

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


HEADS: dict[str, Callable[..., Head]] = {"linear": LinearHead, "deep": DeepHead}


def make_head(kind: str, **options: Any) -> Head:
    """Return an unfitted head by its kind.

    Raises:
        RecipeError: There is no such kind; the nearest is told.
    """
    if kind not in HEADS:
        raise RecipeError(f"A head is one of {', '.join(HEADS)}.", repr(kind), suggest(kind, HEADS))
    return HEADS[kind](**options)


def join(prefix: keras.Model, head: Head, name: str) -> keras.Model:
    """Return one flat functional model: the prefix's input to the head's probabilities.

    Args:
        prefix: uint8 pictures (n, h, w, 3) to features (n, d).
        head: A fitted head for those features.
        name: Name of the model.
    """
    import keras

    (tensor,) = prefix.outputs
    for layer in head.to_layers():
        tensor = layer(tensor)
    return keras.Model(prefix.input, tensor, name=name)
