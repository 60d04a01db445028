"""Which batch is mixed how, and that labels and weights follow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.config.schema.finetuning import FocalConfig, SigmoidConfig, SoftmaxConfig
from tlkeras.data.augmentation.views import cutmix
from tlkeras.errors import RecipeError
from tlkeras.finetuning import losses
from tlkeras.finetuning.losses import make_loss, make_mixup_cutmix, mixup_batch
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
        make_mixup_cutmix(0.4, 0)(IMAGES, TARGETS, WEIGHTS, [1, 2]), mixup_batch(IMAGES, TARGETS, WEIGHTS, [1, 2], 0.4)
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
    joint = MultiTaskLoss([make_loss(SoftmaxConfig())] * 2, [6, 2], [1.0, 1.0])
    logits = tf.Variable(np.random.default_rng(1).normal(size=(6, 8)), dtype=tf.float32)
    with tf.GradientTape() as tape:
        losses = joint.split(tf.concat([mixed["kind"], mixed["size"]], axis=1), logits)
        total = tf.reduce_sum(losses * weights[:, None])
    assert (np.asarray(losses)[blank, 1] == 0).all() and (np.asarray(losses)[~blank, 1] > 0).all()
    gradient = np.asarray(tape.gradient(total, logits))
    assert np.isfinite(gradient).all() and (gradient[blank, 6:] == 0).all()


def make_batch(count: int, dtype: str = "float32"):
    random = np.random.default_rng(1)
    inputs = tf.cast(random.uniform(0, 255, (count, 4, 4, 3)), dtype)
    return inputs, tf.one_hot(random.integers(0, 3, count), 3), tf.constant(random.uniform(0.2, 2, count), tf.float32)


@pytest.mark.parametrize("config", [SoftmaxConfig, FocalConfig, SigmoidConfig])
def test_the_loss_of_a_blend_is_that_of_its_halves(config, monkeypatch):
    share = np.array([0.9, 0.25, 0.5], np.float32)
    monkeypatch.setattr(losses, "_draw_shares", lambda count, alpha, seed: tf.constant(share))
    inputs, _, _ = make_batch(3)
    targets, weights = tf.constant([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), np.array([1.0, 2.0, 4.0])
    mixed, blended, total = mixup_batch(inputs, targets, weights, [0, 1])
    assert total.numpy() == pytest.approx([0.9 * 1 + 0.1 * 4, 0.25 * 2 + 0.75 * 1, 0.5 * 4 + 0.5 * 2])
    assert blended[0].numpy() == pytest.approx([0.9 / 1.3, 0.0, 0.4 / 1.3])
    assert np.allclose(mixed[1], 0.25 * inputs[1] + 0.75 * inputs[0], rtol=1e-6)
    logits = np.random.default_rng(2).normal(size=(3, 3))
    loss = make_loss(config(smoothing=0.1))
    own, other = loss(targets, logits), loss(tf.roll(targets, 1, 0), logits)
    halves = share * weights * own + (1 - share) * np.roll(weights, 1) * other
    assert np.allclose(total * loss(blended, logits), halves, rtol=1e-5)


def test_whole_numbers_are_rounded_to_the_nearest(monkeypatch):
    monkeypatch.setattr(losses, "_draw_shares", lambda count, alpha, seed: tf.constant([0.9, 0.9]))
    mixed, _, _ = mixup_batch(np.array([[3], [10]], np.uint8), tf.eye(2), tf.ones(2), [0, 0])
    assert mixed.dtype == tf.uint8 and mixed.numpy().tolist() == [[4], [9]]  # 3.7 and 9.3


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(4, 4, 3), (5,)])
def test_a_blend_keeps_shape_and_type_in_a_graph(dtype, shape):
    inputs = tf.cast(np.random.default_rng(0).uniform(0, 255, (6, *shape)), dtype)
    _, targets, weights = make_batch(6)
    specs = [tf.TensorSpec([None, *shape], dtype), tf.TensorSpec([None, 3]), tf.TensorSpec([None])]
    mix = tf.function(mixup_batch, input_signature=[*specs, tf.TensorSpec([2], tf.int32)])
    mixed, blended, total = mix(inputs, targets, weights, tf.constant([3, 4]))
    eager = mixup_batch(inputs, targets, weights, [3, 4])
    assert mixed.dtype == dtype and mixed.shape == inputs.shape
    assert np.array_equal(mixed, eager[0])
    assert np.allclose(tf.reduce_sum(blended, 1), 1.0) and np.allclose(blended, eager[1])
    assert np.allclose(total, eager[2])
    low = np.minimum(inputs, np.roll(inputs, 1, 0)).astype(np.float32)
    assert (mixed.numpy().astype(np.float32) >= low - 0.5).all()


def test_a_blend_is_a_function_of_the_seed():
    batch = make_batch(8)
    first, again, other = (mixup_batch(*batch, seed)[0].numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = losses._draw_shares(20_000, alpha, [1, 2]).numpy()
    assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)  # variance of Beta(a, a)


def test_what_counts_nothing_blends_without_a_nan():
    inputs, targets, _ = make_batch(4)
    _, blended, total = mixup_batch(inputs, targets, tf.zeros(4), [0, 0])
    assert np.array_equal(total, np.zeros(4)) and np.array_equal(blended, np.zeros((4, 3)))


def test_refuses_a_blend_without_strength():
    with pytest.raises(RecipeError, match=r"alpha of MixUp is not positive. Received: 0."):
        mixup_batch(*make_batch(2), [0, 0], alpha=0)
