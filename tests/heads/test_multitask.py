"""Losses of several tasks, worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.config.schema.finetuning import SigmoidConfig, SoftmaxConfig
from tlkeras.finetuning.losses import SigmoidLoss, SoftmaxLoss
from tlkeras.heads.multitask import MultiTaskLoss, UncertaintyWeighting, pcgrad

NONE = np.nan
TARGETS = np.array([[1, 0, 1, 1], [0, 1, NONE, NONE], [NONE, NONE, 0, 1]], np.float32)
LOGITS = np.log([[0.25, 0.75, 1.0, 3.0], [0.5, 0.5, 1.0, 1.0], [0.9, 0.1, 1.0, 1.0]]).astype(np.float32)


def test_a_missing_label_costs_nothing_and_the_others_are_weighted():
    joint = MultiTaskLoss([SoftmaxLoss(SoftmaxConfig()), SigmoidLoss(SigmoidConfig())], [2, 2], [1.0, 0.5])
    # softmax: -log 0.25, -log 0.5, nothing; sigmoids of logits 0 and log 3 are 1/2 and 3/4
    each = np.array([[np.log(4), (np.log(2) + np.log(4 / 3)) / 2], [np.log(2), 0], [0, np.log(2)]])
    np.testing.assert_allclose(joint.split(TARGETS, LOGITS), each * [1, 0.5], rtol=1e-5)
    np.testing.assert_allclose(joint(TARGETS, LOGITS), each @ [1, 0.5], rtol=1e-5)


def test_a_missing_label_has_no_gradient():
    logits = tf.constant(LOGITS)
    losses = [SoftmaxLoss(SoftmaxConfig(smoothing=0.1)), SigmoidLoss(SigmoidConfig(smoothing=0.1))]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(MultiTaskLoss(losses, [2, 2], [1.0, 1.0])(TARGETS, logits))
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[1, 2:].any() and not gradient[2, :2].any() and gradient[0].all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_task_alone_costs_its_loss(smoothing):
    one = SoftmaxLoss(SoftmaxConfig(smoothing=smoothing))
    joint = MultiTaskLoss([one], [2], [1.0])
    np.testing.assert_allclose(joint(TARGETS[:2, :2], LOGITS[:2, :2]), one(TARGETS[:2, :2], LOGITS[:2, :2]), rtol=1e-6)


def test_uncertain_tasks_count_less():
    """With s = 0 and log 4: L1 and L2 / 4 + log(4) / 2; the slope of s is -exp(-s) L + 1/2."""
    layer = UncertaintyWeighting(2)
    layer.log_variances.assign([0.0, np.log(4)])
    losses = tf.constant([[2.0, 8.0]])
    with tf.GradientTape() as tape:
        weighed = layer.weigh(losses)
        total = tf.reduce_sum(weighed)
    np.testing.assert_allclose(weighed, [[2.0, 2.0 + np.log(2)]], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, layer.log_variances.value), [-1.5, -1.5], rtol=1e-6)
    np.testing.assert_array_equal(layer(LOGITS), LOGITS)


def test_uncertainty_is_bounded():
    layer = UncertaintyWeighting(1)
    optimizer = keras.optimizers.SGD(100.0)
    optimizer.apply([tf.constant([1.0])], [layer.log_variances])
    assert layer.log_variances.numpy() == -4.0


def test_conflicts_are_projected_by_hand():
    """g1 = (1, 0) and g2 = (-1, 1): g1 keeps (1/2, 1/2), g2 keeps (0, 1); what is not shared stays."""
    one, two = tf.constant([1.0, 0.0]), tf.constant([[-1.0, 1.0]])
    head = tf.constant([3.0])
    shared, own, nothing = pcgrad([[one, head, None], [two[0], None, None]], tf.constant([0, 1]))
    np.testing.assert_allclose(shared, [0.5, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(own, head)
    assert nothing is None


def test_gradients_that_agree_are_added():
    one, two = tf.constant([[1.0, 2.0]]), tf.constant([[2.0, 0.0]])
    (summed,) = pcgrad([[one], [two]], tf.constant([0, 1]))
    np.testing.assert_array_equal(summed, [[3.0, 2.0]])


def learn_log_variances(shares, task_weights=(1.0, 1.0), loss=0.5, rows=200):
    """The variances of least cost, where every labelled row of a task costs `loss`, and the loss of each task."""
    layer = UncertaintyWeighting(len(shares))
    joint = MultiTaskLoss([lambda targets, logits: logits[:, 0] * 0 + loss] * len(shares), [1, 1], task_weights, layer)
    targets = np.ones((rows, len(shares)), np.float32)
    for task, share in enumerate(shares):
        targets[int(share * rows) :, task] = NONE
    optimizer = keras.optimizers.Adam(0.1)
    variables = [layer.log_variances]
    for _ in range(150):
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(joint(targets, tf.zeros(targets.shape)))
        optimizer.apply(tape.gradient(total, [variable.value for variable in variables]), variables)
    return np.exp(layer.log_variances.numpy()), joint.split(targets, tf.zeros(targets.shape)).numpy(), targets


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_uncertainty_does_not_depend_on_how_many_rows_have_the_label(share):
    """exp(-s) L + s / 2 is least at sigma^2 = 2 L: 1 for a loss of 0.5, whatever the share of labels."""
    variances, _, targets = learn_log_variances([1.0, share])
    np.testing.assert_allclose(variances, 1.0, rtol=0.01)
    layer = UncertaintyWeighting(2)
    layer.log_variances.assign([1.0, 2.0])
    joint = MultiTaskLoss([lambda targets, logits: logits[:, 0] * 0 + 0.5] * 2, [1, 1], [1.0, 1.0], layer)
    assert not joint.split(targets, tf.zeros(targets.shape)).numpy()[np.isnan(targets)].any()


def test_task_weights_count_besides_the_learned_ones():
    """What multiplies a task's gradient is its weight times exp(-s), and s is the same for both tasks."""
    weights = (10.0, 0.1)
    variances, _, _ = learn_log_variances([1.0, 1.0], weights)
    np.testing.assert_allclose(variances, 1.0, rtol=0.02)
    layer = UncertaintyWeighting(2)
    layer.log_variances.assign(np.log(variances))
    joint = MultiTaskLoss([lambda targets, logits: logits[:, 0]] * 2, [1, 1], weights, layer)
    logits = tf.Variable([[0.5, 0.5]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(joint(tf.ones((1, 2)), logits))
    np.testing.assert_allclose(tape.gradient(loss, logits)[0], weights, rtol=0.02)
    # a loop over tasks, by the formula
    s, values = np.array([0.3, -1.2]), np.array([0.7, 2.0])
    layer.log_variances.assign(s)
    expected = [w * (np.exp(-v) * value + v / 2) for w, v, value in zip(weights, s, values, strict=True)]
    np.testing.assert_allclose(joint.split(tf.ones((1, 2)), tf.constant([values], tf.float32))[0], expected, rtol=1e-5)
