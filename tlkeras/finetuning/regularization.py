"""Terms of the loss that keep what the source has taught: L2-SP, batch spectral shrinkage, distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tlkeras.config.schema.finetuning import RegularizerConfig
from tlkeras.errors import TlkerasError


class Regularizer:
    """The base of the terms, each of its section of the recipe.

    Outputs are "features", pooled, [n, d]; "source_logits", the present logits of the source's own head, and
    "recorded_logits", those from before training, both [n, classes of the source].
    """

    def __init__(self, config: Any):
        self.config = config

    def build(self, backbone: Sequence[keras.Layer], head: Sequence[keras.Layer]) -> None:
        """Read the model; to be called with the source's weights, before training."""

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The term for one batch, a float32 scalar."""
        raise NotImplementedError


class L2SP(Regularizer):
    """L2-SP: alpha / 2 * ||w - w0||^2 over the backbone plus beta / 2 * ||w||^2 over the head.

    w0 is copied in `build`, in float32. A resumed run builds with the source's weights first and loads its own then.
    Weights that are frozen when it is called are left out, having no gradient. It takes the place of weight decay,
    which should be off.

    Source: Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning, ICML 2018; defaults of TLlib.
    """

    _pairs: list[tuple[keras.Variable, tf.Tensor]] | None = None
    _head: Sequence[keras.Variable] = ()

    def build(self, backbone: Sequence[keras.Layer], head: Sequence[keras.Layer]) -> None:
        weights = collect_weights(backbone, self.config.batch_norm)
        self._pairs = [(weight, tf.constant(keras.ops.convert_to_numpy(weight), tf.float32)) for weight in weights]
        self._head = collect_weights(head, self.config.batch_norm)

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        if self._pairs is None:
            raise TlkerasError("L2-SP does not know the source's weights.", way_out="Call build before training.")
        moved = [_as_float32(weight) - source for weight, source in self._pairs if weight.trainable]
        grown = [_as_float32(weight) for weight in self._head if weight.trainable]
        return self.config.alpha * _sum_halved_squares(moved) + self.config.beta * _sum_halved_squares(grown)


class BatchSpectralShrinkage(Regularizer):
    """eta times the sum of the smallest squared singular values of a batch's features.

    Directions in which the features hardly spread carry noise of the source that does harm where examples are few.
    A batch that holds one example twice has a singular value of 0, and nothing to shrink.

    Source: Chen et al., Catastrophic Forgetting Meets Negative Transfer, NeurIPS 2019; defaults of TLlib.
    """

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The term for features [n, d].

        With the vectors v of the smallest eigenvalues of A A^T held fixed, ||v^T A||^2 has the value and the gradient
        of the squared singular values. Unlike the gradient of a decomposition it has no differences of singular values
        to divide by.
        """
        features = tf.cast(outputs["features"], tf.float32)
        rows, columns = tf.unstack(tf.shape(features))
        wide = tf.cond(rows > columns, lambda: tf.transpose(features), lambda: features)
        exact = tf.cast(tf.stop_gradient(wide), tf.float64)  # squares halve the digits
        _, vectors = tf.linalg.eigh(tf.matmul(exact, exact, transpose_b=True))
        lowest = tf.cast(vectors[:, : self.config.smallest], tf.float32)
        return self.config.eta * tf.reduce_sum(tf.square(tf.matmul(lowest, wide, transpose_a=True)))


class LearningWithoutForgetting(Regularizer):
    """Learning without forgetting: the source's own head is held to its predictions from before training.

    The divergence of present from recorded probabilities, both softened by the temperature, averaged over the batch.
    The paper's cross entropy differs from it by the entropy of the recorded ones, which does not depend on the
    weights: the gradient is the same, and here 0 means that nothing is forgotten.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016; weight as in TLlib.
    """

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The term for source_logits and recorded_logits, both [n, classes]; log-probabilities serve as well.

        It is 0 without source_logits: where a stage starts at the features, nothing of the source changes.
        """
        if "source_logits" not in outputs:
            return tf.zeros([])
        temperature = self.config.temperature
        present = tf.nn.log_softmax(tf.cast(outputs["source_logits"], tf.float32) / temperature)
        recorded = tf.nn.log_softmax(tf.cast(outputs["recorded_logits"], tf.float32) / temperature)
        divergences = tf.reduce_sum(tf.exp(recorded) * (recorded - present), axis=-1)
        return self.config.weight * tf.reduce_mean(divergences)


_KINDS = {"l2sp": L2SP, "bss": BatchSpectralShrinkage, "lwf": LearningWithoutForgetting}


def make_regularizer(config: RegularizerConfig) -> Regularizer | None:
    """The regularizer of a recipe's configuration, not yet built; None for the kind `none`."""
    kind = _KINDS.get(config.kind)
    return kind and kind(config)


def collect_weights(layers: Sequence[keras.Layer], batch_norm: bool = False) -> list[keras.Variable]:
    """The weights of layers and those within, each once, without batch norm, or without its statistics alone."""
    parts = [part for layer in layers for part in layer._flatten_layers()]
    norms = [part for part in parts if isinstance(part, keras.layers.BatchNormalization)]
    statistics = ([norm.moving_mean, norm.moving_variance] if batch_norm else norm.weights for norm in norms)
    dropped = {id(weight) for weights in statistics for weight in weights}
    weights = {id(weight): weight for layer in layers for weight in layer.weights}
    return [weight for key, weight in weights.items() if key not in dropped]


def _as_float32(weight: keras.Variable) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(weight), tf.float32)


def _sum_halved_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.zeros([]), *(tf.nn.l2_loss(tensor) for tensor in tensors)])
