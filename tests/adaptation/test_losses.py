"""Losses of domain adaptation by hand, gradients by differences."""

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.adaptation.losses import (
    coral_loss,
    gradient_reversal,
    mcc_loss,
    measure_a_distance,
    mmd_loss,
    ramp,
    relative_coral_loss,
    weigh_by_certainty,
)


def test_reversal_by_differences():
    x, step = np.array([0.3, -0.7]), 1e-3
    weights = tf.constant([2.0, -5.0])

    def loss(values):
        return float(tf.reduce_sum(weights * tf.constant(values, tf.float32) ** 2))

    slopes = [(loss(x + step * unit) - loss(x - step * unit)) / (2 * step) for unit in np.eye(2)]
    tensor = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = tf.reduce_sum(weights * gradient_reversal(tensor, 0.5) ** 2)
    np.testing.assert_allclose(tape.gradient(value, tensor), -0.5 * np.array(slopes), rtol=1e-3)
    assert float(value) == pytest.approx(loss(x), rel=1e-6)


def test_losses_by_hand():
    one, two = tf.constant([[0.0, 0.0], [2.0, 0.0]]), tf.constant([[0.0, 1.0], [0.0, 3.0]])
    # covariances diag(2, 0) and diag(0, 2): squares 4 + 4, over 4 * 2^2
    assert float(coral_loss(one, two)) == pytest.approx(0.5)
    assert float(relative_coral_loss(one, two)) == pytest.approx(8 / 4)
    assert float(mmd_loss(one, one)) == pytest.approx(0, abs=1e-6)
    left, right = tf.constant([[0.0], [0.0]]), tf.constant([[2.0], [2.0]])
    # mean squared distance 2; kernels exp(-4 / (4 a)), twice 1 within, so 2 (5 - sum)
    expected = 2 * sum(1 - np.exp(-1 / a) for a in (0.125, 0.25, 0.5, 1, 2))
    assert float(mmd_loss(left, right)) == pytest.approx(expected, rel=1e-5)
    sure = tf.constant([[100.0, 0.0], [0.0, 100.0]])
    assert float(mcc_loss(sure)) == pytest.approx(0, abs=1e-6)
    assert float(mcc_loss(tf.zeros((4, 2)))) == pytest.approx(0.5)  # half of each class goes to the other
    # entropies 0 and log 2: weights 2 and 1.5, divided by 1.75
    weights = weigh_by_certainty(tf.constant([[1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(weights, [2 / 1.75, 1.5 / 1.75], rtol=1e-5)
    np.testing.assert_allclose([ramp(0.0), ramp(0.5)], [0, 0.98661], atol=1e-5)


@pytest.mark.parametrize("width", [8, 64])
def test_covariances_are_compared_in_units_of_the_source(width):
    random = np.random.default_rng(0)
    source, target = random.normal(size=(200, width)), random.normal(size=(150, width)) * 1.5
    Cs, Ct = np.cov(source.T), np.cov(target.T)
    expected = ((Cs - Ct) ** 2).sum() / (Cs**2).sum()
    for scale in (1e-2, 1.0, 30.0):
        X, Y = (tf.constant(scale * values, tf.float32) for values in (source, target))
        assert float(relative_coral_loss(X, Y)) == pytest.approx(expected, rel=1e-4)
        assert float(coral_loss(X, Y)) == pytest.approx(scale**4 * ((Cs - Ct) ** 2).sum() / 4 / width**2, rel=1e-4)
    assert float(relative_coral_loss(tf.ones((4, 3)), tf.ones((4, 3)))) == 0


def draw_domains(seed=0, count=160):
    random = np.random.default_rng(seed)
    ys, yt = random.integers(0, 2, count), random.integers(0, 2, count)
    Xs = random.normal(size=(count, 4)) + np.outer(ys, [3.0, 0, 0, 0])
    Xt = random.normal(size=(count, 4)) + np.outer(yt, [3.0, 0, 0, 0]) + [0.0, 2.0, 0, 0]
    return Xs.astype(np.float32), ys, Xt.astype(np.float32), yt


def test_a_distance_of_domains():
    Xs, _, Xt, _ = draw_domains()
    assert measure_a_distance(Xs, Xs) < 0.5
    assert measure_a_distance(Xs, Xt) > 1.0
    assert measure_a_distance(Xs, Xs + 100) == pytest.approx(2)
