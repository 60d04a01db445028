"""Losses worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.config.schema.finetuning import FocalConfig, SigmoidConfig, SoftmaxConfig
from tlkeras.errors import DataError
from tlkeras.finetuning.losses import make_loss, smooth, weighted_mean

EVEN = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])  # logits whose softmax is what is in the logarithm
TARGETS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


LOSSES = {"softmax": SoftmaxConfig, "focal": FocalConfig, "sigmoid": SigmoidConfig}


def make(kind: str, **options):
    return make_loss(LOSSES[kind](**options))


def compute(kind: str, targets, logits, **options) -> np.ndarray:
    return make(kind, **options)(targets, logits).numpy()


def differentiate(loss, targets, logits) -> np.ndarray:
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = tf.reduce_sum(loss(tf.constant(targets, tf.float32), logits))
    return tape.gradient(value, logits).numpy()


# Values


def test_softmax_by_hand():
    assert compute("softmax", TARGETS, EVEN) == pytest.approx([np.log(2), np.log(10)])
    smoothed = compute("softmax", TARGETS, EVEN, smoothing=0.3)  # targets 0.8, 0.1, 0.1
    assert smoothed[0] == pytest.approx(-0.8 * np.log(0.5) - 0.1 * np.log(0.3) - 0.1 * np.log(0.2))


def test_focal_by_hand():
    assert compute("focal", TARGETS, EVEN) == pytest.approx([0.25 * np.log(2), 0.81 * np.log(10)])
    assert compute("focal", TARGETS, EVEN, gamma=1.0) == pytest.approx([0.5 * np.log(2), 0.9 * np.log(10)])
    halves = compute("focal", [[0.5, 0.0, 0.5]], EVEN[:1])
    assert halves == pytest.approx([0.5 * 0.25 * np.log(2) + 0.5 * 0.64 * np.log(5)])
    smoothed = compute("focal", TARGETS, EVEN, gamma=1.0, smoothing=0.3)
    assert smoothed[0] == pytest.approx(0.8 * 0.5 * np.log(2) - 0.1 * 0.7 * np.log(0.3) + 0.1 * 0.8 * np.log(5))


def test_sigmoid_by_hand():
    logits = np.log([[1.0, 3.0], [4.0, 0.25]])  # probabilities 1/2, 3/4; 4/5, 1/5
    targets = np.array([[1.0, 1.0], [0.0, 0.0]])
    expected = [(np.log(2) + np.log(4 / 3)) / 2, (np.log(5) + np.log(5 / 4)) / 2]
    assert compute("sigmoid", targets, logits) == pytest.approx(expected)
    smoothed = compute("sigmoid", targets[:1], logits[:1], smoothing=0.2)  # targets 0.9
    assert smoothed == pytest.approx([(np.log(2) - 0.9 * np.log(0.75) - 0.1 * np.log(0.25)) / 2])


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_focal_has_a_gradient_everywhere(gamma):
    loss = make("focal", gamma=gamma)
    gradient = differentiate(loss, TARGETS, [[60.0, 0.0, 0.0], [60.0, 0.0, 0.0]])  # surely right, surely wrong
    assert np.isfinite(gradient).all()
    assert gradient[0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert gradient[1] == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)


def test_focal_without_focus_is_the_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(5, 4), scale=3.0)
    targets = tf.one_hot([0, 1, 2, 3, 3], 4)
    focal, softmax = make("focal", gamma=0.0), make("softmax")
    assert np.allclose(focal(targets, logits), softmax(targets, logits), rtol=1e-5)
    assert np.allclose(differentiate(focal, targets, logits), differentiate(softmax, targets, logits), atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_fits_a_graph_and_half_precision(kind):
    loss = make(kind)
    expected = loss(TARGETS, EVEN.astype(np.float16).astype(np.float32))
    signature = [tf.TensorSpec([None, 3], tf.int32), tf.TensorSpec([None, 3], tf.float16)]
    compiled = tf.function(loss.__call__, input_signature=signature)
    losses = compiled(TARGETS.astype(np.int32), EVEN.astype(np.float16))
    assert losses.dtype == tf.float32 and losses.shape == (2,)
    assert np.allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_can_be_compiled_by_keras(kind):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    model.compile(loss=make(kind, smoothing=0.1))
    weights = np.array([3.0, 1.0], np.float32)
    expected = weighted_mean(make(kind, smoothing=0.1)(TARGETS, EVEN), weights)
    evaluated = model.evaluate(EVEN, TARGETS, sample_weight=weights, verbose=0)
    assert evaluated == pytest.approx(float(expected), rel=1e-5)


def test_the_mean_is_over_examples():
    losses = tf.constant([1.0, 2.0, 6.0])
    assert float(weighted_mean(losses)) == 3.0
    assert float(weighted_mean(losses, [1, 1, 1])) == 3.0
    assert float(weighted_mean(losses, tf.constant([0.5, 0.0, 1.0], tf.float64))) == pytest.approx(6.5 / 3)
    assert float(weighted_mean(losses, [2.0, 0.0, 0.0])) == pytest.approx(2 / 3)  # and not 1: one of three examples


def test_smoothing_by_hand():
    assert smooth(tf.constant([0.0, 1.0, 0.0, 0.0]), 0.2, 4).numpy() == pytest.approx([0.05, 0.85, 0.05, 0.05])


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("targets", [[0, 1], [[0], [1]], [[1.0, 0.0, 0.0]]])
def test_refuses_targets_that_would_broadcast(kind, targets):
    with pytest.raises(DataError, match=r"differ in shape.*for logits of shape \(2, 3\). .* by tf.one_hot"):
        make(kind)(np.array(targets), EVEN)
