"""Several tasks on one network: their losses side by side, and how much each counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class JointLoss:
    """The weighted sum of the losses of tasks whose targets and logits stand side by side.

    Called with dense targets [n, k] and logits [n, k], k the sum of the widths, it returns losses, float32 [n]. Rows
    of NaN in a task's targets are pictures without a label there: they cost nothing in that task. Losses are not scaled
    up for them, so that batches add up to the loss of the whole set.

    Args:
        losses: Of each task, from targets and logits of its own columns to [n].
        widths: Columns of each task.
        weights: How much each task counts.
    """

    losses: Sequence[Callable[[Any, Any], tf.Tensor]]
    widths: Sequence[int]
    weights: Sequence[float]

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each picture, float32 [n]."""
        return tf.linalg.matvec(self.split(targets, logits), tf.constant(self.weights, tf.float32))

    def split(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the unweighted losses of each picture by task, float32 [n, tasks]."""
        parts = zip(self.losses, tf.split(targets, self.widths, 1), tf.split(logits, self.widths, 1), strict=True)
        return tf.stack([_mask(loss, *part) for loss, *part in parts], axis=1)


def _mask(loss: Callable[[Any, Any], tf.Tensor], targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    known = tf.reduce_all(tf.math.is_finite(targets), axis=1)
    # in the targets, not after the loss: 0 times NaN is NaN, also in its gradient
    losses = loss(tf.where(known[:, None], targets, 0.0), logits)
    return tf.where(known, losses, 0.0)
