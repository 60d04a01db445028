"""Entering a stage: the same for a network of the trainer and for any model with the same backbone."""

import keras
import numpy as np
import pytest

from tlkeras.backbones.builder import build_backbone
from tlkeras.features.pooling import pool
from tlkeras.finetuning.layer_groups import group_layers
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.optimizers import scale_learning_rates
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.unfreezing import ActiveStage, list_trainable

STAGES = [
    Stage("head", 0, 1e-3, epochs=1),
    Stage("top", "2 blocks", 1e-3, epochs=1, batch_norm="affine", layer_decay=0.5),
    Stage("all", "all", 1e-3, epochs=1, batch_norm="train"),
]


def make_network():
    backbone = build_backbone("tiny", size=32, weights="none")
    return Network(
        backbone, pool(backbone, "average"), [keras.layers.Dense(3, name="logits"), keras.layers.Softmax()], "net"
    )


def read_flags(model):
    """Of each layer with weights: whether it trains, and whether it is held in inference mode."""
    return {layer.name: (layer.trainable, "call" in vars(layer)) for layer in model.layers if layer.weights}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_network_and_a_model_of_ones_own_enter_a_stage_alike(stage):
    network, plain = make_network(), make_network()
    ours, theirs = ActiveStage(network.groups, stage), ActiveStage(group_layers(plain.model), stage)
    assert ours.multipliers == theirs.multipliers
    assert ours.has_batch_norm == theirs.has_batch_norm == (stage.unfreeze != 0)
    assert read_flags(network.model) == read_flags(plain.model)
    network.release()
    assert set(read_flags(network.model).values()) == {(True, False)}


def test_relative_gradients_scale_the_rates_below_the_ceiling():
    network = make_network()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1))
    optimizer.build(list_trainable(network.groups, STAGES))
    active = ActiveStage(network.groups, STAGES[1])
    active.apply_rates(optimizer)
    trained = [variable for variable in network.model.trainable_variables if variable.path in active.multipliers]
    first, second = trained[:2]
    first.assign(np.ones(first.shape))
    second.assign(np.ones(second.shape))
    active.scale_by_gradients(optimizer, [[np.ones(first.shape), np.full(second.shape, 0.25)]], [first, second])
    assert optimizer._given[first.path] == active.multipliers[first.path]
    assert optimizer._given[second.path] == pytest.approx(active.multipliers[second.path] / 4)
