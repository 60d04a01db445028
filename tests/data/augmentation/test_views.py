"""Numbered views, the choice of views per epoch, and CutMix."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation.policies import POLICIES, make_policy
from tlkeras.data.augmentation.views import (
    IDENTITY_VIEW,
    AugmentedView,
    choose_views,
    cutmix,
    digest_to_seed,
    draw_views,
    make_all_views_fn,
    make_view_fn,
    mix_labels,
    number_views,
)

DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
KEYS = digest_to_seed(DIGESTS)


def test_keys_are_the_first_half_of_the_digest():
    assert KEYS.shape == (200, 2) and KEYS.dtype == np.int64
    whole = bytes.fromhex(DIGESTS[3])
    assert KEYS[3].tolist() == [int.from_bytes(whole[at : at + 8], "little", signed=True) for at in (0, 8)]
    assert digest_to_seed([]).shape == (0, 2)


def test_a_view_is_a_function_of_policy_seed_image_and_number(colours):
    view = AugmentedView(make_policy("trivial_augment"), seed=3, number=5)
    first = view.apply(tf.constant(colours), tf.constant(KEYS[0])).numpy()
    assert np.array_equal(first, view.apply(tf.constant(colours), tf.constant(KEYS[0])))
    others = {
        "seed": (AugmentedView(view.policy, 4, 5), KEYS[0]),
        "number": (AugmentedView(view.policy, 3, 6), KEYS[0]),
        "image": (view, KEYS[1]),
        "policy": (AugmentedView(make_policy("standard"), 3, 5), KEYS[0]),
    }
    for name, (other, key) in others.items():
        assert not np.array_equal(first, other.apply(tf.constant(colours), tf.constant(key))), name


def test_views_stay_the_same_for_ever(colours):
    """Fixed numbers: if these change, raise `policies.VERSION`, or caches will mix old pixels with new ones."""
    policy = make_policy([{"posterize": 2}, {"solarize": 60}, {"invert": 0.5}])  # no rounding that machines differ in
    views = draw_views(colours[None], KEYS[:1], number_views(policy, 6, seed=1))
    assert hashlib.sha256(views.tobytes()).hexdigest()[:16] == "2bb00846d4813046"


def test_facts_identify_the_view():
    assert (
        IDENTITY_VIEW.facts()
        == {}
        == AugmentedView(make_policy("flip"), 9, 0).facts()
        == AugmentedView(make_policy("dihedral"), 2, 8).facts()
    )
    flipped = AugmentedView(make_policy("flip"), seed=1, number=1)
    assert (
        flipped.facts()
        == AugmentedView(make_policy("dihedral"), seed=2, number=1).facts()
        == {"view": {"orientation": 1}}
    )
    drawn = [
        AugmentedView(make_policy("light", fill=fill), seed, number)
        for fill in ("reflect", "nearest")
        for seed in (0, 1)
        for number in (0, 1)
    ]
    assert len({str(view.facts()) for view in drawn}) == 8


def test_numbered_views():
    assert [view.number for view in number_views(make_policy("light"), 3, seed=4)] == [0, 1, 2]
    assert number_views(make_policy("light"), 3, seed=4)[2] == AugmentedView(make_policy("light"), 4, 2)
    assert len(number_views(make_policy("dihedral"), 100)) == 8 and len(number_views(make_policy("none"), 5)) == 1


def test_drawn_views_follow_the_epoch():
    policy = make_policy("light")
    assert choose_views(policy, 4, KEYS[:3], epoch=6).tolist() == [2, 2, 2]
    assert choose_views(policy, None, KEYS[:3], epoch=6).tolist() == [6, 6, 6]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_orientations_are_mixed_and_all_used(count):
    policy = make_policy("dihedral")
    shown = np.array([choose_views(policy, count, KEYS, epoch) for epoch in range(2 * count)])
    assert np.array_equal(np.sort(shown[:count], axis=0), np.arange(count)[:, None].repeat(200, axis=1))
    assert np.array_equal(shown[:count], shown[count:])
    assert np.bincount(shown[0], minlength=count).min() > 100 / count
    assert np.array_equal(choose_views(policy, count, KEYS[::-1], 1), shown[1 % count][::-1])
    assert (count == 1) == np.array_equal(shown[0], choose_views(policy, count, KEYS, 0, seed=1))
    assert count < 8 or np.array_equal(shown[0], choose_views(policy, None, KEYS, 0))


@pytest.mark.parametrize("name", POLICIES)
def test_stream_and_view_agree(name, colours):
    policy = make_policy(name)
    numbers = np.arange(200) % 5
    one = tf.function(make_view_fn(policy, KEYS, numbers, seed=2), autograph=False)
    for index in (0, 13, 199):
        expected = AugmentedView(policy, 2, int(numbers[index])).apply(tf.constant(colours), tf.constant(KEYS[index]))
        assert np.array_equal(one(tf.constant(colours), tf.constant(index)), expected)


def test_all_views_of_an_image(colours):
    drawn, turned = make_policy("standard"), make_policy("dihedral")
    views = [IDENTITY_VIEW, *number_views(drawn, 3, seed=1), AugmentedView(turned, 0, 6), AugmentedView(drawn, 2, 0)]
    shown = tf.function(make_all_views_fn(views, KEYS), autograph=False)(tf.constant(colours), tf.constant(7)).numpy()
    assert shown.shape == (6, 32, 32, 3) and np.array_equal(shown[0], colours)
    for view, seen in zip(views, shown, strict=True):
        assert np.array_equal(seen, view.apply(tf.constant(colours), tf.constant(KEYS[7])))
    sheet = draw_views(np.stack([colours[::-1], colours]), KEYS[[3, 7]], views)
    assert np.array_equal(sheet[1], shown) and not np.array_equal(sheet[0], shown)


def test_labels_mixed_by_hand():
    """Share 3/4 of weight 1 and class 0 with 1/4 of weight 3 and class 1: as much of one as of the other."""
    targets, weights = tf.eye(2), tf.constant([1.0, 3.0])
    mixed, total = mix_labels({"a": targets}, weights, tf.constant([1, 0]), tf.constant([0.75, 1.0]))
    np.testing.assert_allclose(total, [1.5, 3.0])
    np.testing.assert_allclose(mixed["a"], [[0.5, 0.5], [0.0, 1.0]])
    nothing, total = mix_labels(targets, tf.zeros(2), tf.constant([1, 0]), tf.constant([0.5, 0.5]))
    assert not np.any(nothing) and not np.any(total)


def test_mixed_labels_mix_the_loss():
    random = np.random.default_rng(0)
    targets = tf.constant(random.dirichlet([1, 1, 1], 8), tf.float32)
    weights, own = (tf.constant(random.random(8), tf.float32) for _ in range(2))
    partners = tf.constant(random.permutation(8))
    logs = tf.math.log(tf.constant(random.dirichlet([1, 1, 1], 8), tf.float32))
    mixed, total = mix_labels(targets, weights, partners, own)

    def loss(target: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        return -weight * tf.reduce_sum(target * logs, axis=1)

    expected = own * loss(targets, weights) + (1 - own) * loss(
        tf.gather(targets, partners), tf.gather(weights, partners)
    )
    np.testing.assert_allclose(loss(mixed, total), expected, rtol=1e-5)


def test_cutmix_labels_follow_the_visible_area():
    images = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None, None], (64, 20, 30, 3))
    targets, weights = tf.eye(64), tf.ones(64)
    run = tf.function(cutmix, autograph=False)
    mixed, labels, total = run(tf.constant(images), targets, weights, tf.constant([1, 2]))
    assert mixed.dtype == tf.uint8 and mixed.shape == (64, 20, 30, 3)
    seen = np.stack([np.bincount(image[..., 0].ravel(), minlength=64) for image in mixed.numpy()]) / 600
    np.testing.assert_allclose(labels, seen, atol=1e-6)
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    own = np.diag(seen)
    assert 0.5 < own.mean() < 0.8 and np.unique(own).size > 30  # half the area, less what falls outside
    for index in np.flatnonzero(own < 1):
        rows, columns = np.nonzero(mixed[index, ..., 0].numpy() != index)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one box
    again = run(tf.constant(images), targets, weights, tf.constant([1, 2]))[0]
    other = run(tf.constant(images), targets, weights, tf.constant([1, 3]))[0]
    assert np.array_equal(mixed, again) and not np.array_equal(mixed, other)
