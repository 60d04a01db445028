"""Penalties on the difference between two domains in a network's features, [b, d] tensors, and logits, [b, k]."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from keras import layers

DiscrepancyMethod = Literal["none", "dann", "cdan", "mmd", "coral", "mcc"]
DomainOutputs = tuple[tf.Tensor, tf.Tensor]
"""Features [b, d] and logits [b, k] of rows of one domain."""

WEIGHTS: dict[str, float] = {"none": 0.0, "dann": 1.0, "cdan": 1.0, "mmd": 1.0, "coral": 1.0, "mcc": 1.0}
"""Default weight of the penalty relative to the loss of classes, by method."""

_MOST_PRODUCTS = 4096
_DISCRIMINATOR_WIDTH = 256
_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
_TINY = 1e-8


class DomainDiscrepancy:
    """The difference of a source and a target by a method, and its domain discriminator, where it has one.

    Args:
        method: "dann" and "cdan" a discriminator of domains that has to fail, "mmd" equal means in kernel spaces,
            "coral" covariances that are equal in units of the source's, "mcc" predictions on the target that confuse no
            classes; "none" is 0.
        width, classes: Columns of the features and of the logits.
        dropout: In the discriminator.
        seeds: Of the discriminator's layers, one each.
        seed: Of the random projections that replace the products of features and probabilities in "cdan", where there
            would be too many.

    Attributes:
        discriminator: From features, or their products with probabilities, to the logit of the source; None without.

    Sources: Ganin et al., JMLR 2016 (DANN); Long et al., Conditional Adversarial Domain Adaptation, 2018 (CDAN); and
    those of the losses here.
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

    def weigh(self, source: DomainOutputs, target: DomainOutputs, strength: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The term of a loss, and the bare difference, scalars; of a discriminator both are its loss.

        A discriminator learns at full strength, and the gradient of the features is reversed and scaled behind it;
        other differences are scaled here.
        """
        if self.discriminator is not None:
            loss = (self._discriminate(*source, 1.0, strength) + self._discriminate(*target, 0.0, strength)) / 2.0
            return loss, loss
        if self.method == "mmd":
            difference = mmd_loss(source[0], target[0])
        elif self.method == "coral":
            difference = relative_coral_loss(source[0], target[0])
        else:
            difference = mcc_loss(target[1]) if self.method == "mcc" else tf.constant(0.0)
        return strength * difference, difference

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


def gradient_reversal(x: tf.Tensor, strength: tf.Tensor | float) -> tf.Tensor:
    """x, with its gradient multiplied by -strength.

    Source: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 4.2.
    """
    return tf.stop_gradient((1.0 + strength) * x) - strength * x


def ramp(progress: tf.Tensor | float) -> tf.Tensor:
    """2 / (1 + exp(-10 p)) - 1: 0 at the start, nearly 1 from the middle on (Ganin et al., section 5.2)."""
    return 2.0 / (1.0 + tf.exp(-10.0 * tf.cast(progress, tf.float32))) - 1.0


def relative_coral_loss(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """||C_s - C_t||_F^2 / ||C_s||_F^2, a scalar; covariances are divided by b - 1.

    It depends neither on the width nor on the scale of the features, so that one weight suits all; the paper, with the
    few outputs for classes in mind, divides by 4 d^2 instead.

    Source: Sun and Saenko, Deep CORAL, ECCV Workshops 2016.
    """
    of_source = _covariance(source)
    difference = tf.reduce_sum((of_source - _covariance(target)) ** 2)
    return difference / tf.maximum(tf.reduce_sum(of_source**2), _TINY)


def mmd_loss(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Squared maximum mean discrepancy summed over five Gaussian kernels, a scalar of 0 or more.

    Kernels are exp(-d^2 / (2 a m)) with m the mean squared distance of all pairs, a = 1/8, ..., 2. All pairs count,
    also of rows with themselves, so that it cannot be negative; m has no gradient.

    Source: Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015; Gretton et al., A
    Kernel Two-Sample Test, JMLR 2012, equation 5.
    """
    both, count = tf.concat([source, target], 0), tf.shape(source)[0]
    squares = tf.reduce_sum(both**2, axis=1)
    distances = tf.maximum(squares[:, None] + squares[None] - 2.0 * tf.matmul(both, both, transpose_b=True), 0.0)
    scale = tf.stop_gradient(tf.maximum(tf.reduce_mean(distances), _TINY))
    kernel = tf.add_n([tf.exp(-distances / (2.0 * a * scale)) for a in _SCALES])
    within = tf.reduce_mean(kernel[:count, :count]) + tf.reduce_mean(kernel[count:, count:])
    return within - 2.0 * tf.reduce_mean(kernel[:count, count:])


def mcc_loss(logits: tf.Tensor, temperature: float = 2.5) -> tf.Tensor:
    """Class confusion in the predictions for target rows [b, k], a scalar between 0 and 1.

    Source: Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, equations 2 to 6.
    """
    predictions = tf.nn.softmax(logits / temperature)
    weights = tf.stop_gradient(weigh_by_certainty(predictions))
    confusion = tf.matmul(predictions, predictions * weights[:, None], transpose_a=True)
    confusion /= tf.maximum(tf.reduce_sum(confusion, axis=1, keepdims=True), _TINY)
    classes = tf.cast(tf.shape(logits)[1], tf.float32)
    return (tf.reduce_sum(confusion) - tf.linalg.trace(confusion)) / classes


def weigh_by_certainty(predictions: tf.Tensor) -> tf.Tensor:
    """1 + exp(-entropy) of each row of probabilities [b, k], divided by their mean, [b]."""
    entropy = -tf.reduce_sum(predictions * tf.math.log(predictions + _TINY), axis=1)
    weights = 1.0 + tf.exp(-entropy)
    return weights / tf.reduce_mean(weights)


def make_seeded_dense(width: int, name: str, seed: int, activation: str | None = None) -> layers.Dense:
    """A dense layer with initial weights drawn by a seed."""
    return layers.Dense(width, activation, name=name, kernel_initializer=keras.initializers.GlorotUniform(seed))


def _make_discriminator(width: int, dropout: float, seeds: Iterator[int]) -> keras.Model:
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


def _covariance(X: tf.Tensor) -> tf.Tensor:
    centred = X - tf.reduce_mean(X, axis=0)
    return tf.matmul(centred, centred, transpose_a=True) / (tf.cast(tf.shape(X)[0], tf.float32) - 1.0)
