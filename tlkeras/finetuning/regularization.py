"""Terms of the loss that keep what the source has taught: L2-SP, batch spectral shrinkage, distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tlkeras.errors import RecipeError, TlkerasError, suggest


@dataclass(eq=False)
class Regularizer:
    """A term of the loss; this one adds nothing and is what the others are made from.

    Attributes:
        needs: Names of the outputs that it is computed from: "features", pooled, [n, d]; "source_logits", what the
            source's own head answers now, and "recorded_logits", what it answered before training, both [n, classes].
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def build(self, backbone: Sequence[keras.Layer], head: Sequence[keras.Layer]) -> None:
        """Take what must be known of the model; to be called with the source's weights, before training."""

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the term for one batch, a float32 scalar."""
        return tf.zeros([])


@dataclass(eq=False)
class L2SP(Regularizer):
    """L2-SP: alpha / 2 * ||w - w0||^2 over the backbone plus beta / 2 * ||w||^2 over the head.

    w0 is copied in `build`, in float32. A resumed run builds with the source's weights first and loads its own then.
    Weights that are frozen when it is called are left out, having no gradient. It takes the place of weight decay,
    which should be off.

    Args:
        alpha: Strength for the backbone.
        beta: Strength for the head.
        batch_norm: Whether gamma and beta of batch norm are held as well.

    Raises:
        RecipeError: A strength is negative.
        TlkerasError: When called: it was not built.

    Source: Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning, ICML 2018; defaults of TLlib.
    """

    alpha: float = 0.01
    beta: float = 0.01
    batch_norm: bool = False
    _pairs: list[tuple[keras.Variable, tf.Tensor]] | None = field(default=None, init=False, repr=False)
    _head: list[keras.Variable] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_strength("alpha of L2-SP", self.alpha)
        _check_strength("beta of L2-SP", self.beta)

    def build(self, backbone: Sequence[keras.Layer], head: Sequence[keras.Layer]) -> None:
        """Copy the weights of the backbone's layers as they are now."""
        weights = collect_weights(backbone, self.batch_norm)
        self._pairs = [(weight, tf.constant(keras.ops.convert_to_numpy(weight), tf.float32)) for weight in weights]
        self._head = collect_weights(head, self.batch_norm)

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the term; the outputs do not matter."""
        if self._pairs is None:
            raise TlkerasError("L2-SP must know the source's weights.", way_out="Call build before training.")
        moved = [_as_float32(weight) - source for weight, source in self._pairs if weight.trainable]
        grown = [_as_float32(weight) for weight in self._head if weight.trainable]
        return self.alpha * _sum_halved_squares(moved) + self.beta * _sum_halved_squares(grown)


@dataclass(eq=False)
class BatchSpectralShrinkage(Regularizer):
    """eta times the sum of the smallest squared singular values of a batch's features.

    Directions in which the features hardly spread carry noise of the source that does harm where examples are few.
    A batch that holds one example twice has a singular value of 0, and nothing to shrink.

    Args:
        eta: Strength.
        smallest: How many singular values are shrunk.

    Raises:
        RecipeError: The strength is negative, or no singular value is shrunk.

    Source: Chen et al., Catastrophic Forgetting Meets Negative Transfer, NeurIPS 2019; defaults of TLlib.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    eta: float = 1e-3
    smallest: int = 1

    def __post_init__(self) -> None:
        _check_strength("eta of batch spectral shrinkage", self.eta)
        if self.smallest < 1:
            raise RecipeError("Batch spectral shrinkage must shrink 1 singular value or more.", self.smallest)

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the term for features [n, d].

        With the vectors v of the smallest eigenvalues of A A^T held fixed, ||v^T A||^2 has the value and the gradient
        of the squared singular values. Unlike the gradient of a decomposition it has no differences of singular values
        to divide by.
        """
        features = tf.cast(outputs["features"], tf.float32)
        rows, columns = tf.unstack(tf.shape(features))
        wide = tf.cond(rows > columns, lambda: tf.transpose(features), lambda: features)
        exact = tf.cast(tf.stop_gradient(wide), tf.float64)  # squares halve the digits
        _, vectors = tf.linalg.eigh(tf.matmul(exact, exact, transpose_b=True))
        lowest = tf.cast(vectors[:, : self.smallest], tf.float32)
        return self.eta * tf.reduce_sum(tf.square(tf.matmul(lowest, wide, transpose_a=True)))


@dataclass(eq=False)
class LearningWithoutForgetting(Regularizer):
    """Learning without forgetting: the source's own head must go on answering as it did before training.

    The divergence of present from recorded probabilities, both softened by the temperature, averaged over the batch.
    The paper's cross entropy differs from it by the entropy of the recorded ones, which does not depend on the
    weights: the gradient is the same, and here 0 means that nothing is forgotten.

    Args:
        weight: Strength.
        temperature: What logits are divided by.

    Raises:
        RecipeError: The weight is negative or the temperature not positive.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016; weight as in TLlib.
    """

    needs: ClassVar[tuple[str, ...]] = ("source_logits", "recorded_logits")
    weight: float = 4.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check_strength("The weight of distillation", self.weight)
        if not self.temperature > 0:
            raise RecipeError("The temperature of distillation must be positive.", self.temperature)

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the term for source_logits and recorded_logits, both [n, classes]; log-probabilities serve as well.

        It is 0 without source_logits: where a stage starts at the features, nothing of the source changes.
        """
        if "source_logits" not in outputs:
            return tf.zeros([])
        present = tf.nn.log_softmax(tf.cast(outputs["source_logits"], tf.float32) / self.temperature)
        recorded = tf.nn.log_softmax(tf.cast(outputs["recorded_logits"], tf.float32) / self.temperature)
        divergences = tf.reduce_sum(tf.exp(recorded) * (recorded - present), axis=-1)
        return self.weight * tf.reduce_mean(divergences)


REGULARIZERS: dict[str, type[Regularizer]] = {
    "none": Regularizer,
    "l2sp": L2SP,
    "bss": BatchSpectralShrinkage,
    "lwf": LearningWithoutForgetting,
}


def make_regularizer(kind: str, **options: Any) -> Regularizer:
    """Return a regulariser by its kind, not yet built.

    Raises:
        RecipeError: There is no such kind (the nearest is told), or an option is out of range.
    """
    if kind not in REGULARIZERS:
        raise RecipeError(
            f"A regulariser is one of {', '.join(REGULARIZERS)}.", repr(kind), suggest(kind, REGULARIZERS)
        )
    return REGULARIZERS[kind](**options)


def collect_weights(layers: Sequence[keras.Layer], batch_norm: bool = False) -> list[keras.Variable]:
    """Return the weights of layers and the layers within them, each once; a batch norm's statistics are left out.

    Args:
        layers: Layers or models.
        batch_norm: Whether gamma and beta of batch norm are among them.
    """
    parts = [part for layer in layers for part in layer._flatten_layers()]
    norms = [part for part in parts if isinstance(part, keras.layers.BatchNormalization)]
    dropped = {id(weight) for norm in norms for weight in _list_dropped(norm, batch_norm)}
    weights = {id(weight): weight for layer in layers for weight in layer.weights}
    return [weight for key, weight in weights.items() if key not in dropped]


def _list_dropped(norm: keras.layers.BatchNormalization, affine_kept: bool) -> list[keras.Variable]:
    return [norm.moving_mean, norm.moving_variance] if affine_kept else norm.weights


def _check_strength(name: str, value: float) -> None:
    if not value >= 0:
        raise RecipeError(f"{name} must be 0 or more.", value)


def _as_float32(weight: keras.Variable) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(weight), tf.float32)


def _sum_halved_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.zeros([]), *(tf.nn.l2_loss(tensor) for tensor in tensors)])
