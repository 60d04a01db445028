"""Freezing and unfreezing layers, also those that own weights besides their inner layers."""

import keras

from tlkeras.finetuning.freezing import freeze, unfreeze


class Gated(keras.layers.Layer):
    """A layer with a weight of its own, and a batch norm and a dropout within."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(), name="gate")
        self.norm, self.drop = keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)
        self.norm.build(shape)
        self.built = True

    def call(self, inputs, training=None):
        return self.drop(self.norm(inputs, training=training), training=training) * self.gate


def make_gated():
    layer = Gated()
    layer.build((None, 4))
    return layer


def test_weights_beside_inner_layers_are_frozen_too():
    layer = make_gated()
    freeze([layer])
    assert layer.trainable_variables == []
    inputs = keras.ops.ones((64, 4))
    assert keras.ops.all(layer(inputs, training=True) == layer(inputs, training=False))


def test_batch_norm_within_a_layer_follows_its_policy():
    layer = make_gated()
    for policy, trained in (("frozen", 1), ("affine", 3), ("train", 3)):
        unfreeze([layer], policy)
        assert len(layer.trainable_variables) == trained, policy
        before = keras.ops.copy(layer.norm.moving_mean)
        layer(keras.ops.ones((8, 4)), training=True)
        assert bool(keras.ops.any(layer.norm.moving_mean != before)) == (policy == "train"), policy


def test_a_frozen_layer_trains_again():
    layer = make_gated()
    freeze([layer])
    unfreeze([layer])
    assert len(layer.trainable_variables) == 3
    inputs = keras.ops.ones((64, 4))
    assert not keras.ops.all(layer(inputs, training=True) == layer(inputs, training=False))
