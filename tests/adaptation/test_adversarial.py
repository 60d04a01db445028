"""Deep adaptation: losses by hand, gradients by differences, and against broken variants of itself."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.adaptation.adversarial import WEIGHTS, Adaptation, AdaptedHead
from tlkeras.adaptation.losses import (
    coral_loss,
    gradient_reversal,
    mcc_loss,
    measure_a_distance,
    mmd_loss,
    ramp,
    weigh_by_certainty,
)
from tlkeras.adaptation.penalties import DomainAdaptationLoss, DomainDiscrepancy
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
    return AdaptedHead(Adaptation(**{**SHORT, **options})).fit(Xs, ys, Xt)


def test_reversal_by_differences():
    x, step = np.array([0.3, -0.7]), 1e-3
    weights = tf.constant([2.0, -5.0])

    def loss(values):
        return float(tf.reduce_sum(weights * tf.constant(values, tf.float32) ** 2))

    slopes = [(loss(x + step * unit) - loss(x - step * unit)) / (2 * step) for unit in np.eye(2)]
    tensor = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = tf.reduce_sum(weights * gradient_reversal(tensor, 0.5) ** 2)
    np.testing.assert_allclose(tape.gradient(value, tensor), -0.5 * np.array(slopes), rtol=1e-3)
    assert float(value) == pytest.approx(loss(x), rel=1e-6)


def test_losses_by_hand():
    one, two = tf.constant([[0.0, 0.0], [2.0, 0.0]]), tf.constant([[0.0, 1.0], [0.0, 3.0]])
    # covariances diag(2, 0) and diag(0, 2): squares 4 + 4, over 4 * 2^2
    assert float(coral_loss(one, two)) == pytest.approx(0.5)
    assert float(mmd_loss(one, one)) == pytest.approx(0, abs=1e-6)
    left, right = tf.constant([[0.0], [0.0]]), tf.constant([[2.0], [2.0]])
    # mean squared distance 2; kernels exp(-4 / (4 a)), twice 1 within, so 2 (5 - sum)
    expected = 2 * sum(1 - np.exp(-1 / a) for a in (0.125, 0.25, 0.5, 1, 2))
    assert float(mmd_loss(left, right)) == pytest.approx(expected, rel=1e-5)
    sure = tf.constant([[100.0, 0.0], [0.0, 100.0]])
    assert float(mcc_loss(sure)) == pytest.approx(0, abs=1e-6)
    assert float(mcc_loss(tf.zeros((4, 2)))) == pytest.approx(0.5)  # half of each class goes to the other
    # entropies 0 and log 2: weights 2 and 1.5, divided by 1.75
    weights = weigh_by_certainty(tf.constant([[1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(weights, [2 / 1.75, 1.5 / 1.75], rtol=1e-5)
    np.testing.assert_allclose([ramp(0.0), ramp(0.5)], [0, 0.98661], atol=1e-5)


def test_a_distance_of_domains():
    Xs, _, Xt, _ = draw_domains()
    assert measure_a_distance(Xs, Xs) < 0.5
    assert measure_a_distance(Xs, Xt) > 1.0
    assert measure_a_distance(Xs, Xs + 100) == pytest.approx(2)


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
    """What one public implementation lacks: without it an encoder stays as it was drawn."""
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
    if method == "coral":  # it looks at covariances alone
        assert np.isfinite(gaps).all()
    else:
        assert gaps[1] < gaps[0]


def test_many_products_are_mixed(monkeypatch):
    monkeypatch.setattr("tlkeras.adaptation.penalties._MOST_PRODUCTS", 10)
    assert fit.__wrapped__(method="cdan")._discrepancy.judge.input_shape == (None, 10)
    assert fit.__wrapped__(method="cdan", width=4)._discrepancy.judge.input_shape == (None, 8)


@pytest.mark.parametrize("method", ["none", "cdan"])
def test_layers_answer_as_the_head_and_know_no_judge(method):
    head, Xt = fit(method=method), draw_domains()[2]
    layers = head.to_layers()
    assert not any("judge" in layer.name or "verdict" in layer.name for layer in layers)
    model = keras.Sequential([keras.Input((4,)), *layers])
    np.testing.assert_allclose(model(Xt), head.predict_proba(Xt), atol=1e-6)


def test_what_cannot_be_adapted_is_told():
    Xs, ys, Xt, _ = draw_domains()
    with pytest.raises(RecipeError, match="Did you mean 'dann'"):
        AdaptedHead(Adaptation(method="dan"))
    with pytest.raises(DataError, match="two classes or more"):
        AdaptedHead().fit(Xs, np.zeros_like(ys), Xt)
    with pytest.raises(DataError, match="two rows or more"):
        AdaptedHead().fit(Xs, ys, Xt[:0])


@pytest.mark.parametrize("method", ["dann", "cdan", "mmd", "coral", "mcc"])
def test_in_a_batch_of_both_rows_without_weight_are_the_targets(method):
    """What counts is what the parts say; at the start it moves nothing, but a judge learns from the first step."""
    random = np.random.default_rng(0)
    features, logits = (tf.Variable(random.normal(size=(8, k)), dtype=tf.float32) for k in (5, 3))
    done = tf.Variable(0.0)
    discrepancy = DomainDiscrepancy(method, 5, 2, dropout=0.0, seeds=iter(range(9)))
    transfer = DomainAdaptationLoss(discrepancy, 0.5, lambda: done)
    weights = tf.constant([2.0, 0.0] * 4)

    def measure():
        with tf.GradientTape() as tape:
            term = transfer({"features": features, "logits": logits, "weights": weights})
        moved = [features, logits, *[variable.value for variable in transfer.variables if variable.trainable]]
        return float(term), tape.gradient(term, moved, unconnected_gradients="zero")

    _, (of_features, of_logits, *of_judge) = measure()
    assert not np.any(of_features) and not np.any(of_logits)
    assert bool(of_judge) == (method in ("dann", "cdan")) and all(np.any(gradient) for gradient in of_judge[:1])
    done.assign(1.0)
    source, target = ((features[start::2], logits[start::2, :2]) for start in (0, 1))
    strength = 0.5 * ramp(1.0)
    assert measure()[0] == pytest.approx(float(discrepancy.weigh(source, target, strength)[0]), rel=1e-5)
    assert np.any(measure()[1][1 if method == "mcc" else 0])
