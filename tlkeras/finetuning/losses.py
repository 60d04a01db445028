"""Losses of a fine-tuning, from dense targets and logits, and batches mixed by MixUp and CutMix."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tlkeras.config.schema.finetuning import FocalConfig, LossConfig, SigmoidConfig, SoftmaxConfig
from tlkeras.data.augmentation.views import cutmix as cutmix_batch
from tlkeras.errors import DataError, RecipeError

_TINY = 1e-7  # below it a float32 cannot tell 1 - p from 0
Loss = Callable[[Any, Any], tf.Tensor]
"""From targets [n, k] and logits [n, k] to losses, float32 [n]; it can also be given to `keras.Model.compile`.

Raises a DataError where targets and logits differ in shape, also where they would broadcast."""


Mixed = tuple[tf.Tensor, Any, tf.Tensor]
Mix = Callable[[tf.Tensor, Any, tf.Tensor, tf.Tensor], Mixed]
"""From inputs [n, ...], dense targets [n, k] (or several by task), weights [n] and a seed int [2] to mixed ones."""


def make_mixup_cutmix(mixup: float, cutmix: float) -> Mix | None:
    """The function that mixes a batch, or None where nothing is mixed, by the alphas of both ways; 0 is none.

    With both, each batch is mixed in one of the two ways, drawn by its seed (as in timm). CutMix pastes boxes into
    images and into maps of activations; where features are pooled there is no place for a box, and a batch that
    should be cut stays as it is.
    """

    blend = partial(mixup_batch, alpha=mixup)

    def cut(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor) -> Mixed:
        weights = tf.cast(weights, tf.float32)
        if inputs.shape.rank != 4:
            return inputs, targets, weights
        return cutmix_batch(inputs, targets, weights, seed, cutmix)

    def either(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor) -> Mixed:
        choice, seed = tf.unstack(tf.random.split(seed, 2))
        batch = (inputs, targets, weights, seed)
        return tf.cond(tf.random.stateless_uniform([], choice) < 0.5, lambda: blend(*batch), lambda: cut(*batch))

    if mixup and cutmix:
        return either
    return blend if mixup else cut if cutmix else None


def mixup_batch(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor, alpha: float = 0.2) -> Mixed:
    """Each example blended with the one before it in its batch, which is taken to be in random order (MixUp).

    The share of the example itself is drawn from Beta(alpha, alpha). Targets are blended in proportion to share times
    weight: then the weighted loss of the blend is that of its two halves, share * weight * loss and so on, exactly.
    With equal weights it is the paper's blend. RecipeError if alpha is not positive.

    Inputs are images, activations or features, [n, ...], whose dtype is kept; whole numbers are rounded. Targets are
    dense, float [n, k], or several of them by task; weights float [n]. The same seed, two integers, gives the same
    blend. Shares are near 0 and 1 when alpha is small, uniform at 1.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    """
    if not alpha > 0:
        raise RecipeError("alpha of MixUp is not positive.", alpha)
    inputs, weights = tf.convert_to_tensor(inputs), tf.cast(weights, tf.float32)
    share = _draw_shares(tf.shape(inputs)[0], alpha, seed)
    own, other = share * weights, (1.0 - share) * tf.roll(weights, 1, axis=0)
    total = own + other
    own_part = tf.math.divide_no_nan(own, total)
    other_part = tf.math.divide_no_nan(other, total)  # not 1 - own_part: both are 0 where nothing counts
    mixed = _blend(inputs, share, 1.0 - share)
    if inputs.dtype.is_integer:
        mixed = tf.round(mixed)
    blended = tf.nest.map_structure(lambda dense: _blend(dense, own_part, other_part), targets)
    return tf.cast(mixed, inputs.dtype), blended, total


def _draw_shares(count: tf.Tensor, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draws from Beta(alpha, alpha), float32 [count]. As g1 / (g1 + g2) with Gamma(alpha) variables, whose logarithms
    are drawn because for small alpha the variables themselves underflow: Gamma(alpha) = Gamma(alpha + 1) * U^(1 /
    alpha) (Marsaglia and Tsang, 2000).
    """
    seeds = tf.random.split(seed, 2)
    above = tf.random.stateless_gamma([2, count], seeds[0], alpha + 1.0)
    uniform = 1.0 - tf.random.stateless_uniform([2, count], seeds[1])  # never 0
    logs = tf.math.log(above) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logs[0] - logs[1])


def _blend(values: tf.Tensor, own: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """own * values + other * the values one row up, float32; `own` and `other` are [n]."""
    values = tf.cast(values, tf.float32)
    shape = [-1] + [1] * (values.shape.rank - 1)
    return tf.reshape(own, shape) * values + tf.reshape(other, shape) * tf.roll(values, 1, axis=0)


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
