"""MixUp and CutMix of the examples of a batch, or one of the two by turns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from tlkeras.data.augmentation.views import cutmix as cutmix_batch
from tlkeras.errors import RecipeError

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
