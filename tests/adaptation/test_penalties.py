"""Losses of domain adaptation by hand, gradients by differences, and the difference of domains in a batch of both."""

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.adaptation.penalties import (
    DomainAdaptationLoss,
    DomainDiscrepancy,
    gradient_reversal,
    mcc_loss,
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
    # covariances diag(2, 0) and diag(0, 2): squares 4 + 4, over 4
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
    assert float(relative_coral_loss(tf.ones((4, 3)), tf.ones((4, 3)))) == 0


@pytest.mark.parametrize("method", ["dann", "cdan", "mmd", "coral", "mcc"])
def test_in_a_batch_of_both_rows_without_weight_are_the_targets(method):
    """The penalty is that of the parts; at the start it has no gradient but that of a discriminator."""
    random = np.random.default_rng(0)
    features, logits = (tf.Variable(random.normal(size=(8, k)), dtype=tf.float32) for k in (5, 3))
    done = tf.Variable(0.0)
    discrepancy = DomainDiscrepancy(method, 5, 2, dropout=0.0, seeds=iter(range(9)))
    loss = DomainAdaptationLoss(discrepancy, 0.5, lambda: done)
    weights = tf.constant([2.0, 0.0] * 4)

    def measure():
        with tf.GradientTape() as tape:
            term = loss({"features": features, "logits": logits, "weights": weights})
        moved = [features, logits, *[variable.value for variable in loss.variables if variable.trainable]]
        return float(term), tape.gradient(term, moved, unconnected_gradients="zero")

    _, (of_features, of_logits, *of_discriminator) = measure()
    assert not np.any(of_features) and not np.any(of_logits)
    assert bool(of_discriminator) == (method in ("dann", "cdan")) and all(
        np.any(gradient) for gradient in of_discriminator[:1]
    )
    done.assign(1.0)
    source, target = ((features[start::2], logits[start::2, :2]) for start in (0, 1))
    strength = 0.5 * ramp(1.0)
    assert measure()[0] == pytest.approx(float(discrepancy.weigh(source, target, strength)[0]), rel=1e-5)
    assert np.any(measure()[1][1 if method == "mcc" else 0])
