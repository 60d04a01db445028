"""Augmentation as a Keras layer: the same views as in the input pipeline, computed on the device that trains."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tlkeras.data.augmentation.policies import AugmentationPolicy
from tlkeras.data.augmentation.views import AugmentedView, make_view_fn

Placement = Literal["pipeline", "graph"]

_TRIALS = 3


class ImageAugmentation(keras.layers.Layer):
    """One view of each image of a batch; for training only, never part of an exported model.

    From images uint8 [b, h, w, 3], keys int64 [b, 2] and view numbers int64 [b], see `views`, to images of the same
    shape. Only the operations that a view draws are run, and pixels equal those of the pipeline (accelerators may
    round an interpolated one the other way).
    """

    def __init__(self, policy: AugmentationPolicy, seed: int = 0, **options: Any):
        super().__init__(trainable=False, dtype="uint8", autocast=False, **options)
        self.policy, self.seed = policy, seed

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        images, keys, numbers = inputs

        def augment(row: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return AugmentedView(self.policy, self.seed, row[2]).apply(row[0], row[1])

        return tf.map_fn(augment, (images, keys, numbers), fn_output_signature=tf.uint8, parallel_iterations=32)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]


def choose_augmentation_device(policy: AugmentationPolicy, size: int, batch_size: int) -> Placement:
    """The faster place for a policy: without an accelerator the pipeline, which works while the network trains."""
    if policy.size == 1 or not tf.config.list_physical_devices("GPU"):
        return "pipeline"
    times = time_placements(policy, size, batch_size)
    return min(times, key=times.__getitem__)


def time_placements(policy: AugmentationPolicy, size: int, batch_size: int) -> dict[Placement, float]:
    """Seconds per batch of views by placement, the best of three, without tracing."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, size, size, 3), np.uint8)
    keys = random.integers(-(2**62), 2**62, (batch_size, 2))
    numbers = np.arange(batch_size)
    layer = ImageAugmentation(policy)
    batch = tf.constant(images), tf.constant(keys), tf.constant(numbers)
    in_graph = tf.function(lambda: layer(batch), autograph=False, jit_compile=False)
    augment = make_view_fn(policy, keys, numbers)
    stream = tf.data.Dataset.from_tensor_slices((images, numbers))
    stream = stream.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    in_pipeline = iter(stream.batch(batch_size).repeat(_TRIALS + 1))
    return {"pipeline": _time(lambda: next(in_pipeline)), "graph": _time(in_graph)}


def _time(work: Callable[[], tf.Tensor]) -> float:
    def wait() -> None:
        np.asarray(work()[0, 0, 0])  # waits for the device

    wait()
    return min(timeit.repeat(wait, number=1, repeat=_TRIALS))
