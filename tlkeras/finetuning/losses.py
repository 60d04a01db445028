"""Losses of a fine-tuning, from dense targets and logits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tlkeras.config.schema.finetuning import FocalConfig, LossConfig, SigmoidConfig, SoftmaxConfig
from tlkeras.errors import DataError

_TINY = 1e-7  # below it a float32 cannot tell 1 - p from 0

Loss = Callable[[Any, Any], tf.Tensor]
"""From targets [n, k] and logits [n, k] to losses, float32 [n]; it can also be given to `keras.Model.compile`.

Raises a DataError where targets and logits differ in shape, also where they would broadcast."""


@dataclass(frozen=True)
class SoftmaxLoss:
    """Cross entropy of a softmax: each example is of one class, its targets sum to 1."""

    config: SoftmaxConfig

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        targets, logits = _check_shapes(targets, logits)
        # Keras' label_smoothing divides in float32 and so differs in the last bit
        smoothed = smooth(targets, self.config.smoothing, targets.shape[-1])
        return keras.losses.categorical_crossentropy(smoothed, logits, from_logits=True)


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss, -(1 - p_c)^gamma log p_c summed over the target: easy examples count little.

    Computed from log-probabilities, so that an example that is very wrong keeps its gradient; Keras' own clips the
    probabilities.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5, with p_t taken from a softmax.
    """

    config: FocalConfig

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        targets, logits = _check_shapes(targets, logits)
        log_p = tf.nn.log_softmax(logits)
        # a power's slope at 0 is infinite below gamma = 1
        miss = tf.maximum(-tf.math.expm1(log_p), _TINY) ** self.config.gamma
        terms = -smooth(targets, self.config.smoothing, targets.shape[-1]) * miss * log_p
        return tf.reduce_sum(terms, axis=-1)


@dataclass(frozen=True)
class SigmoidLoss:
    """Binary cross entropy, averaged over the classes: an example can be of none, one or several of them."""

    config: SigmoidConfig

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        targets, logits = _check_shapes(targets, logits)
        smoothing = self.config.smoothing
        return keras.losses.binary_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)


@dataclass(frozen=True)
class SquaredErrorLoss:
    """Half the squared error of a regression, in units of the targets' standard deviation."""

    scale: float = 1.0  # standard deviation of the training targets
    offset: float = 0.0  # their mean; a network predicts (target - offset) / scale

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Losses, float32 [n], of targets [n, 1] and standardised predictions [n, 1]."""
        standard = (tf.cast(targets, tf.float32) - self.offset) / self.scale
        return 0.5 * tf.reduce_sum(tf.square(standard - tf.cast(logits, tf.float32)), axis=-1)


def make_loss(config: LossConfig) -> Loss:
    """The loss of a recipe's configuration."""
    if isinstance(config, SoftmaxConfig):
        return SoftmaxLoss(config)
    return FocalLoss(config) if isinstance(config, FocalConfig) else SigmoidLoss(config)


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """The sum of weights * losses, divided by n; a float32 scalar.

    The sum is divided by the number of examples, as Keras does, and not by the sum of the weights: then an example
    counts the same whichever others share its batch, and batches add up to the weighted loss of the whole set.
    Weights should have a mean of 1 over the training set, or they also scale the learning rate.
    """
    losses = tf.cast(losses, tf.float32)
    return tf.reduce_mean(losses if weights is None else losses * tf.cast(weights, tf.float32))


def smooth(targets: tf.Tensor, smoothing: float, classes: int) -> tf.Tensor:
    """Smoothed targets, (1 - smoothing) * targets + smoothing / classes, [n, k]."""
    return targets * (1.0 - smoothing) + smoothing / classes


def _check_shapes(targets: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    targets, logits = tf.cast(targets, tf.float32), tf.cast(logits, tf.float32)
    if targets.shape.rank != logits.shape.rank or not targets.shape.is_compatible_with(logits.shape):
        raise DataError(
            "Targets and logits differ in shape.",
            f"targets of shape {targets.shape} for logits of shape {logits.shape}",
            "Targets are dense, one column per class: make them from class indices by tf.one_hot.",
        )
    return targets, logits
