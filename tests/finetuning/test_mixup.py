"""Which batch is mixed how, and that labels and weights follow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation.views import cutmix
from tlkeras.finetuning.losses import make_loss, mixup
from tlkeras.finetuning.mixup import make_mixup_cutmix
from tlkeras.heads.multitask import MultiTaskLoss

IMAGES = tf.constant(np.random.default_rng(0).integers(0, 2, (6, 8, 8, 3)) * 250, tf.uint8)
TARGETS = {"kind": tf.eye(6), "size": tf.one_hot([0, 1, 0, 1, 0, 1], 2)}
WEIGHTS = tf.constant([1.0, 2, 0.5, 1, 0, 3])


def same(left, right) -> bool:
    pairs = zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_one_of_both_is_drawn_by_the_seed():
    seeds = [[3, step] for step in range(30)]
    both = [make_mixup_cutmix(0.4, 1.0)(IMAGES, TARGETS, WEIGHTS, seed) for seed in seeds]
    assert same(both, [make_mixup_cutmix(0.4, 1.0)(IMAGES, TARGETS, WEIGHTS, seed) for seed in seeds])
    boxed = sum(np.isin(np.asarray(images), np.asarray(IMAGES)).all() for images, _, _ in both)
    assert 7 < boxed < 23
    assert make_mixup_cutmix(0, 0) is None
    assert same(
        make_mixup_cutmix(0.4, 0)(IMAGES, TARGETS, WEIGHTS, [1, 2]), mixup(IMAGES, TARGETS, WEIGHTS, [1, 2], 0.4)
    )
    assert same(
        make_mixup_cutmix(0, 1.0)(IMAGES, TARGETS, WEIGHTS, [1, 2]), cutmix(IMAGES, TARGETS, WEIGHTS, [1, 2], 1.0)
    )


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_labels_of_all_tasks_follow(alphas):
    mixed, targets, weights = make_mixup_cutmix(*alphas)(IMAGES, TARGETS, WEIGHTS, [5, 0])
    assert mixed.dtype == tf.uint8 and mixed.shape == IMAGES.shape
    counted = np.asarray(weights) > 0
    for dense in targets.values():
        np.testing.assert_allclose(np.asarray(dense)[counted].sum(axis=1), 1, atol=1e-6)
    kind, size = np.asarray(targets["kind"])[counted], np.asarray(targets["size"])[counted]
    np.testing.assert_allclose(size, kind @ np.asarray(TARGETS["size"]), atol=1e-6)  # tasks agree on the shares


def test_pooled_features_have_no_place_for_a_box():
    features = tf.random.stateless_uniform([6, 5], [0, 0])
    assert same(make_mixup_cutmix(0, 1.0)(features, TARGETS, WEIGHTS, [1, 2]), (features, TARGETS, WEIGHTS))
    maps = tf.random.stateless_uniform([6, 7, 7, 4], [0, 0])
    assert make_mixup_cutmix(0, 1.0)(maps, TARGETS, WEIGHTS, [1, 2])[0].dtype == tf.float32


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)])
def test_what_is_not_known_of_one_split_is_not_known_of_the_mixture(alphas):
    """A task's missing label costs nothing there, and leaves the other tasks and all gradients whole."""
    size = tf.tensor_scatter_nd_update(TARGETS["size"], [[2]], [[np.nan, np.nan]])
    _, mixed, weights = make_mixup_cutmix(*alphas)(IMAGES, {"kind": TARGETS["kind"], "size": size}, WEIGHTS, [5, 0])
    blank = np.isnan(np.asarray(mixed["size"])).all(axis=1)
    partner = np.asarray(mixed["kind"])[:, 2] > 0  # of whom row 2 is a part
    assert blank[2] and (blank[partner]).all() and not blank.all()
    assert np.isfinite(np.asarray(mixed["kind"])).all()
    joint = MultiTaskLoss([make_loss("softmax")] * 2, [6, 2], [1.0, 1.0])
    logits = tf.Variable(np.random.default_rng(1).normal(size=(6, 8)), dtype=tf.float32)
    with tf.GradientTape() as tape:
        losses = joint.split(tf.concat([mixed["kind"], mixed["size"]], axis=1), logits)
        total = tf.reduce_sum(losses * weights[:, None])
    assert (np.asarray(losses)[blank, 1] == 0).all() and (np.asarray(losses)[~blank, 1] > 0).all()
    gradient = np.asarray(tape.gradient(total, logits))
    assert np.isfinite(gradient).all() and (gradient[blank, 6:] == 0).all()
