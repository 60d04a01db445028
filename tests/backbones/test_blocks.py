"""Cuts and blocks on graphs small enough to be worked out by hand."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.backbones.blocks import find_blocks, find_cut, find_cuts, split
from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.graph import count_multiply_adds, open_nested
from tlkeras.errors import BackboneError


def convolve(x, filters, kernel, name, **arguments):
    return layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=name, **arguments)(x)


@pytest.fixture
def residual():
    """Stem; residual unit of two convolutions with a shortcut; 1x1 convolution at the end."""
    inputs = keras.Input((8, 8, 3), name="images")
    x = convolve(inputs, 4, 3, "stem_conv", strides=2)
    y = convolve(x, 4, 3, "unit_1_conv")
    y = layers.ReLU(name="unit_relu")(y)
    y = convolve(y, 4, 3, "unit_2_conv")
    x = layers.Add(name="unit_add")([x, y])
    return keras.Model(inputs, convolve(x, 6, 1, "top_conv"), name="residual")


def test_cuts_are_where_one_tensor_is_live(residual):
    cuts = find_cuts(residual)
    assert [cut.name for cut in cuts] == ["stem_conv", "unit_add", "top_conv"]
    assert [cut.index for cut in cuts] == [0, 1, 2]
    assert [cut.shape for cut in cuts] == [(4, 4, 4), (4, 4, 4), (4, 4, 6)]
    assert [cut.bytes for cut in cuts] == [128, 128, 192]
    assert cuts[-1].tensor is residual.output


def test_blocks_by_hand(residual):
    blocks = find_blocks(residual)
    assert [block.name for block in blocks] == ["stem_conv", "unit", "top_conv"]
    assert [block.layers for block in blocks] == [
        ("stem_conv",),
        ("unit_1_conv", "unit_relu", "unit_2_conv", "unit_add"),
        ("top_conv",),
    ]
    assert [block.parameters for block in blocks] == [3 * 3 * 3 * 4, 2 * 3 * 3 * 4 * 4, 4 * 6]
    assert [block.multiply_adds for block in blocks] == [16 * 27 * 4, 2 * 16 * 36 * 4, 16 * 4 * 6]
    assert [block.shape for block in blocks] == [(4, 4, 4), (4, 4, 4), (4, 4, 6)]


def test_multiply_adds_by_hand():
    inputs = keras.Input((4, 4, 6))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(inputs)  # 4*4*12 outputs, 9 each
    x = layers.Conv2D(8, 3, groups=2, padding="same")(x)  # 4*4*8 outputs, 9*6 each
    x = layers.SeparableConv2D(10, 3, depth_multiplier=2, padding="same")(x)  # 4*4*16, 9 each; 4*4*10, 16 each
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5)(x)
    expected = 16 * 12 * 9 + 16 * 8 * 54 + 16 * 16 * 9 + 16 * 10 * 16 + 50
    assert count_multiply_adds(keras.Model(inputs, x)) == expected


def test_a_nested_model_counts_as_much_as_a_flat_one():
    inner = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 3)])
    inputs = keras.Input((4, 4, 3))
    assert count_multiply_adds(keras.Model(inputs, inner(inputs))) == 2 * 2 * 2 * 27


def test_blocks_of_separable_bottlenecks_keep_their_last_convolution():
    """As in MobileNet: after the strided depthwise convolution the tensor is narrower than after the pointwise one."""
    inputs = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="first_depthwise")(inputs)
    x = convolve(x, 16, 1, "first_pointwise")
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="second_depthwise")(x)
    model = keras.Model(inputs, convolve(x, 32, 1, "second_pointwise"))
    assert [block.layers for block in find_blocks(model)] == [
        ("first_depthwise", "first_pointwise"),
        ("second_depthwise", "second_pointwise"),
    ]


def test_a_normalization_after_a_merge_opens_the_next_block():
    """As in ResNet V2 and ConvNeXt; one after a convolution belongs to the convolution."""
    inputs = keras.Input((4, 4, 2))
    x = layers.BatchNormalization(name="stem_bn")(convolve(inputs, 2, 3, "stem_conv"))
    x = layers.Add(name="one_add")([x, convolve(x, 2, 3, "one_conv")])
    x = layers.ReLU(name="two_relu")(layers.BatchNormalization(name="two_bn")(x))
    x = layers.Add(name="two_add")([x, convolve(x, 2, 3, "two_conv")])
    x = layers.BatchNormalization(name="last_bn")(x)
    assert [block.layers for block in find_blocks(keras.Model(inputs, x))] == [
        ("stem_conv", "stem_bn"),
        ("one_conv", "one_add"),
        ("two_bn", "two_relu", "two_conv", "two_add", "last_bn"),
    ]


def test_a_layer_that_is_used_twice_lies_in_one_block():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inputs = keras.Input((4, 4, 3))
    x = convolve(inputs, 3, 3, "first")
    x = shared(convolve(shared(x), 3, 3, "between"))
    model = keras.Model(inputs, convolve(x, 3, 3, "last"))
    assert [cut.name for cut in find_cuts(model)] == ["first", "shared", "between", "shared:2", "last"]
    assert [block.layers for block in find_blocks(model)] == [("first",), ("shared", "between"), ("last",)]
    assert sum(block.parameters for block in find_blocks(model)) == model.count_params()


@pytest.mark.parametrize("cut", [0, "unit_add", -2, "last"])
def test_split_shares_variables_and_reproduces_the_whole(residual, cut):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    prefix, suffix = split(residual, cut)
    assert np.array_equal(suffix(prefix(images)), residual(images))
    assert {id(weight) for weight in [*prefix.weights, *suffix.weights]} == {id(weight) for weight in residual.weights}


def test_split_twice_gives_the_middle(residual):
    images = np.ones((1, 8, 8, 3), "float32")
    prefix, rest = split(residual, "stem_conv")
    middle, suffix = split(rest, "unit_add")
    assert np.array_equal(suffix(middle(prefix(images))), residual(images))


def test_split_keeps_dropout_active_in_training():
    model = build_backbone("efficientnet_lite0", size=32, weights="none")
    _, suffix = split(model, "block6c_add")
    maps = np.random.default_rng(0).normal(size=(8, *suffix.input.shape[1:])).astype("float32")
    for layer in suffix.layers:  # only stochastic depth may tell training from inference
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    assert not np.array_equal(suffix(maps, training=True), suffix(maps, training=False))


def test_after_a_branch_to_an_output_there_is_no_cut():
    inputs = keras.Input((4, 4, 3))
    x = convolve(inputs, 2, 3, "trunk")
    model = keras.Model(inputs, [convolve(x, 1, 1, "left"), convolve(x, 1, 1, "right")])
    assert [cut.name for cut in find_cuts(model)] == ["trunk"]
    with pytest.raises(BackboneError, match=r"model with one output has blocks. Received: 2 outputs"):
        find_blocks(model)


def test_two_inputs_are_refused():
    left, right = keras.Input((4,)), keras.Input((4,))
    with pytest.raises(BackboneError, match=r"model with one input has cuts. Received: 2 inputs"):
        find_cuts(keras.Model([left, right], layers.Add()([left, right])))


def test_a_model_of_python_code_is_refused():
    class Own(keras.Model):
        pass

    with pytest.raises(BackboneError, match=r"is not a functional graph. Received: mine, a Own."):
        find_cuts(Own(name="mine"))


def test_unknown_size_is_refused():
    inputs = keras.Input((None, None, 3))
    with pytest.raises(BackboneError, match=r"images of any size.*after stem_conv"):
        find_cuts(keras.Model(inputs, convolve(inputs, 2, 3, "stem_conv")))


def test_find_cut_by_name_index_and_last(residual):
    assert find_cut(residual, "unit_add") == find_cut(residual, 1) == find_cut(residual, -2)
    assert find_cut(residual, "last") == find_cut(residual, "top_conv")
    assert find_cut(residual, find_cut(residual, 0)).name == "stem_conv"


def test_find_cut_names_the_nearest(residual):
    with pytest.raises(
        BackboneError, match=r"residual has no cut of that name. Received: 'unit_ad'. Did you mean 'unit_add'\?"
    ):
        find_cut(residual, "unit_ad")
    with pytest.raises(
        BackboneError, match=r"residual has no such cut. Received: 3. Give a number from 0 to 2, which is the output."
    ):
        find_cut(residual, 3)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("tiny", 4, ["stem", "block1", "block2", "block3"]),
        ("mobilenet_v2", 19, ["Conv1_relu", "expanded_conv", "block_1", "block_2", "block_3"]),
        ("vgg16", 13, ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1"]),
    ],
)
def test_blocks_of_known_nets(name, count, expected):
    blocks = find_blocks(build_backbone(name, size=32, weights="none"))
    assert len(blocks) == count
    assert [block.name for block in blocks[:5]] == expected


def test_blocks_of_lite_end_at_its_bottlenecks():
    blocks = find_blocks(build_backbone("efficientnet_lite0", size=224, weights="none"))
    assert len(blocks) == 18
    assert [block.name for block in blocks[:5]] == ["stem", "block1a", "block2a", "block2b", "block3a"]
    assert [block.shape for block in blocks][10:13] == [(14, 14, 112), (14, 14, 112), (7, 7, 192)]
    assert blocks[10].cut.name == "block5b_add"
    assert blocks[-1].name == "top"


def nest(inner: keras.Model, *before: keras.Layer) -> keras.Model:
    """A classifier around a model, as Keras' guides write it."""
    inputs = keras.Input((8, 8, 3), name="pictures")
    x = inputs
    for layer in before:
        x = layer(x)
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x, training=False))
    return keras.Model(inputs, layers.Dense(2, name="classes")(x), name="nested")


def stack(inner: keras.Model, *before: keras.Layer) -> keras.Model:
    after = [layers.GlobalAveragePooling2D(name="pool"), layers.Dense(2, name="classes")]
    return keras.Sequential([keras.Input((8, 8, 3)), *before, inner, *after], name="stacked")


AROUND = ["rescaling", *("stem_conv", "unit_add", "top_conv"), "pool", "classes"]


@pytest.mark.parametrize("surround", [nest, stack])
def test_a_model_within_a_model_has_its_cuts_and_blocks_found(surround, residual):
    model = surround(residual, layers.Rescaling(0.1, name="rescaling"))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    assert [cut.name for cut in find_cuts(model)] == AROUND
    assert [cut.name for cut in find_cuts(model, nested=False)] == ["rescaling", "residual", "pool", "classes"]
    top = layers.Dense(2, name="classes")(layers.GlobalAveragePooling2D(name="pool")(residual.output))
    flat = [block.layers for block in find_blocks(keras.Model(residual.input, top))]
    assert [block.layers for block in find_blocks(model)] == [("rescaling", *flat[0]), *flat[1:]]
    assert sum(block.parameters for block in find_blocks(model)) == model.count_params()
    for cut in ("stem_conv", "unit_add", "last"):
        prefix, suffix = split(model, cut)
        assert np.allclose(suffix(prefix(images)), model(images), atol=1e-6)
        assert {id(one) for one in [*prefix.weights, *suffix.weights]} == {id(one) for one in model.weights}


def test_models_within_models_within_models(residual):
    model = nest(keras.Sequential([keras.Input((8, 8, 3)), residual]))
    assert [cut.name for cut in find_cuts(model)][:3] == AROUND[1:4]


def test_a_model_with_python_code_of_its_own_stays_closed(residual):
    class Noisy(type(residual)):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs * 2, training, mask)

    noisy = Noisy(residual.input, residual.output, name="noisy")
    assert [cut.name for cut in find_cuts(nest(noisy))] == ["noisy", "pool", "classes"]


def test_names_that_clash_within_are_refused(residual):
    model = nest(residual, layers.ReLU(name="unit_relu"))
    with pytest.raises(BackboneError, match=r"share a name.*Received: 'unit_relu' in nested. Rename one"):
        find_cuts(model)


def test_a_sequential_model_can_be_split():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 3, name="one"), layers.Conv2D(2, 2, name="two")])
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    prefix, suffix = split(model, "one")
    assert np.allclose(suffix(prefix(images)), model(images), atol=1e-6)


def test_split_between_two_uses_of_a_layer():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="last")(shared(shared(inputs))))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    assert [cut.name for cut in find_cuts(model)] == ["shared", "shared:2", "last"]
    for cut in ("shared", "shared:2"):
        prefix, suffix = split(model, cut)
        assert np.allclose(suffix(prefix(images)), model(images), atol=1e-6)


@pytest.mark.parametrize("pack", [lambda x: {"u": x}, lambda x: [x], lambda x: x], ids=["dict", "list", "tensor"])
@pytest.mark.parametrize("cut", ["trunk", "last"])
def test_split_keeps_the_structure_of_the_outputs(pack, cut):
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, pack(convolve(convolve(inputs, 2, 3, "trunk"), 2, 1, "last")))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    prefix, suffix = split(model, cut)
    found, expected = suffix(prefix(images)), model(images)
    assert type(found) is type(expected)
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_a_graph_is_opened_once_and_goes_with_its_model(residual):
    model = nest(residual)
    opened = open_nested(model)
    assert open_nested(model) is opened and [cut.tensor for cut in find_cuts(model)][-1] is opened.output
    gone = weakref.ref(model)
    del model, opened
    gc.collect()
    assert gone() is None
