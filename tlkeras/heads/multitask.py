"""Several tasks on one network: the sum of their losses, its weights, and conflicting gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class UncertaintyWeighting(keras.layers.Layer):
    """Identity on logits that owns the uncertainty of each task, s = log(sigma^2), learned with the network.

    A task's loss becomes exp(-s) L + s / 2, the form for classes. s is kept in [-4, 4]: as L nears 0 its best value
    has no bound. At the start it is 0, so that all tasks count the same.

    Source: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018, equation 10.
    """

    def __init__(self, tasks: int, **options: Any):
        super().__init__(**options)
        self.log_variances = self.add_weight(
            (tasks,), "zeros", name="log_variances", constraint=lambda values: keras.ops.clip(values, -4.0, 4.0)
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tasks": int(self.log_variances.shape[0])}

    def call(self, logits: Any) -> Any:
        return logits

    def weigh(self, losses: tf.Tensor) -> tf.Tensor:
        """Weighted losses of tasks, [n, tasks]."""
        s = tf.convert_to_tensor(self.log_variances)
        return tf.exp(-s) * losses + s / 2.0


def pcgrad(gradients: Sequence[Sequence[tf.Tensor | None]], seed: tf.Tensor) -> list[tf.Tensor | None]:
    """Sum of the tasks' gradients, each without its component against another's (PCGrad).

    In a random order of the others, j: where g_i . g_j < 0, g_i loses (g_i . g_j) / |g_j|^2 g_j, g_j as it was. Only
    variables that every task reaches are shared; gradients of all others are added up.

    Args:
        gradients: By task, then variable; None where a task does not reach it.
        seed: Of the order, int [2].

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1.
    """
    by_variable = list(zip(*gradients, strict=True))
    shared = [index for index, of_tasks in enumerate(by_variable) if all(grad is not None for grad in of_tasks)]
    summed = [tf.add_n(known) if (known := [g for g in of if g is not None]) else None for of in by_variable]
    if not shared:
        return summed
    flat = tf.stack([tf.concat([tf.reshape(of_task[index], [-1]) for index in shared], 0) for of_task in gradients])
    lengths, tasks = tf.reduce_sum(flat**2, axis=1), len(gradients)
    total = tf.zeros_like(flat[0])
    for task in range(tasks):
        order = tf.random.experimental.stateless_shuffle(tf.range(tasks), seed + task)
        own = flat[task]
        for turn in range(tasks):
            other = order[turn]
            product = tf.where(other == task, 0.0, tf.minimum(tf.reduce_sum(own * flat[other]), 0.0))
            own -= tf.math.divide_no_nan(product, lengths[other]) * flat[other]
        total += own
    parts = tf.split(total, [int(np.prod(by_variable[index][0].shape)) for index in shared])
    for index, part in zip(shared, parts, strict=True):
        summed[index] = tf.reshape(part, by_variable[index][0].shape)
    return summed


@dataclass(frozen=True)
class MultiTaskLoss:
    """Weighted sum of the losses of tasks whose targets and logits are concatenated.

    Called with dense targets [n, k] and logits [n, k], k the sum of the widths, it returns losses, float32 [n]. Rows
    of NaN in a task's targets are images without a label there: they cost nothing in that task, neither a loss nor the
    term of its uncertainty. Losses are not scaled up for them, so that batches add up to the loss of the whole set.

    With learned weights a task costs weight (exp(-s) L + s / 2), so that the best s does not depend on its weight or on
    how many images have its label.

    Args:
        losses: Of each task, from targets and logits of its own columns to [n].
        widths: Columns of each task.
        weights: How much each task counts, besides what is learned.
        uncertainty: Learned weights, if any.
    """

    losses: Sequence[Callable[[Any, Any], tf.Tensor]]
    widths: Sequence[int]
    weights: Sequence[float]
    uncertainty: UncertaintyWeighting | None = None

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Loss of each image, float32 [n]."""
        return tf.reduce_sum(self.split(targets, logits), axis=1)

    def split(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Weighted losses of each image by task, float32 [n, tasks]."""
        parts = zip(self.losses, tf.split(targets, self.widths, 1), tf.split(logits, self.widths, 1), strict=True)
        of_tasks, known = zip(*(_mask(loss, *part) for loss, *part in parts), strict=True)
        losses = tf.stack(of_tasks, axis=1)
        if self.uncertainty is not None:
            losses = self.uncertainty.weigh(losses)
        return tf.where(tf.stack(known, axis=1), losses, 0.0) * tf.constant(self.weights, tf.float32)


def _mask(loss: Callable[[Any, Any], tf.Tensor], targets: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of each row, and whether it has a label, [n] each."""
    known = tf.reduce_all(tf.math.is_finite(targets), axis=1)
    # in the targets, not after the loss alone: 0 times NaN is NaN, also in its gradient
    return loss(tf.where(known[:, None], targets, 0.0), logits), known
