"""What keeps the source: terms and gradients worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tlkeras.config.schema.finetuning import (
    BatchSpectralShrinkageConfig,
    L2SPConfig,
    LearningWithoutForgettingConfig,
    NoRegularizerConfig,
)
from tlkeras.errors import TlkerasError
from tlkeras.finetuning.regularization import collect_weights, make_regularizer

CONFIGS = {"l2sp": L2SPConfig, "bss": BatchSpectralShrinkageConfig, "lwf": LearningWithoutForgettingConfig}

BATCH = {
    "features": tf.constant([[3.0, 0.0], [0.0, 4.0]]),
    "source_logits": tf.math.log([[0.5, 0.5], [0.9, 0.1]]),
    "recorded_logits": tf.math.log([[0.8, 0.2], [0.9, 0.1]]),
}


def make(kind: str, **options):
    return make_regularizer(CONFIGS[kind](**options))


def make_dense(name: str, kernel: list, bias: list, trainable: bool = True) -> layers.Dense:
    dense = layers.Dense(len(bias), name=name)
    dense.build((None, len(kernel)))
    dense.set_weights([np.array(kernel), np.array(bias)])
    dense.trainable = trainable
    return dense


def move(layer: layers.Layer, by: float) -> None:
    layer.set_weights([weight + by for weight in layer.get_weights()])


# L2-SP


def test_source_penalty_by_hand():
    backbone, head = make_dense("body", [[1.0, 2.0]], [3.0, 4.0]), make_dense("head", [[1.0], [2.0]], [5.0])
    penalty = make("l2sp", alpha=0.1, beta=0.01)
    penalty.build([backbone], [head])
    assert float(penalty({})) == pytest.approx(0.01 / 2 * (1 + 4 + 25))
    move(backbone, 0.5)
    move(head, 1.0)
    assert float(penalty({})) == pytest.approx(0.1 / 2 * 4 * 0.25 + 0.01 / 2 * (4 + 9 + 36))
    with tf.GradientTape() as tape:
        value = tf.function(penalty)({})
    pulls = tape.gradient(value, [backbone.kernel.value, head.bias.value])
    assert pulls[0].numpy() == pytest.approx(np.array([[0.05, 0.05]]))
    assert pulls[1].numpy() == pytest.approx([0.06])


def test_source_penalty_leaves_out_what_is_frozen():
    body, frozen = make_dense("body", [[1.0]], [1.0]), make_dense("frozen", [[1.0]], [1.0], trainable=False)
    head = make_dense("head", [[7.0]], [7.0], trainable=False)
    penalty = make("l2sp", alpha=1.0)
    penalty.build([body, frozen], [head])
    move(body, 1.0)
    move(frozen, 1.0)
    assert float(penalty({})) == pytest.approx(1.0)
    frozen.trainable = True  # as at the start of a later stage: measured from the source and not from here
    assert float(penalty({})) == pytest.approx(2.0)
    body.trainable = frozen.trainable = False
    assert float(penalty({})) == 0.0


@pytest.mark.parametrize(("batch_norm", "expected"), [(False, 0.5), (True, 1.5)])
def test_batch_norm_is_held_by_option(batch_norm, expected):
    inputs = keras.Input((1,))
    inner = keras.Sequential([keras.Input((1,)), layers.BatchNormalization(name="norm")], name="inner")
    backbone = keras.Model(inputs, layers.Dense(1, use_bias=False)(inner(inputs)))
    penalty = make("l2sp", alpha=1.0, batch_norm=batch_norm)
    penalty.build([backbone], [])
    for layer in (backbone, inner):
        assert layer.trainable
    move(backbone, 1.0)  # kernel, gamma, beta and both statistics
    assert float(penalty({})) == pytest.approx(expected)


def test_weights_are_collected_once():
    norm, dense = layers.BatchNormalization(), make_dense("dense", [[1.0]], [1.0])
    norm.build((None, 1))
    model = keras.Sequential([keras.Input((1,)), dense, norm, layers.LayerNormalization(), layers.Dropout(0.5)])
    names = [weight.name for weight in collect_weights([model, dense])]
    assert names == ["kernel", "bias", "gamma", "beta"]  # these of layer norm
    kept = collect_weights([model], batch_norm=True)
    assert [weight.name for weight in kept] == ["kernel", "bias", "gamma", "beta", "gamma", "beta"]
    assert len({id(weight) for weight in kept}) == 6


def test_source_penalty_is_float32_under_mixed_precision():
    dense = layers.Dense(1, dtype="mixed_float16")
    dense.build((None, 1))
    dense.set_weights([np.array([[1.0]]), np.array([0.0])])
    penalty = make("l2sp", alpha=2.0, beta=0.0)
    penalty.build([dense], [])
    dense.set_weights([np.array([[1.0 + 2**-12]]), np.array([0.0])])  # float16 could not tell it from 1
    assert penalty({}).dtype == tf.float32
    assert float(penalty({})) == pytest.approx(2.0**-24)


def test_source_penalty_must_be_built():
    with pytest.raises(TlkerasError, match=r"does not know the source's weights. Call build before training."):
        make("l2sp")({})


# Batch spectral shrinkage


@pytest.mark.parametrize(("smallest", "expected"), [(1, 9.0), (2, 25.0), (5, 25.0)])
@pytest.mark.parametrize("extra", [(0, 0), (0, 3), (3, 0)])
def test_spectral_shrinkage_by_hand(smallest, expected, extra):
    """Singular values 3 and 4; rows or columns of zeros add none, there are as many as the shorter side is long."""
    features = np.pad(BATCH["features"], [(0, extra[0]), (0, extra[1])])
    penalty = make("bss", eta=0.1, smallest=smallest)
    assert float(penalty({"features": features})) == pytest.approx(0.1 * expected)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("smallest", [1, 3])
def test_spectral_gradient_agrees_with_finite_differences(shape, smallest):
    features = np.random.default_rng(0).normal(size=shape)

    def shrink(values: np.ndarray) -> float:
        return (np.linalg.svd(values, compute_uv=False)[-smallest:] ** 2).sum()

    numeric = np.empty(shape)
    for place in np.ndindex(shape):
        step = np.zeros(shape)
        step[place] = 1e-5
        numeric[place] = (shrink(features + step) - shrink(features - step)) / 2e-5
    value, gradient = differentiate(make("bss", eta=1.0, smallest=smallest), features)
    assert value == pytest.approx(shrink(features), rel=1e-4)
    assert np.allclose(gradient, numeric, atol=1e-4)


def differentiate(penalty, features) -> tuple[float, np.ndarray]:
    features = tf.constant(features, tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def compute(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            value = penalty({"features": features})
        return value, tape.gradient(value, features)

    value, gradient = compute(features)
    return float(value), gradient.numpy()


def test_spectral_gradient_is_stable():
    """Equal singular values divide by zero in the gradient of a decomposition; large ones hide small ones."""
    value, gradient = differentiate(make("bss", eta=1.0), np.eye(4))
    assert value == pytest.approx(1.0) and np.linalg.norm(gradient) == pytest.approx(2.0)
    value, gradient = differentiate(make("bss", eta=1.0), np.zeros((4, 6)))
    assert value == 0.0 and np.array_equal(gradient, np.zeros((4, 6)))
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(6, 6)))[0] for _ in range(2))
    _, gradient = differentiate(make("bss", eta=1.0), left)  # equal but for rounding
    assert np.linalg.norm(gradient) == pytest.approx(2.0, rel=1e-4)
    value, _ = differentiate(make("bss", eta=1.0), left @ np.diag([1e3, 100, 10, 1, 0.1, 0.01]) @ right)
    assert value == pytest.approx(0.01**2, rel=0.02)


# Learning without forgetting


def test_distillation_by_hand():
    """At temperature 2, (0.8, 0.2) becomes (2/3, 1/3); even ones stay even; what has not changed costs nothing."""
    divergence = 2 / 3 * np.log((2 / 3) / 0.5) + 1 / 3 * np.log((1 / 3) / 0.5)
    assert float(make("lwf")(BATCH)) == pytest.approx(4.0 * divergence / 2)
    hard = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert float(make("lwf", weight=1.0, temperature=1.0)(BATCH)) == pytest.approx(hard / 2)


def test_distillation_has_the_gradient_of_the_cross_entropy():
    logits, recorded = tf.constant([[1.0, 2.0, -1.0]]), tf.constant([[0.0, 2.0, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = make("lwf")({"source_logits": logits, "recorded_logits": recorded})
    expected = 4.0 / 2.0 * (tf.nn.softmax(logits / 2) - tf.nn.softmax(recorded / 2))
    assert np.allclose(tape.gradient(value, logits), expected, atol=1e-6)


# All of them


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_regularizer_gives_a_float32_scalar(kind):
    regularizer = make(kind)
    regularizer.build([make_dense("body", [[1.0]], [1.0])], [make_dense("head", [[1.0]], [1.0])])
    outputs = {name: tf.cast(values, tf.float16) for name, values in BATCH.items()}
    value = tf.function(lambda: regularizer(outputs))()
    assert value.dtype == tf.float32 and value.shape == ()
    assert float(value) > 0


def test_no_regularizer():
    assert make_regularizer(NoRegularizerConfig()) is None
