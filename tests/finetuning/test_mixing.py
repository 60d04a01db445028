"""Which batch is mixed how, and that labels and weights follow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation import cut_mix
from tlkeras.finetuning.mixing import make_mix
from tlkeras.finetuning.objectives import mix_examples

PICTURES = tf.constant(np.random.default_rng(0).integers(0, 2, (6, 8, 8, 3)) * 250, tf.uint8)
TARGETS = {"kind": tf.eye(6), "size": tf.one_hot([0, 1, 0, 1, 0, 1], 2)}
WEIGHTS = tf.constant([1.0, 2, 0.5, 1, 0, 3])


def same(left, right) -> bool:
    pairs = zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_one_of_both_is_drawn_by_the_seed():
    seeds = [[3, step] for step in range(30)]
    both = [make_mix(0.4, 1.0)(PICTURES, TARGETS, WEIGHTS, seed) for seed in seeds]
    assert same(both, [make_mix(0.4, 1.0)(PICTURES, TARGETS, WEIGHTS, seed) for seed in seeds])
    boxed = sum(np.isin(np.asarray(pictures), np.asarray(PICTURES)).all() for pictures, _, _ in both)
    assert 7 < boxed < 23
    assert make_mix(0, 0) is None
    assert same(
        make_mix(0.4, 0)(PICTURES, TARGETS, WEIGHTS, [1, 2]), mix_examples(PICTURES, TARGETS, WEIGHTS, [1, 2], 0.4)
    )
    assert same(make_mix(0, 1.0)(PICTURES, TARGETS, WEIGHTS, [1, 2]), cut_mix(PICTURES, TARGETS, WEIGHTS, [1, 2], 1.0))


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_labels_of_all_tasks_follow(alphas):
    mixed, targets, weights = make_mix(*alphas)(PICTURES, TARGETS, WEIGHTS, [5, 0])
    assert mixed.dtype == tf.uint8 and mixed.shape == PICTURES.shape
    counted = np.asarray(weights) > 0
    for dense in targets.values():
        np.testing.assert_allclose(np.asarray(dense)[counted].sum(axis=1), 1, atol=1e-6)
    kind, size = np.asarray(targets["kind"])[counted], np.asarray(targets["size"])[counted]
    np.testing.assert_allclose(size, kind @ np.asarray(TARGETS["size"]), atol=1e-6)  # tasks agree on the shares


def test_pooled_features_have_no_place_for_a_box():
    features = tf.random.stateless_uniform([6, 5], [0, 0])
    assert same(make_mix(0, 1.0)(features, TARGETS, WEIGHTS, [1, 2]), (features, TARGETS, WEIGHTS))
    maps = tf.random.stateless_uniform([6, 7, 7, 4], [0, 0])
    assert make_mix(0, 1.0)(maps, TARGETS, WEIGHTS, [1, 2])[0].dtype == tf.float32
