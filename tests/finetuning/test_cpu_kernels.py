"""Cheaper operations must give what the layers' own give: values, gradients, and nothing left behind."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tlkeras.backbones.graph import pass_on
from tlkeras.finetuning.freezing import unfreeze
from tlkeras.finetuning.network import computing_in, use_fused_cpu_ops


def make_network(stride: int = 1, padding: str = "same", multiplier: int = 1) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((13, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", bias_initializer="random_normal")(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(5, stride, padding, depth_multiplier=multiplier, use_bias=False)(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.SeparableConv2D(6, 3, padding="same")(x)
    x = layers.BatchNormalization(center=False)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2.0, weight.shape) for weight in layer.get_weights()])
    return model


def compute(model: keras.Model, short: bool, training: bool = True) -> list[np.ndarray]:
    """Return what the model gives for two images, and the gradients of its variables."""
    images = np.random.default_rng(1).normal(size=(2, 13, 12, 3)).astype(np.float32)

    @tf.function(jit_compile=False)
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            if short:
                with use_fused_cpu_ops(model, training):
                    outputs = model(images, training=training)
            else:
                outputs = model(images, training=training)
            loss = tf.reduce_sum(outputs**2)
        return [outputs, *tape.gradient(loss, [variable.value for variable in model.trainable_variables])]

    return [value.numpy() for value in step()]


@pytest.mark.parametrize(
    ("stride", "padding", "multiplier", "batch_norm"),
    [(1, "same", 1, "frozen"), (2, "same", 2, "affine"), (1, "valid", 2, "frozen"), (2, "valid", 1, "affine")],
)
def test_values_and_gradients_are_those_of_the_layers(stride, padding, multiplier, batch_norm):
    model = make_network(stride, padding, multiplier)
    unfreeze(model.layers, batch_norm)

    own, short = compute(model, short=False), compute(model, short=True)

    assert len(own) == len(short) == 1 + len(model.trainable_variables) > 5
    for one, other in zip(own, short, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * abs(one).max())


def test_batch_norm_that_trains_keeps_its_own_operation():
    one, other, before = make_network(), make_network(), make_network().get_weights()

    own, short = compute(one, short=False), compute(other, short=True)

    for value, same in zip(own, short, strict=True):
        np.testing.assert_allclose(value, same, rtol=1e-4, atol=1e-5 * abs(value).max())
    moved = 0
    for value, same, old in zip(one.get_weights(), other.get_weights(), before, strict=True):
        np.testing.assert_allclose(value, same, rtol=1e-6)
        moved += not np.array_equal(value, old)
    assert moved == 6  # mean and variance of three


def test_they_are_taken_only_within_and_leave_nothing():
    model = make_network()
    unfreeze(model.layers, "frozen")
    before = [dict(vars(layer)) for layer in model.layers]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]

    with pytest.raises(InterruptedError), use_fused_cpu_ops(model, training=True):
        assert [vars(norm)["call"] for norm in norms] == [pass_on] * 3
        raise InterruptedError

    assert [dict(vars(layer)) for layer in model.layers] == before


def test_none_is_taken_in_16_bits_nor_beside_a_gpu(monkeypatch):
    model = make_network()
    unfreeze(model.layers, "frozen")
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))

    with computing_in("bfloat16", model.layers), use_fused_cpu_ops(model, training=True):
        assert vars(norm)["call"] is not pass_on
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["a GPU"])
    with use_fused_cpu_ops(model, training=True):
        assert vars(norm)["call"] is not pass_on


def test_the_gradient_of_a_wide_depthwise_kernel_has_its_padding_written_out():
    model = make_network()
    unfreeze(model.layers, "frozen")

    @tf.function(jit_compile=False)
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape, use_fused_cpu_ops(model, training=True):
            outputs = model(tf.zeros((2, 13, 12, 3)), training=True)
        return tape.gradient(outputs, [variable.value for variable in model.trainable_variables])

    operations = step.get_concrete_function().graph.get_operations()
    gradients = [op for op in operations if op.type == "DepthwiseConv2dNativeBackpropFilter"]
    assert [op.get_attr("padding") for op in gradients if op.inputs[1].op.type == "Const"].count(b"EXPLICIT") == 1
