"""Deep adaptation: against plain training and against broken variants of itself."""

from functools import cache

import keras
import numpy as np
import pytest

from tlkeras.adaptation.adversarial import WEIGHTS, AdaptationOptions, AdaptedHead
from tlkeras.errors import DataError, RecipeError

METHODS = list(WEIGHTS)
SHORT = {"width": 8, "epochs": 6, "batch_size": 32, "dropout": 0.2, "learning_rate": 0.01}


def draw_domains(seed=0, count=160):
    random = np.random.default_rng(seed)
    ys, yt = random.integers(0, 2, count), random.integers(0, 2, count)
    Xs = random.normal(size=(count, 4)) + np.outer(ys, [3.0, 0, 0, 0])
    Xt = random.normal(size=(count, 4)) + np.outer(yt, [3.0, 0, 0, 0]) + [0.0, 2.0, 0, 0]
    return Xs.astype(np.float32), ys, Xt.astype(np.float32), yt


@cache
def fit(**options):
    Xs, ys, Xt, _ = draw_domains()
    return AdaptedHead(AdaptationOptions(**{**SHORT, **options})).fit(Xs, ys, Xt)


@pytest.mark.parametrize(
    "method",
    ["dann", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in ("none", "dann"))],
)
def test_without_weight_it_is_plain_training_bit_for_bit(method):
    plain, unweighted = fit(method="none"), fit(method=method, weight=0.0)
    Xt = draw_domains()[2]
    np.testing.assert_array_equal(plain.predict_proba(Xt), unweighted.predict_proba(Xt))
    assert not np.array_equal(plain.predict_proba(Xt), fit(method=method).predict_proba(Xt))


@pytest.mark.parametrize("method", ["dann", "coral"])
def test_the_classes_gradient_reaches_the_encoder(method):
    """Missing in one public implementation: without it an encoder keeps its initial weights."""
    trained, start = fit(method=method, weight=0.0), fit(method=method, learning_rate=1e-12, weight=0.0)
    moved = np.abs(trained._encoder.get_layer("bottleneck").kernel - start._encoder.get_layer("bottleneck").kernel)
    assert float(moved.max()) > 0.05
    Xs, ys, *_ = draw_domains()
    assert (trained.predict(Xs) == ys).mean() > 0.75


@pytest.mark.parametrize("method", ["dann", "cdan", "mmd", "coral"])
def test_domains_become_alike(method):
    Xs, _, Xt, _ = draw_domains()
    gaps = []
    for chosen in ("none", method):
        head = fit(method=chosen, epochs=25, dropout=0.0)
        gap = head.encode(Xs).mean(0) - head.encode(Xt).mean(0)
        gaps.append(np.linalg.norm(gap) / head.encode(Xs).std())
    if method == "coral":  # it compares covariances alone
        assert np.isfinite(gaps).all()
    else:
        assert gaps[1] < gaps[0]


def test_deep_coral_acts_at_its_default_weight():
    """Target features are three times as wide along two of 20 columns: covariances approach, predictions move."""
    random = np.random.default_rng(0)
    ys, yt = random.integers(0, 2, 600), random.integers(0, 2, 600)
    Xs, Xt = (random.normal(size=(600, 20)) + np.outer(y, [2.0] + [0.0] * 19) for y in (ys, yt))
    Xt[:, 1:3] *= 3
    gaps, predictions = {}, {}
    for method in ("none", "coral"):
        options = AdaptationOptions(method=method, epochs=10, learning_rate=3e-3)
        head = AdaptedHead(options).fit(Xs.astype(np.float32), ys, Xt.astype(np.float32))
        of_source, of_target = (np.cov(head.encode(X).T) for X in (Xs, Xt))
        gaps[method] = ((of_source - of_target) ** 2).sum() / (of_source**2).sum()
        predictions[method] = head.predict_proba(Xt)
    assert gaps["coral"] < gaps["none"] / 2
    assert np.abs(predictions["coral"] - predictions["none"]).max() > 0.1


def test_many_products_are_mixed(monkeypatch):
    monkeypatch.setattr("tlkeras.adaptation.penalties._MOST_PRODUCTS", 10)
    assert fit.__wrapped__(method="cdan")._discrepancy.discriminator.input_shape == (None, 10)
    assert fit.__wrapped__(method="cdan", width=4)._discrepancy.discriminator.input_shape == (None, 8)


@pytest.mark.parametrize("method", ["none", "cdan"])
def test_layers_predict_as_the_head_without_the_discriminator(method):
    head, Xt = fit(method=method), draw_domains()[2]
    layers = head.to_layers()
    assert not any("discriminator" in layer.name or layer.name == "domain" for layer in layers)
    model = keras.Sequential([keras.Input((4,)), *layers])
    np.testing.assert_allclose(model(Xt), head.predict_proba(Xt), atol=1e-6)


def test_what_cannot_be_adapted_is_refused():
    Xs, ys, Xt, _ = draw_domains()
    with pytest.raises(RecipeError, match="Did you mean 'dann'"):
        AdaptedHead(AdaptationOptions(method="dan"))
    with pytest.raises(DataError, match="fewer than two classes"):
        AdaptedHead().fit(Xs, np.zeros_like(ys), Xt)
    with pytest.raises(DataError, match="two rows or more"):
        AdaptedHead().fit(Xs, ys, Xt[:0])
