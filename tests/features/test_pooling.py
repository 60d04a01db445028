"""Poolings against numbers worked out by hand and an independent convolution."""

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.errors import TlkerasError
from tlkeras.features.pooling import POOLINGS, CompactBilinear, GeneralizedMean, draw_sketch, pool


def make_net():
    entry = keras.Input((4, 4, 3), dtype="uint8")
    maps = layers.Rescaling(1.0)(entry)
    return keras.Model([entry], [maps, layers.Flatten()(maps)])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_by_name(pooling):
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    pooled, flat = pool(make_net(), pooling)([image])
    average, largest = [22.5, 23.5, 24.5], [45.0, 46.0, 47.0]
    cubes = np.maximum(image.reshape(16, 3), 1e-6) ** 3.0
    expected = {"average": [average], "max": [largest], "both": [average + largest], "none": image}
    expected["gem"] = [np.cbrt(cubes.mean(axis=0))]
    if pooling in expected:
        np.testing.assert_allclose(pooled, expected[pooling], rtol=1e-5)
    else:
        assert pooled.shape == (1, 1024)
    assert flat.shape == (1, 48)


def test_unknown_pooling():
    with pytest.raises(TlkerasError, match=r"Unknown pooling 'averag'. Did you mean 'average'"):
        pool(make_net(), "averag")


def test_generalized_mean_by_hand():
    """Of 1 and 7 the quadratic mean is 5."""
    assert float(GeneralizedMean(2.0)(np.array([[[[1.0], [7.0]]]], "float32"))[0, 0]) == pytest.approx(5, rel=1e-5)


def test_compact_bilinear_is_the_convolution_of_two_sketches():
    random = np.random.default_rng(1)
    maps = random.normal(size=(2, 3, 2, 5)).astype("float32")
    drawn = np.random.default_rng(7)
    first, second = draw_sketch(5, 16, drawn), draw_sketch(5, 16, drawn)
    assert (np.abs(first).sum(axis=1) == 1).all()
    expected = np.zeros((2, 16))
    for number, image in enumerate(maps.reshape(2, 6, 5)):
        for position in image:
            a, b = position @ first, position @ second
            for i in range(16):
                for j in range(16):
                    expected[number, (i + j) % 16] += a[i] * b[j]
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(CompactBilinear(16, seed=7)(maps), expected, atol=1e-3)


def test_compact_bilinear_comes_near_the_products_of_all_pairs():
    """Before the root, inner products of sketches estimate squared inner products of positions."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 6))
    estimates = []
    for seed in range(200):
        drawn = np.random.default_rng(seed)
        first, second = draw_sketch(6, 64, drawn), draw_sketch(6, 64, drawn)
        of_x, of_y = (np.fft.rfft(v @ first) * np.fft.rfft(v @ second) for v in (x, y))
        estimates.append(np.fft.irfft(of_x, 64) @ np.fft.irfft(of_y, 64))
    assert np.mean(estimates) == pytest.approx((x @ y) ** 2, abs=3 * np.std(estimates) / np.sqrt(200))


def test_poolings_survive_saving(tmp_path):
    entry = keras.Input((4, 4, 3))
    joined = [CompactBilinear(32, seed=3)(entry), GeneralizedMean(2.0)(entry)]
    model = keras.Model(entry, layers.Concatenate()(joined))
    model.save(tmp_path / "m.keras")
    maps = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again(maps), model(maps), atol=1e-6)
