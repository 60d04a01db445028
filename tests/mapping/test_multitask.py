"""Losses of several tasks, worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.finetuning.objectives import Sigmoid, Softmax
from tlkeras.mapping.multitask import JointLoss

NONE = np.nan
TARGETS = np.array([[1, 0, 1, 1], [0, 1, NONE, NONE], [NONE, NONE, 0, 1]], np.float32)
LOGITS = np.log([[0.25, 0.75, 1.0, 3.0], [0.5, 0.5, 1.0, 1.0], [0.9, 0.1, 1.0, 1.0]]).astype(np.float32)


def test_a_missing_label_costs_nothing_and_the_others_are_weighted():
    joint = JointLoss([Softmax(), Sigmoid()], [2, 2], [1.0, 0.5])
    # softmax: -log 0.25, -log 0.5, nothing; sigmoids of logits 0 and log 3 are 1/2 and 3/4
    each = np.array([[np.log(4), (np.log(2) + np.log(4 / 3)) / 2], [np.log(2), 0], [0, np.log(2)]])
    np.testing.assert_allclose(joint.split(TARGETS, LOGITS), each, rtol=1e-5)
    np.testing.assert_allclose(joint(TARGETS, LOGITS), each @ [1, 0.5], rtol=1e-5)


def test_a_missing_label_has_no_gradient():
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(JointLoss([Softmax(0.1), Sigmoid(0.1)], [2, 2], [1.0, 1.0])(TARGETS, logits))
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[1, 2:].any() and not gradient[2, :2].any() and gradient[0].all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_task_alone_costs_what_its_loss_says(smoothing):
    one = Softmax(smoothing)
    joint = JointLoss([one], [2], [1.0])
    np.testing.assert_allclose(joint(TARGETS[:2, :2], LOGITS[:2, :2]), one(TARGETS[:2, :2], LOGITS[:2, :2]), rtol=1e-6)
