"""A Keras layer that augments images in a model of one's own, by the policies of recipes."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.data.augmentation.policies import check_pixels, make_policy
from tlkeras.errors import TlkerasError
from tlkeras.lazy_tensorflow import check_backend


@keras.saving.register_keras_serializable("tlkeras")
class RandomAugmentation(keras.layers.Layer):
    """Another view of each image in every training step; in inference the images as they are.

        inputs = keras.Input((224, 224, 3), dtype="uint8")
        x = RandomAugmentation("standard", seed=1)(inputs)
        x = backbone(keras.layers.Rescaling(1 / 127.5, -1)(x))

    From uint8 RGB [n, h, w, 3], 0 to 255, to the same shape and type. A saved model keeps it; exports and predictions
    have no use of it.

    Args:
        policy: A name, such as "standard", or operations in order, [{"rotate": 10}, {"equalize": 0.5}]; see
            `make_policy`.
        seed: Of the draws, which go on from step to step; None for one drawn now.
        options: Of the policy, such as {"magnitude": 5}.

    >>> RandomAugmentation("flip", seed=1)(np.zeros((1, 2, 2, 3), "uint8"), training=True).shape
    TensorShape([1, 2, 2, 3])
    """

    def __init__(
        self,
        policy: str | Sequence[Mapping[str, Any]] = "standard",
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        **arguments: Any,
    ):
        check_backend("RandomAugmentation")
        super().__init__(**{**arguments, "trainable": False, "dtype": "uint8", "autocast": False})
        self.policy = policy if isinstance(policy, str) else [dict(step) for step in policy]
        self.options = dict(options or {})
        self._policy = make_policy(policy, **self.options)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_jit = False  # XLA has no kernel that moves pixels

    def build(self, input_shape: Any) -> None:
        """Raise a TlkerasError unless the images are [n, h, w, 3]."""
        if len(input_shape) != 4 or input_shape[-1] != 3:
            raise TlkerasError("RandomAugmentation takes RGB images [n, height, width, 3].", tuple(input_shape))
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        check_pixels(images)
        if not training:
            return images
        draw: dict[str, Any] = {"seed": self.seed_generator.next(), "minval": None, "maxval": None, "dtype": tf.int32}
        draws = tf.random.stateless_uniform([tf.shape(images)[0], 3], **draw)

        def augment(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            image, numbers = row
            return self._policy.apply(image, numbers[2], numbers[:2])

        return tf.map_fn(augment, (images, draws), fn_output_signature=tf.uint8, parallel_iterations=32)

    def compute_output_spec(self, images: Any, training: bool = False) -> keras.KerasTensor:
        """What the images are, in a model too, where Keras does not call the layer; a TlkerasError as in `call`."""
        check_pixels(images)
        return keras.KerasTensor(images.shape, dtype="uint8")

    def save_own_variables(self, store: Any) -> None:
        """Add the state of the draws, which Keras leaves out: a fit that is resumed goes on with it."""
        store["draws"] = np.array(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        self.seed_generator.state.assign(store["draws"])

    def get_config(self) -> dict[str, Any]:
        """The arguments it was made with."""
        own = {"policy": self.policy, "seed": self.seed_generator.get_config()["seed"], "options": self.options}
        return {**super().get_config(), **own}
