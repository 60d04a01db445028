"""Hashes of thumbnails: how turning shows in them, and that searching finds what comparing all would find."""

from __future__ import annotations

import numpy as np
import pytest

from tlkeras.data.quality.near_duplicates import (
    ORIENTATIONS,
    RADIUS,
    HashIndex,
    _transform,
    hash_thumbnails,
    search_all,
)


def draw(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images, uint8 [count, 32, 32], all different."""
    coarse = np.random.default_rng(seed).normal(size=(count, 8, 8))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)
    smooth = (smooth + np.roll(smooth, 2, axis=1) + np.roll(smooth, 2, axis=2)) * 25 + 128
    return np.clip(smooth, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("way", ORIENTATIONS, ids=str)
def test_turned_images_have_turned_spectra(way):
    images = draw(3)
    expected = _transform(way.turn(images))
    np.testing.assert_allclose(way.turn_spectra(_transform(images)), expected, atol=1e-6)


def test_hashes_of_a_turned_set_are_the_columns_of_its_orientations():
    images = draw(50)
    hashes = hash_thumbnails(images)
    assert hashes.shape == (len(ORIENTATIONS), 50) and hashes.dtype == np.uint64
    assert len(set(hashes[0].tolist())) == 50
    noisy = np.clip(images + np.random.default_rng(1).normal(0, 3, images.shape), 0, 255).astype(np.uint8)
    near = np.bitwise_count(hash_thumbnails(np.concatenate([images, noisy]))[0])
    assert near.shape == (100,)


def test_search_finds_what_comparing_all_finds():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 3000, dtype=np.uint64)
    for row in range(1000, 2000):  # as many bits away as are still near, and one more
        flipped = random.choice(64, RADIUS + row % 2, replace=False)
        hashes[row] = hashes[row - 1000] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64))
    pairs = np.concatenate([np.stack(found, axis=1) for found in HashIndex(hashes).search(hashes)])
    found = {(left, right) for left, right in pairs.tolist() if left < right}
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    left, right = np.nonzero(np.triu(distances <= RADIUS, 1))
    assert found == set(zip(left.tolist(), right.tolist(), strict=True)) and len(found) >= 500


def test_all_that_correlate_are_found():
    images = draw(150)
    images[100:] = np.clip(images[:50] + np.random.default_rng(1).normal(0, 12, (50, 32, 32)), 0, 255)
    rows = images.reshape(150, -1) - images.reshape(150, -1).mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = set(zip(*np.nonzero(rows @ rows.T >= 0.9), strict=True))
    upright = [pair for way, *found in search_all(images, 0.9) if not any(way) for pair in zip(*found, strict=True)]
    assert wanted <= set(upright) and len(wanted) >= 230
    turned = draw(20)
    turned[10:] = ORIENTATIONS[-1].turn(turned[:10])
    found = {
        pair
        for way, *pairs in search_all(turned, 0.999)
        if way == ORIENTATIONS[-1]
        for pair in zip(*pairs, strict=True)
    }
    assert {(row, row + 10) for row in range(10)} <= found


def test_equal_hashes_do_not_make_all_pairs():
    hashes = np.zeros(2000, np.uint64)
    assert sum(len(rows) for rows, _ in HashIndex(hashes).search(hashes)) <= 2000 * 256
