"""Layers of heads that Keras lacks; import this module before a model with them is loaded."""

from typing import Any

import keras
import numpy as np
from keras import ops

_TINY = 1e-12


@keras.saving.register_keras_serializable("tlkeras")
class KernelFeatures(keras.layers.Layer):
    """Kernel (n, m) of features (n, d) with fixed landmarks.

    With x a row and l a landmark: rbf exp(-gamma |x - l|^2), laplacian exp(-gamma |x - l|_1), chi2
    exp(-gamma sum (x - l)^2 / (x + l)), polynomial (gamma x.l + 1)^degree.
    """

    def __init__(self, kernel: str, landmarks: int, gamma: float, degree: int = 3, **options: Any):
        super().__init__(**options)
        self.kernel, self.landmarks, self.gamma, self.degree = kernel, landmarks, gamma, degree

    def build(self, input_shape: tuple) -> None:
        """Add the landmarks, (m, d), which do not train."""
        shape = (self.landmarks, input_shape[-1])
        self.points = self.add_weight(name="points", shape=shape, initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        if self.kernel in ("rbf", "polynomial"):
            products = ops.matmul(inputs, ops.transpose(self.points))
            if self.kernel == "polynomial":
                return ops.power(self.gamma * products + 1, self.degree)
            lengths = ops.sum(inputs**2, axis=1, keepdims=True) + ops.sum(self.points**2, axis=1)
            return ops.exp(-self.gamma * ops.maximum(lengths - 2 * products, 0))
        # landmark by landmark: all at once would take n x m x d numbers
        distances = ops.map(lambda point: self._measure(inputs, point), ops.convert_to_tensor(self.points))
        return ops.exp(-self.gamma * ops.transpose(distances))

    def _measure(self, rows: Any, point: Any) -> Any:
        apart = ops.abs(rows - point)
        if self.kernel == "laplacian":
            return ops.sum(apart, axis=1)
        return ops.sum(apart**2 / ops.maximum(rows + point, _TINY), axis=1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.landmarks)

    def get_config(self) -> dict[str, Any]:
        own = {"kernel": self.kernel, "landmarks": self.landmarks, "gamma": self.gamma, "degree": self.degree}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tlkeras")
class FourierMap(keras.layers.Layer):
    """Random Fourier features sqrt(2 / m) cos(x.w + b) of m waves, (n, m), of features (n, d); they do not train."""

    def __init__(self, waves: int, **options: Any):
        super().__init__(**options)
        self.waves = waves

    def build(self, input_shape: tuple) -> None:
        """Add frequencies (d, m) and phases (m,)."""
        options: dict[str, Any] = {"initializer": "zeros", "trainable": False}
        self.frequencies = self.add_weight(name="frequencies", shape=(input_shape[-1], self.waves), **options)
        self.phases = self.add_weight(name="phases", shape=(self.waves,), **options)

    def call(self, inputs: Any) -> Any:
        return np.sqrt(2 / self.waves) * ops.cos(ops.matmul(inputs, self.frequencies) + self.phases)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.waves)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "waves": self.waves}


@keras.saving.register_keras_serializable("tlkeras")
class AttentionPooling(keras.layers.Layer):
    """Means of maps (n, h, w, c), weighted by q learned queries, (n, q * c)."""

    def __init__(self, queries: int, **options: Any):
        super().__init__(**options)
        self.queries = queries

    def build(self, input_shape: tuple) -> None:
        """Add the queries, (c, q)."""
        self.query = self.add_weight(name="query", shape=(input_shape[-1], self.queries), initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        """For each query the mean of all positions, weighted by the softmax of its products with them."""
        _, height, width, channels = inputs.shape
        positions = ops.reshape(inputs, (-1, height * width, channels))
        shares = ops.softmax(ops.matmul(positions, self.query) / np.sqrt(channels), axis=1)
        means = ops.matmul(ops.transpose(shares, (0, 2, 1)), positions)
        return ops.reshape(means, (-1, self.queries * channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.queries * input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "queries": self.queries}


@keras.saving.register_keras_serializable("tlkeras")
class PositionEmbedding(keras.layers.Layer):
    """Add a learned vector to each position of sequences (n, positions, c)."""

    def build(self, input_shape: tuple) -> None:
        """Add the vectors, (positions, c)."""
        self.positions = self.add_weight(name="positions", shape=input_shape[1:], initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return inputs + self.positions

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)


@keras.saving.register_keras_serializable("tlkeras")
class SelectColumns(keras.layers.Layer):
    """The columns (n, m) of some indices, of features (n, d)."""

    def __init__(self, columns: list[int], **options: Any):
        super().__init__(**options)
        self.columns = list(columns)

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, np.array(self.columns, "int32"), axis=1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], len(self.columns))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "columns": self.columns}
