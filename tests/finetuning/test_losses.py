"""Losses worked out by hand, balanced draws, and blends."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.errors import DataError, RecipeError
from tlkeras.finetuning import losses
from tlkeras.finetuning.losses import LOSSES, balanced_sampler, make_loss, mixup, one_hot, smooth, weighted_mean

EVEN = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])  # logits whose softmax is what is in the logarithm
TARGETS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def compute(kind: str, targets, logits, **options) -> np.ndarray:
    return make_loss(kind, **options)(targets, logits).numpy()


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
    weighted = compute("focal", TARGETS, EVEN, gamma=1.0, alpha=[2.0, 3.0, 1.0])
    assert weighted == pytest.approx([2 * 0.5 * np.log(2), 3 * 0.9 * np.log(10)])
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
    loss = make_loss("focal", gamma=gamma)
    gradient = differentiate(loss, TARGETS, [[60.0, 0.0, 0.0], [60.0, 0.0, 0.0]])  # surely right, surely wrong
    assert np.isfinite(gradient).all()
    assert gradient[0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert gradient[1] == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)


def test_focal_without_focus_is_the_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(5, 4), scale=3.0)
    targets = one_hot([0, 1, 2, 3, 3], 4)
    focal, softmax = make_loss("focal", gamma=0.0), make_loss("softmax")
    assert np.allclose(focal(targets, logits), softmax(targets, logits), rtol=1e-5)
    assert np.allclose(differentiate(focal, targets, logits), differentiate(softmax, targets, logits), atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_objective_fits_a_graph_and_half_precision(kind):
    loss = make_loss(kind)
    expected = loss(TARGETS, EVEN.astype(np.float16).astype(np.float32))
    signature = [tf.TensorSpec([None, 3], tf.int32), tf.TensorSpec([None, 3], tf.float16)]
    compiled = tf.function(loss.__call__, input_signature=signature)
    losses = compiled(TARGETS.astype(np.int32), EVEN.astype(np.float16))
    assert losses.dtype == tf.float32 and losses.shape == (2,)
    assert np.allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_objective_can_be_compiled_by_keras(kind):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    model.compile(loss=make_loss(kind, smoothing=0.1))
    weights = np.array([3.0, 1.0], np.float32)
    expected = weighted_mean(make_loss(kind, smoothing=0.1)(TARGETS, EVEN), weights)
    evaluated = model.evaluate(EVEN, TARGETS, sample_weight=weights, verbose=0)
    assert evaluated == pytest.approx(float(expected), rel=1e-5)


def test_the_mean_is_over_examples():
    losses = tf.constant([1.0, 2.0, 6.0])
    assert float(weighted_mean(losses)) == 3.0
    assert float(weighted_mean(losses, [1, 1, 1])) == 3.0
    assert float(weighted_mean(losses, tf.constant([0.5, 0.0, 1.0], tf.float64))) == pytest.approx(6.5 / 3)
    assert float(weighted_mean(losses, [2.0, 0.0, 0.0])) == pytest.approx(2 / 3)  # and not 1: one of three examples


def test_targets():
    hot = one_hot([2, 0, -1], 3)
    assert hot.dtype == tf.float32
    assert hot.numpy().tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert smooth(tf.constant([0.0, 1.0, 0.0, 0.0]), 0.2, 4).numpy() == pytest.approx([0.05, 0.85, 0.05, 0.05])


# What is refused


def test_refuses_an_unknown_kind():
    with pytest.raises(
        RecipeError, match=r"is one of softmax, focal, sigmoid. Received: 'focall'. Did you mean 'focal'"
    ):
        make_loss("focall")


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_refuses_too_much_smoothing(kind, smoothing):
    with pytest.raises(RecipeError, match=r"at least 0 and below 1. Received: (-0.1|1.0|nan)"):
        make_loss(kind, smoothing=smoothing)


@pytest.mark.parametrize(("option", "words"), [({"gamma": -1}, "gamma .* 0 or more"), ({"alpha": [1, 0]}, "positive")])
def test_refuses_a_focus_out_of_range(option, words):
    with pytest.raises(RecipeError, match=words):
        make_loss("focal", **option)


def test_refuses_alpha_for_other_classes():
    with pytest.raises(DataError, match="one weight per class. Received: 2 for 3 classes"):
        make_loss("focal", alpha=[1.0, 2.0])(TARGETS, EVEN)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("targets", [[0, 1], [[0], [1]], [[1.0, 0.0, 0.0]]])
def test_refuses_targets_that_would_broadcast(kind, targets):
    with pytest.raises(DataError, match=r"dense.*for logits of shape \(2, 3\). Make them .* by one_hot"):
        make_loss(kind)(np.array(targets), EVEN)


# Balanced draws

CLASSES = np.array([0] * 20 + [1] * 3 + [4] * 7)


def test_draws_every_class_equally_often():
    for epoch in range(3):
        drawn = balanced_sampler(CLASSES, 31, 5, epoch)
        assert drawn.dtype == np.int64 and drawn.shape == (31,)
        counts = np.unique(CLASSES[drawn], return_counts=True)[1]
        assert sorted(counts) == [10, 10, 11]


def test_draws_all_of_a_class_before_one_again():
    drawn = balanced_sampler(CLASSES, 30, 5, 0)
    rare = np.bincount(drawn[CLASSES[drawn] == 1])[20:]
    assert sorted(rare) == [3, 3, 4]
    assert len(set(drawn[CLASSES[drawn] == 0])) == 10
    two_epochs = np.concatenate([drawn, balanced_sampler(CLASSES, 30, 5, 1)])
    assert sorted(two_epochs[CLASSES[two_epochs] == 0]) == list(range(20))
    ten_epochs = np.concatenate([balanced_sampler(CLASSES, 31, 5, epoch) for epoch in range(10)])
    counts = np.unique(CLASSES[ten_epochs], return_counts=True)[1]
    assert sorted(counts) == [103, 103, 104]
    times = np.bincount(ten_epochs)
    for members in (slice(0, 20), slice(20, 23), slice(23, 30)):
        assert np.ptp(times[members]) <= 1


def test_the_sequence_can_be_entered_anywhere():
    members = np.array([3, 5, 8, 9, 11])
    whole = losses._continue_permuting(members, 0, 60, (7, 2))
    assert all(sorted(whole[start : start + 5]) == members.tolist() for start in range(0, 60, 5))
    for first in range(50):
        assert np.array_equal(losses._continue_permuting(members, first, 7, (7, 2)), whole[first : first + 7])


def test_a_draw_is_a_function_of_seed_and_epoch():
    first = balanced_sampler(CLASSES, 12, 5, 1)
    assert np.array_equal(first, balanced_sampler(CLASSES, 12, 5, 1))
    assert not np.array_equal(first, balanced_sampler(CLASSES, 12, 6, 1))
    assert not np.array_equal(first, balanced_sampler(CLASSES, 12, 5, 2))
    assert balanced_sampler(CLASSES, 2, -1, 0).shape == (2,)


def test_draws_stay_the_same_across_versions():
    assert balanced_sampler(np.array([0, 0, 0, 0, 1, 1]), 6, 0, 0).tolist() == [2, 0, 4, 5, 1, 5]


def test_refuses_to_draw_from_nothing():
    with pytest.raises(DataError, match="at least one example"):
        balanced_sampler(np.array([], np.int64), 4, 0, 0)


# Blends


def make_batch(count: int, dtype: str = "float32"):
    random = np.random.default_rng(1)
    inputs = tf.cast(random.uniform(0, 255, (count, 4, 4, 3)), dtype)
    return inputs, one_hot(random.integers(0, 3, count), 3), tf.constant(random.uniform(0.2, 2, count), tf.float32)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_of_a_blend_is_that_of_its_halves(kind, monkeypatch):
    share = np.array([0.9, 0.25, 0.5], np.float32)
    monkeypatch.setattr(losses, "_draw_shares", lambda count, alpha, seed: tf.constant(share))
    inputs, _, _ = make_batch(3)
    targets, weights = tf.constant([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), np.array([1.0, 2.0, 4.0])
    mixed, blended, total = mixup(inputs, targets, weights, [0, 1])
    assert total.numpy() == pytest.approx([0.9 * 1 + 0.1 * 4, 0.25 * 2 + 0.75 * 1, 0.5 * 4 + 0.5 * 2])
    assert blended[0].numpy() == pytest.approx([0.9 / 1.3, 0.0, 0.4 / 1.3])
    assert np.allclose(mixed[1], 0.25 * inputs[1] + 0.75 * inputs[0], rtol=1e-6)
    logits = np.random.default_rng(2).normal(size=(3, 3))
    loss = make_loss(kind, smoothing=0.1)
    own, other = loss(targets, logits), loss(tf.roll(targets, 1, 0), logits)
    halves = share * weights * own + (1 - share) * np.roll(weights, 1) * other
    assert np.allclose(total * loss(blended, logits), halves, rtol=1e-5)


def test_whole_numbers_are_rounded_to_the_nearest(monkeypatch):
    monkeypatch.setattr(losses, "_draw_shares", lambda count, alpha, seed: tf.constant([0.9, 0.9]))
    mixed, _, _ = mixup(np.array([[3], [10]], np.uint8), tf.eye(2), tf.ones(2), [0, 0])
    assert mixed.dtype == tf.uint8 and mixed.numpy().tolist() == [[4], [9]]  # 3.7 and 9.3


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(4, 4, 3), (5,)])
def test_a_blend_keeps_shape_and_type_in_a_graph(dtype, shape):
    inputs = tf.cast(np.random.default_rng(0).uniform(0, 255, (6, *shape)), dtype)
    _, targets, weights = make_batch(6)
    specs = [tf.TensorSpec([None, *shape], dtype), tf.TensorSpec([None, 3]), tf.TensorSpec([None])]
    mix = tf.function(mixup, input_signature=[*specs, tf.TensorSpec([2], tf.int32)])
    mixed, blended, total = mix(inputs, targets, weights, tf.constant([3, 4]))
    eager = mixup(inputs, targets, weights, [3, 4])
    assert mixed.dtype == dtype and mixed.shape == inputs.shape
    assert np.array_equal(mixed, eager[0])
    assert np.allclose(tf.reduce_sum(blended, 1), 1.0) and np.allclose(blended, eager[1])
    assert np.allclose(total, eager[2])
    low = np.minimum(inputs, np.roll(inputs, 1, 0)).astype(np.float32)
    assert (mixed.numpy().astype(np.float32) >= low - 0.5).all()


def test_a_blend_is_a_function_of_the_seed():
    batch = make_batch(8)
    first, again, other = (mixup(*batch, seed)[0].numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = losses._draw_shares(20_000, alpha, [1, 2]).numpy()
    assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)  # variance of Beta(a, a)


def test_what_counts_nothing_blends_without_a_nan():
    inputs, targets, _ = make_batch(4)
    _, blended, total = mixup(inputs, targets, tf.zeros(4), [0, 0])
    assert np.array_equal(total, np.zeros(4)) and np.array_equal(blended, np.zeros((4, 3)))


def test_refuses_a_blend_without_strength():
    with pytest.raises(RecipeError, match=r"MixUp must be positive. Received: 0."):
        mixup(*make_batch(2), [0, 0], alpha=0)
