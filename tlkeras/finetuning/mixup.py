"""Examples of a batch mixed with each other: MixUp, CutMix, or now one and now the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tlkeras.data.augmentation.views import cutmix as blend_patches
from tlkeras.finetuning.losses import mixup as blend_images

Mixed = tuple[tf.Tensor, Any, tf.Tensor]
Mix = Callable[[tf.Tensor, Any, tf.Tensor, tf.Tensor], Mixed]
"""From inputs [n, ...], dense targets [n, k] (or several by task), weights [n] and a seed int [2] to mixed ones."""


def make_mixup_cutmix(mixup: float, cutmix: float) -> Mix | None:
    """Return what mixes a batch, or None where nothing is to be mixed.

    With both, each batch is mixed in one of the two ways, drawn by its seed (as in timm). CutMix pastes boxes into
    images and into maps of activations; where features are pooled there is no place for a box, and a batch that
    should be cut stays as it is.

    Args:
        mixup: Alpha of MixUp; 0: none.
        cutmix: Alpha of CutMix; 0: none.
    """

    def blend(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor) -> Mixed:
        return blend_images(inputs, targets, weights, seed, alpha=mixup)

    def cut(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor) -> Mixed:
        weights = tf.cast(weights, tf.float32)
        if inputs.shape.rank != 4:
            return inputs, targets, weights
        return blend_patches(inputs, targets, weights, seed, cutmix)

    def either(inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor) -> Mixed:
        choice, seed = tf.unstack(tf.random.split(seed, 2))
        batch = (inputs, targets, weights, seed)
        return tf.cond(tf.random.stateless_uniform([], choice) < 0.5, lambda: blend(*batch), lambda: cut(*batch))

    if mixup and cutmix:
        return either
    return blend if mixup else cut if cutmix else None
