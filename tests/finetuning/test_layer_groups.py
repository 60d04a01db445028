"""Layers in groups: of flat graphs and nested backbones, each with weights in exactly one."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from tlkeras import finetuning
from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.builder import build_backbone
from tlkeras.errors import BackboneError
from tlkeras.finetuning.layer_groups import Groups, group_layers, layerwise_lr_decay


def add_head(tensor: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.GlobalAveragePooling2D(name="pool")(tensor)
    x = layers.BatchNormalization(name="norm")(layers.Dense(4, name="hidden")(x))
    return layers.Dense(2, name="answer")(layers.Dropout(0.5, name="rest")(x))


def make_flat(backbone: keras.Model) -> keras.Model:
    return keras.Model(backbone.input, add_head(backbone.output), name="flat")


def make_nested(backbone: keras.Model) -> keras.Model:
    """As Keras' guide on transfer learning writes it, with augmentation in front."""
    inputs = keras.Input(backbone.input.shape[1:], dtype=backbone.input.dtype)
    x = keras.Sequential([layers.RandomFlip(name="flip")], name="augmentation")(inputs)
    return keras.Model(inputs, add_head(backbone(x, training=False)), name="nested")


BACKBONES = {
    "tiny": lambda: build_backbone("tiny", weights="none"),
    "efficientnet_lite0": lambda: build_backbone("efficientnet_lite0", size=32, weights="none"),
    "MobileNet": lambda: keras.applications.MobileNet((32, 32, 3), 0.25, include_top=False, weights=None),
    "ConvNeXtTiny": lambda: keras.applications.ConvNeXtTiny(include_top=False, weights=None, input_shape=(32, 32, 3)),
    "DenseNet121": lambda: keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(32, 32, 3)),
}


def list_names(groups: Groups) -> list[list[str]]:
    return [[layer.name for layer in group.layers] for group in (*groups.blocks, groups.head)]


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    return BACKBONES[request.param]()


@pytest.mark.parametrize("wrap", [make_flat, make_nested])
def test_each_variable_is_in_exactly_one_group(backbone, wrap):
    model = wrap(backbone)
    groups = group_layers(model)
    owned = [
        id(weight) for group in (*groups.blocks, groups.head) for layer in group.layers for weight in layer.weights
    ]
    assert sorted(owned) == sorted({id(weight) for weight in model.weights})
    blocks = find_blocks(backbone)
    assert len(groups.blocks) == len(blocks)
    assert all(group.name.endswith(block.name) for group, block in zip(groups.blocks, blocks, strict=True))
    assert list_names(groups)[-1] == ["hidden", "norm", "rest", "answer"]


def convolve(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.Conv2D(2, 3, padding="same", name=name)(x)


def test_by_hand():
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip(name="flip")(layers.Rescaling(1 / 255, name="scale")(inputs))
    x = convolve(layers.ReLU(name="relu")(convolve(x, "one")), "two")
    model = keras.Model(inputs, add_head(x))
    assert list_names(group_layers(model)) == [
        ["one", "relu"],
        ["two"],
        ["hidden", "norm", "rest", "answer"],
    ]


def test_what_is_flattened_begins_the_head():
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=2)
    assert list_names(group_layers(model))[-1] == ["fc1", "fc2", "predictions"]


def test_two_poolings_split_by_split():
    inputs = keras.Input((8, 8, 3))
    x = convolve(inputs, "one")
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    groups = group_layers(keras.Model(inputs, layers.Dense(2, name="answer")(x)))
    assert list_names(groups) == [["one"], ["answer"]]


def test_the_head_by_name():
    inputs = keras.Input((8, 8, 3))
    x = convolve(convolve(inputs, "one"), "two")
    model = keras.Model(inputs, layers.Dense(2, name="answer")(layers.Flatten()(x)), name="mine")
    assert list_names(group_layers(model)) == [["one"], ["two"], ["answer"]]
    assert list_names(group_layers(model, head=["two", "answer"])) == [["one"], ["two", "answer"]]
    with pytest.raises(BackboneError, match=r"has no layer of this name. Received: 'anser'. Did you mean 'answer'\?"):
        group_layers(model, head=["anser"])
    with pytest.raises(BackboneError, match=r"no tensor before the head that everything flows through. Received: mine"):
        group_layers(model, head=["one"])


def test_weights_before_a_nested_backbone_belong_to_its_first_block():
    inputs = keras.Input((32, 32, 1))
    backbone = build_backbone("tiny", weights="none")
    grey = layers.Conv2D(3, 1, name="to_rgb")(inputs)
    groups = group_layers(keras.Model(inputs, add_head(backbone(grey))))
    assert list_names(groups)[0][:2] == ["to_rgb", "stem_conv"]


def test_a_model_without_a_head_is_refused():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(convolve(inputs, "one"))
    with pytest.raises(BackboneError, match=r"no head with weights .* Received: bare, .* head=\[...\]"):
        group_layers(keras.Model(inputs, x, name="bare"))


def test_a_sequential_model():
    model = keras.Sequential([build_backbone("tiny", weights="none"), layers.Flatten(), layers.Dense(2, name="answer")])
    assert list_names(group_layers(model))[-1] == ["answer"]


def test_each_block_has_its_share_of_the_rate():
    model = make_flat(BACKBONES["tiny"]())
    groups = group_layers(model)
    shares = [0.5**place for place in range(len(groups.blocks))]
    multipliers = layerwise_lr_decay(groups, shares)
    paths = {variable.path for variable in model.trainable_variables}
    assert set(multipliers) == {path for path in paths if path.split("/")[0] not in ("hidden", "norm", "answer")}
    for block, share in zip(groups.blocks, shares, strict=True):
        for layer in block.layers:
            assert all(multipliers[variable.path] == share for variable in layer.trainable_variables)
    with pytest.raises(BackboneError, match="not one multiplier per block"):
        layerwise_lr_decay(groups, shares[1:])


@pytest.mark.parametrize("name", finetuning.__all__)
def test_what_the_package_offers_is_there(name):
    assert callable(getattr(finetuning, name))


def test_a_backbone_within_two_models_and_one_behind_augmentation():
    expected = list_names(group_layers(make_flat(build_backbone("tiny", weights="none"))))[:-1]
    images = keras.Input((32, 32, 3))
    inner = keras.Sequential([keras.Input((32, 32, 3)), build_backbone("tiny", weights="none")])
    assert list_names(group_layers(keras.Model(images, add_head(inner(images)))))[:-1] == expected
    augmentation = keras.Sequential([keras.Input((32, 32, 3)), layers.RandomFlip(), layers.RandomRotation(0.1)])
    x = convolve(convolve(augmentation(images), "one"), "two")
    groups = group_layers(keras.Model(images, layers.Dense(2, name="answer")(layers.Flatten()(x))))
    assert list_names(groups) == [["one"], ["two"], ["answer"]]
