"""Augmentation as numbered views: each a pure function of policy, seed, number and the SHA-256 of the image's file."""

import hashlib
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import ImageSize, height_and_width
from tlkeras.data.augmentation.policies import AugmentationPolicy
from tlkeras.data.pipeline import Augment

Placement = Literal["pipeline", "graph"]

_TRIALS = 3


@dataclass(frozen=True)
class AugmentedView:
    """A view of every image, by the number of the policy's views; `seed` is that of its random draws."""

    policy: AugmentationPolicy
    seed: int = 0
    number: int = 0

    def facts(self) -> dict[str, object]:
        """The view's part of a cache key; empty for the image as it is."""
        if self.policy.size is not None:
            orientation = self.number % self.policy.size
            return {"view": {"orientation": orientation}} if orientation else {}
        named = {"policy": self.policy.name, "fingerprint": self.policy.fingerprint}
        return {"view": {**named, "seed": self.seed, "number": self.number}}

    def apply(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """The view of an image with a key, int64 [2], from `digest_to_seed`: uint8 [h, w, 3] -> uint8 [h, w, 3]."""
        mixed = tf.bitwise.bitwise_xor(tf.cast(key, tf.int64), tf.constant(_salt(self.seed)))
        number = tf.cast(self.number, tf.int64)
        # TensorFlow scrambles seeds, so that neighbours have nothing in common.
        return self.policy.apply(image, self.number, mixed + tf.stack([tf.constant(0, tf.int64), number]))


IDENTITY_VIEW = AugmentedView(AugmentationPolicy("none", size=1))
"""The image as it is."""


def digest_to_seed(digests: Sequence[str]) -> np.ndarray:
    """Keys of images from the hex SHA-256 digests of their files, int64 [n, 2]; random draws depend on them."""
    words = np.frombuffer(bytes.fromhex("".join(digests)), "<i8").reshape(-1, 4)
    return words[:, :2].astype(np.int64)


def number_views(policy: AugmentationPolicy, count: int, seed: int = 0) -> tuple[AugmentedView, ...]:
    """The views 0 to count - 1, fewer where the policy has fewer."""
    return tuple(AugmentedView(policy, seed, number) for number in range(min(count, policy.size or count)))


def choose_views(
    policy: AugmentationPolicy, count: int | None, keys: np.ndarray, epoch: int, seed: int = 0
) -> np.ndarray:
    """Number of the view of each image in an epoch, int64 [n], of `count` or all.

    Drawn views follow the epoch, modulo the count. Orientations do so from a start for each image that follows from the
    seed, so that a batch mixes them and each image is seen in all of them in turn.
    """
    if policy.size is None:
        return np.full(len(keys), epoch % count if count else epoch, np.int64)
    count = count or policy.size
    # Multiply-shift hashing (Dietzfelbinger et al. 1997): with another factor, other images start together.
    starts = (keys[:, 0].astype(np.uint64) * (_salt(seed).view(np.uint64)[0] | np.uint64(1))) >> np.uint64(32)
    return (starts.astype(np.int64) + epoch) % count


def make_view_fn(policy: AugmentationPolicy, keys: np.ndarray, numbers: np.ndarray, seed: int = 0) -> Augment:
    """A function from an image and its index to its view; keys [n, 2] and numbers of views [n] are by index."""
    all_keys, all_numbers = tf.constant(keys, tf.int64), tf.constant(numbers, tf.int64)
    return lambda image, index: AugmentedView(policy, seed, all_numbers[index]).apply(image, all_keys[index])


def make_all_views_fn(views: Sequence[AugmentedView], keys: np.ndarray) -> Augment:
    """A function from an image and its index to all views of the image, uint8 [views, h, w, 3]."""
    all_keys = tf.constant(keys, tf.int64)
    # Views of one policy are a loop, whose body is traced once.
    groups = [
        (partial(AugmentedView, policy, seed), tf.constant([view.number for view in group], tf.int64))
        for (policy, seed), group in groupby(views, lambda view: (view.policy, view.seed))
    ]

    def apply_all(image: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        def apply(make: Callable[[tf.Tensor], AugmentedView], numbers: tf.Tensor) -> tf.Tensor:
            return tf.map_fn(lambda at: make(at).apply(image, all_keys[index]), numbers, fn_output_signature=tf.uint8)

        return tf.concat([apply(*group) for group in groups], axis=0)

    return apply_all


def draw_views(images: np.ndarray, keys: np.ndarray, views: Sequence[AugmentedView]) -> np.ndarray:
    """All views of images [n, h, w, 3] with keys [n, 2], uint8 [n, views, h, w, 3]."""
    draw = tf.function(make_all_views_fn(views, keys), autograph=False)
    return np.stack([draw(tf.constant(image), tf.constant(row)).numpy() for row, image in enumerate(images)])


def cutmix(
    images: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor, alpha: float = 1.0
) -> tuple[tf.Tensor, Any, tf.Tensor]:
    """Images uint8 [n, h, w, 3], each with a box of another pasted in (CutMix, Yun et al. 2019), targets, weights.

    The box takes 1 - Beta(alpha, alpha) of the area, less the part outside, around any centre; see `mix_labels`.
    """
    count, height, width = tf.unstack(tf.shape(images)[:3])
    partners, *seeds = tf.unstack(tf.random.split(seed, 4))
    partners = tf.random.experimental.stateless_shuffle(tf.range(count), partners)
    first, second = (tf.random.stateless_gamma([count], each, alpha) for each in seeds[:2])
    side = tf.sqrt(second / (first + second))
    centres = tf.random.stateless_uniform([2, count], seeds[2])
    pasted = _cover(height, centres[0], side)[:, :, None] & _cover(width, centres[1], side)[:, None, :]
    mixed = tf.where(pasted[..., None], tf.gather(images, partners), images)
    own = 1 - tf.reduce_mean(tf.cast(pasted, tf.float32), axis=[1, 2])
    return mixed, *mix_labels(targets, weights, partners, own)


def mix_labels(targets: Any, weights: tf.Tensor, partners: tf.Tensor, own: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Targets float32 [n, k], or several by task, and weights, mixed so that a loss linear in the targets is mixed.

    With fraction s, weight w and target y of an image, and w', y' of its partner: the weight is s w + (1 - s) w', and
    the target (s w y + (1 - s) w' y') divided by it. `partners` are rows, int [n]; `own` is s, float32 [n].
    """
    mine, theirs = own * weights, (1 - own) * tf.gather(weights, partners)
    total = mine + theirs

    def mix(dense: tf.Tensor) -> tf.Tensor:
        sum_of_both = mine[:, None] * dense + theirs[:, None] * tf.gather(dense, partners)
        return tf.math.divide_no_nan(sum_of_both, total[:, None])

    return tf.nest.map_structure(mix, targets), total


def _cover(length: tf.Tensor, centre: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Positions covered by boxes with centres and sides [n], bool [n, length]."""
    extent = tf.cast(length, tf.float32)
    distance = tf.range(extent) + 0.5 - (centre * extent)[:, None]
    return tf.abs(distance) < (share * extent / 2)[:, None]


def _salt(seed: int) -> np.ndarray:
    return digest_to_seed([hashlib.sha256(str(seed).encode()).hexdigest()])[0]


class ImageAugmentation(keras.layers.Layer):
    """One view of each image of a batch; for training only, never part of an exported model.

    From images uint8 [b, h, w, 3], keys int64 [b, 2] and view numbers int64 [b] to images whose pixels equal those of
    the pipeline (accelerators may round an interpolated one the other way). Only operations that a view draws are run.
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


def choose_augmentation_device(policy: AugmentationPolicy, size: ImageSize, batch_size: int) -> Placement:
    """The faster place for a policy: without an accelerator the pipeline, which works while the network trains."""
    if policy.size == 1 or not tf.config.list_physical_devices("GPU"):
        return "pipeline"
    times = time_placements(policy, size, batch_size)
    return min(times, key=times.__getitem__)


def time_placements(policy: AugmentationPolicy, size: ImageSize, batch_size: int) -> dict[Placement, float]:
    """Seconds per batch of views by placement, the best of three, without tracing."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *height_and_width(size), 3), np.uint8)
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
