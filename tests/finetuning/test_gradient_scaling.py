"""Relative gradients worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.errors import DataError
from tlkeras.finetuning.unfreezing import derive_multipliers, relative_gradient_norms


def make_variables(*values) -> list[keras.Variable]:
    return [keras.Variable(np.array(value, np.float32), name=f"weight_{index}") for index, value in enumerate(values)]


def test_relative_gradients_by_hand():
    variables = make_variables([[3.0, 4.0]], [0.0, 2.0], [1.0])
    gradients = [tf.constant([[0.0, 1.0]]), tf.constant([0.6, 0.8]), None]
    relative = relative_gradient_norms(gradients, variables)
    assert relative.dtype == np.float64
    assert relative == pytest.approx([1 / 5, 1 / 2, 0.0])
    assert derive_multipliers(relative) == pytest.approx([0.4, 1.0, 0.0])


def test_gradients_come_from_a_compiled_step():
    variables = make_variables([2.0], [4.0])

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(inputs * variables[0] * variables[1])
        return tape.gradient(loss, [variable.value for variable in variables])

    assert relative_gradient_norms(step(tf.constant([3.0])), variables) == pytest.approx([6.0, 1.5])


def test_sparse_and_half_precision_gradients():
    sparse = tf.IndexedSlices(tf.constant([[3.0], [4.0]]), tf.constant([0, 2]), tf.constant([3, 1]))
    half = tf.constant([300.0, 400.0], tf.float16)  # the sum of their squares is beyond float16
    relative = relative_gradient_norms([sparse, half], make_variables([[1.0], [0.0], [0.0]], [3.0, 4.0]))
    assert relative == pytest.approx([5.0, 100.0])


def test_large_values_do_not_overflow():
    relative = relative_gradient_norms([tf.constant([1e30])], make_variables([1e25]))
    assert relative == pytest.approx([1e5])


def test_variables_of_zeros_do_not_slow_the_others():
    variables = make_variables([0.0, 0.0], [0.0], [1.0], [2.0])
    gradients = [tf.constant([1.0, 0.0]), tf.constant([0.0]), tf.constant([0.5]), tf.constant([0.1])]
    relative = relative_gradient_norms(gradients, variables)
    assert relative.tolist() == pytest.approx([np.inf, 0.0, 0.5, 0.05])
    assert derive_multipliers(relative) == pytest.approx([1.0, 0.0, 1.0, 0.1])


@pytest.mark.parametrize(
    ("relative", "multipliers"), [([], []), ([0.0, 0.0], [0.0, 0.0]), ([np.inf, 0.0], [1.0, 0.0]), ([7.0], [1.0])]
)
def test_multipliers_at_the_edges(relative, multipliers):
    assert derive_multipliers(np.array(relative)).tolist() == multipliers


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_what_is_not_finite(value):
    variables = make_variables([1.0], [1.0], [1.0], [value], [1.0])
    finite, broken = tf.constant([1.0]), tf.constant([value], tf.float32)
    with pytest.raises(DataError, match=r"are not finite. Received: NaN or infinity at weight_1, weight_3. Lower"):
        relative_gradient_norms([finite, broken, finite, finite, finite], variables)
    with pytest.raises(DataError, match=r"weight_0, weight_1, weight_2 and 2 more"):
        relative_gradient_norms([broken] * 5, variables)


def test_refuses_relative_gradients_that_are_none():
    with pytest.raises(DataError, match=r"NaN or negative. Received: \[-1.0, nan\]"):
        derive_multipliers(np.array([1.0, -1.0, np.nan]))


def test_needs_a_gradient_per_variable():
    with pytest.raises(ValueError, match="longer"):
        relative_gradient_norms([], make_variables([1.0]))
    assert relative_gradient_norms([], []).shape == (0,)
