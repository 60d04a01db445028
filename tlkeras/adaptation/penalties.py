"""Penalties on the difference between two domains in a network's features and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import tensorflow as tf

from tlkeras.adaptation.losses import (
    gradient_reversal,
    mcc_loss,
    mmd_loss,
    ramp,
    relative_coral_loss,
    weigh_by_certainty,
)

if TYPE_CHECKING:
    import keras

DiscrepancyMethod = Literal["none", "dann", "cdan", "mmd", "coral", "mcc"]
OutputFn = tuple[tf.Tensor, tf.Tensor]
"""Features [b, d] and logits [b, k] of rows of one domain."""

WEIGHTS: dict[str, float] = {"none": 0.0, "dann": 1.0, "cdan": 1.0, "mmd": 1.0, "coral": 1.0, "mcc": 1.0}
"""Default weight of the penalty relative to the loss of classes, by method."""

_MOST_PRODUCTS = 4096
_DISCRIMINATOR_WIDTH = 256


class DomainDiscrepancy:
    """The difference of a source and a target by a method, and its domain discriminator, where it has one.

    Args:
        method: "dann" and "cdan" a discriminator of domains that has to fail, "mmd" equal means in kernel spaces,
            "coral" covariances that are equal in units of the source's, "mcc" predictions on the target that confuse no
            classes; "none" is 0.
        width: Columns of the features.
        classes: Columns of the logits.
        dropout: In the discriminator.
        seeds: Of the discriminator's layers, one each.
        seed: Of the random projections that replace the products of features and probabilities in "cdan", where there
            would be too many.

    Attributes:
        classes: Columns of the logits.
        discriminator: From features, or their products with probabilities, to the logit of the source; None without.

    Sources: Ganin et al., JMLR 2016 (DANN); Long et al., Conditional Adversarial Domain Adaptation, 2018 (CDAN); and
    those in `tlkeras.adaptation.losses`.
    """

    def __init__(
        self,
        method: DiscrepancyMethod,
        width: int,
        classes: int,
        *,
        dropout: float = 0.3,
        seeds: Iterator[int],
        seed: int = 0,
    ):
        self.method: DiscrepancyMethod = method
        self._width, self.classes = width, classes
        products = width * classes
        self._mixers = None
        if method == "cdan" and products > _MOST_PRODUCTS:
            random = np.random.default_rng(seed)
            shapes = [(rows, _MOST_PRODUCTS) for rows in (width, classes)]
            self._mixers = [tf.constant(random.normal(size=shape), tf.float32) for shape in shapes]
        inputs = min(products, _MOST_PRODUCTS) if method == "cdan" else width
        self.discriminator = _make_discriminator(inputs, dropout, seeds) if method in ("dann", "cdan") else None

    def weigh(self, source: OutputFn, target: OutputFn, strength: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The term of a loss, and the bare difference, scalars.

        A discriminator learns at full strength, and the gradient of the features is reversed and scaled behind it;
        other differences are scaled here.
        """
        difference = self.compare(source, target, strength)
        return (difference if self.discriminator is not None else strength * difference), difference

    def compare(self, source: OutputFn, target: OutputFn, strength: tf.Tensor) -> tf.Tensor:
        """The difference, a scalar; of a discriminator its loss."""
        if self.method == "mmd":
            return mmd_loss(source[0], target[0])
        if self.method == "coral":
            return relative_coral_loss(source[0], target[0])
        if self.method == "mcc":
            return mcc_loss(target[1])
        if self.method == "none":
            return tf.constant(0.0)
        return (self._discriminate(*source, 1.0, strength) + self._discriminate(*target, 0.0, strength)) / 2.0

    def _discriminate(self, features: tf.Tensor, logits: tf.Tensor, truth: float, strength: tf.Tensor) -> tf.Tensor:
        """The discriminator's loss on rows of one domain; the gradient of the features is reversed."""
        reversed_, weights = gradient_reversal(features, strength), tf.ones(tf.shape(features)[0])
        if self.method == "cdan":
            predictions = tf.stop_gradient(tf.nn.softmax(logits))
            weights = weigh_by_certainty(predictions)
            reversed_ = self._multiply(reversed_, predictions)
        of_source = self.discriminator(reversed_, training=True)[:, 0]  # type: ignore[misc]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(of_source), truth), of_source)
        return tf.reduce_mean(weights * losses)

    def _multiply(self, features: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
        """All products of features and probabilities, or of random projections where these would be too many."""
        if self._mixers is not None:
            left, right = (tf.matmul(x, R) for x, R in zip((features, predictions), self._mixers, strict=True))
            return left * right / np.sqrt(_MOST_PRODUCTS)
        products = predictions[:, :, None] * features[:, None, :]
        return tf.reshape(products, [-1, self.classes * self._width])


@dataclass(frozen=True)
class DomainAdaptationLoss:
    """The difference of domains as a penalty on the outputs for a batch of both; rows of weight 0 are the target's."""

    discrepancy: DomainDiscrepancy  # the difference of `features` and of the logits of the first task
    weight: float  # its weight at the end; it is ramped up
    progress: Callable[[], tf.Tensor]  # returns the share of the training that is done, a scalar from 0 to 1

    @property
    def variables(self) -> list[keras.Variable]:
        """The discriminator's variables, which are not exported."""
        return [] if self.discrepancy.discriminator is None else self.discrepancy.discriminator.variables

    def __call__(self, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The term for `features` [b, d], `logits` [b, k or more] and `weights` [b]."""
        features, logits = (tf.cast(outputs[name], tf.float32) for name in ("features", "logits"))
        logits = logits[:, : self.discrepancy.classes]
        of_source = outputs["weights"] > 0
        source, target = (
            tuple(tf.boolean_mask(values, rows) for values in (features, logits)) for rows in (of_source, ~of_source)
        )
        return self.discrepancy.weigh(source, target, self.weight * ramp(self.progress()))[0]


def make_seeded_dense(width: int, name: str, seed: int, activation: str | None = None) -> keras.layers.Dense:
    """A dense layer with initial weights drawn by a seed."""
    import keras

    return keras.layers.Dense(width, activation, name=name, kernel_initializer=keras.initializers.GlorotUniform(seed))


def _make_discriminator(width: int, dropout: float, seeds: Iterator[int]) -> keras.Model:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((width,)),
            make_seeded_dense(_DISCRIMINATOR_WIDTH, "discriminator_1", next(seeds), "relu"),
            layers.Dropout(dropout, seed=next(seeds)),  # not batch norm: its statistics give domains away
            make_seeded_dense(_DISCRIMINATOR_WIDTH, "discriminator_2", next(seeds), "relu"),
            layers.Dropout(dropout, seed=next(seeds)),
            make_seeded_dense(1, "domain", next(seeds)),
        ]
    )
