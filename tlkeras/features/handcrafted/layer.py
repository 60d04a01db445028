"""Handcrafted features as a Keras layer, which calls Python: no other program can run it, and `export` refuses it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import joblib
import keras
import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import ImageSize, format_size, height_and_width
from tlkeras.errors import RecipeError
from tlkeras.features.handcrafted.descriptors import Descriptor, make_descriptor

_PARALLEL_BYTES = 2_000_000  # of pixels; fewer are described before a process has started


@keras.saving.register_keras_serializable("tlkeras")
class HandcraftedFeatures(keras.layers.Layer):
    """From images, uint8 values (n, h, w, 3), to features (n, d) by `make_descriptor`, computed by all cores."""

    def __init__(self, descriptor: Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self.descriptor = dict(descriptor)
        self.algorithm: Descriptor = make_descriptor(**self.descriptor)
        self.supports_jit = False
        self.trainable = False

    def build(self, input_shape: tuple) -> None:
        for name, shape in self.algorithm.shapes.items():
            self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)
        blank = {name: np.ones(shape, np.float32) for name, shape in self.algorithm.shapes.items()}
        self._width = len(self.algorithm.describe(np.zeros(input_shape[1:], np.uint8), blank))

    def call(self, inputs: Any) -> Any:
        features = tf.numpy_function(self._describe, [inputs, *map(tf.convert_to_tensor, self.weights)], tf.float32)
        return tf.ensure_shape(features, (None, self._width))

    def _describe(self, images: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        book = dict(zip(self.algorithm.shapes, arrays, strict=True))
        rows = map_images(partial(self.algorithm.describe, book=book), np.asarray(images).astype(np.uint8))
        return np.stack(rows).astype(np.float32) if rows else np.empty((0, self._width), np.float32)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self._width)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "descriptor": self.descriptor}


def list_handcrafted(model: keras.Model) -> list[HandcraftedFeatures]:
    return [layer for layer in model.layers if isinstance(layer, HandcraftedFeatures)]


def make_layers(descriptors: list[dict[str, Any]], size: ImageSize) -> list[HandcraftedFeatures]:
    """A layer per descriptor; a RecipeError names all for which images of that size are too small."""
    layers = [
        HandcraftedFeatures(one, name=f"handcrafted_{index}_{one['kind']}") for index, one in enumerate(descriptors)
    ]
    if too_large := [layer for layer in layers if layer.algorithm.minimum_size > min(height_and_width(size))]:
        problems = [f"{one.descriptor['kind']} needs {one.algorithm.minimum_size} px" for one in too_large]
        raise RecipeError.from_problems(
            f"Images of {format_size(size)} px are too small for handcrafted features:", problems
        )
    return layers


def copy_codebooks(source: keras.Model, target: keras.Model) -> None:
    for to, of in zip(list_handcrafted(target), list_handcrafted(source), strict=True):
        to.set_weights(of.get_weights())


def map_images(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> list[np.ndarray]:
    """The function's vector of each image; by a process per core for many pixels."""
    if images.nbytes < _PARALLEL_BYTES or len(images) < 2:
        return [function(image) for image in images]
    return joblib.Parallel(n_jobs=-1)(joblib.delayed(function)(image) for image in images)
