"""Explanations against maps worked out by hand, on every family of the catalog, and where weights mean nothing."""

import keras
import numpy as np
import pytest

from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import list_backbones
from tlkeras.errors import BackboneError
from tlkeras.evaluation.attribution import METHODS, Explainer, check_sanity, find_layer, occlude

# what the literature looks at in images of the default size
EXPECTED = {
    "vgg16": "block5_conv3",
    "resnet50": "conv5_block3_out",
    "resnet50_v2": "post_relu",
    "inception_v3": "mixed10",
    "xception": "block14_sepconv2_act",
    "mobilenet": "conv_pw_13_relu",
    "mobilenet_v2": "out_relu",
    "densenet121": "relu",
    "efficientnet_b0": "top_activation",
}


def add_head(backbone, classes=3):
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    logits = keras.layers.Dense(classes, name="logits")(pooled)
    return keras.Model(backbone.input, keras.layers.Activation("softmax", name="probabilities")(logits))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return add_head(build_backbone("tiny", weights="none"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_grad_cam_of_a_linear_head_is_the_class_activation_map(model, images):
    """With average pooling and one dense layer, Grad-CAM is CAM: channels weighted by the class's weights."""
    explainer = Explainer(model)
    assert explainer.layer == "block3_out"
    layer = keras.Model(model.input, model.get_layer("block3_out").output)
    activations, kernel = layer(images).numpy(), model.get_layer("logits").get_weights()[0]
    classes = [0, 1, 2, 1, 0]
    maps = explainer.explain(images, classes)
    assert maps.shape == (5, 32, 32) and maps.dtype == np.float32
    for wanted, shown, values in zip(classes, maps, activations, strict=True):
        by_hand = np.maximum(values @ kernel[:, wanted], 0)
        if by_hand.max() > 0:
            centres = shown[4::8, 4::8]  # where enlarging has changed least
            assert np.corrcoef(centres.ravel(), by_hand.ravel())[0, 1] > 0.95
            assert shown.max() == pytest.approx(1)


def test_grad_cam_plus_plus_by_hand():
    """One channel, gradient g everywhere: each position has g^2 / (2 g^2 + sum(A) g^3)."""
    from tlkeras.evaluation.attribution import _grad_cam_plus_plus_weights

    activations, gradients = np.array([[1.0, 3.0], [0.0, 2.0]]).reshape(1, 2, 2, 1), np.full((1, 2, 2, 1), 0.5)
    share = 0.25 / (2 * 0.25 + 6 * 0.125)
    assert _grad_cam_plus_plus_weights(activations, gradients)[0, 0] == pytest.approx(4 * share * 0.5)
    assert _grad_cam_plus_plus_weights(activations, -gradients)[0, 0] == 0


def make_endings(backbone):
    """Models with the same logits and different endings, by what they end in."""
    layers = keras.layers
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    logits = layers.Dense(3, name="logits")
    softmax = layers.Dense(3, activation="softmax", name="softmax_inside")
    ends = {
        "activation": layers.Activation("softmax")(logits(pooled)),
        "logits": logits(pooled),
        "float32 logits": layers.Activation("linear", dtype="float32")(logits(pooled)),
        "layer": layers.Softmax()(logits(pooled)),
        "operation": keras.ops.softmax(logits(pooled)),
        "dense": softmax(pooled),
        "unknown": layers.Rescaling(1.0)(logits(pooled)),
    }
    models = {name: keras.Model(backbone.input, end) for name, end in ends.items()}
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    head = keras.Sequential([keras.Input(pooled.shape[1:]), layers.Dense(3, "softmax", name="nested_softmax")])
    models["nested"] = keras.Model(inputs, head(keras.Model(backbone.input, pooled)(inputs)))
    softmax.set_weights([10 * weight for weight in logits.get_weights()])
    logits.set_weights(softmax.get_weights())
    head.layers[-1].set_weights(softmax.get_weights())
    return models


def test_the_logit_is_explained_whatever_the_model_ends_in(images):
    """The softmax is taken off wherever it is, and logits are not taken for probabilities."""
    keras.utils.set_random_seed(1)
    models = make_endings(build_backbone("tiny", weights="none"))
    for method in ("grad_cam", "grad_cam++"):
        expected = Explainer(models["activation"]).explain(images, [0, 1, 2, 1, 0], method)
        for name, model in models.items():
            shown = Explainer(model).explain(images, [0, 1, 2, 1, 0], method)
            np.testing.assert_allclose(shown, expected, atol=1e-4, err_msg=name)
    dense = models["dense"].get_layer("softmax_inside")
    assert dense.activation is keras.activations.softmax
    np.testing.assert_allclose(models["dense"](images).numpy().sum(1), 1, atol=1e-5)


def test_what_comes_before_the_first_kernel_is_not_explained():
    """A nested backbone with a map of 2 x 2, behind a rescaling of 64 x 64: its own layers are looked at."""
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Normalization(mean=0.0, variance=1.0)(x)
    base = keras.applications.MobileNetV2(input_shape=(64, 64, 3), include_top=False, weights=None)
    pooled = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(pooled))
    explainer = Explainer(model)
    assert explainer.layer == find_layer(base).name == "block_13_expand_relu"
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert explainer.explain(images, [0, 1]).shape == (2, 64, 64)
    np.testing.assert_allclose(explainer._suffix(explainer._prefix(images)).numpy().shape, (2, 2))
    check_sanity(explainer, images, [0, 1], steps=1)
    colours = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.raises(BackboneError, match="no layer with a feature map"):
        Explainer(colours)


def make_quarter_model():
    """A model whose probability of class 1 grows with the brightness of the upper left quarter."""
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.AveragePooling2D(4)(x)
    x = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="sum")(x)
    x = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(2, name="logits")
    model = keras.Model(inputs, keras.layers.Activation("softmax")(dense(x)))
    kernel = np.zeros((64, 2), np.float32)
    kernel.reshape(8, 8, 2)[:4, :4, 1] = 0.2
    dense.set_weights([kernel, np.array([3.0, 0.0], np.float32)])
    return model


@pytest.mark.parametrize("method", METHODS)
def test_what_decides_is_found(method):
    model = make_quarter_model()
    images = np.full((1, 32, 32, 3), 127, np.uint8)
    images[0, 8:12, 8:12] = 255  # within the quarter that counts
    images[0, 20:24, 20:24] = 255  # outside
    shown = Explainer(model).explain(images, [1], method)
    assert np.unravel_index(shown[0].argmax(), (32, 32)) < (16, 16)
    inside = shown[0][8:12, 8:12].mean()
    assert inside > 0
    if method == "occlusion":
        np.testing.assert_allclose(shown[0][20:, 20:], 0, atol=1e-6)
        lost = occlude(model, images, [1])
        np.testing.assert_allclose(shown[0], np.maximum(lost[0], 0) / lost[0].max(), atol=1e-6)


def test_explanations_depend_on_weights_which_are_restored(model, images):
    before = [weights.copy() for weights in model.get_weights()]
    shares, alike = zip(*check_sanity(Explainer(model), images, [0] * 5), strict=True)
    assert shares[-1] == 1 and list(shares) == sorted(shares)
    assert alike[-1] < 0.7
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_images_and_wrong_names(model, images):
    explainer = Explainer(model)
    assert explainer.explain(images[:0], []).shape == (0, 32, 32)
    with pytest.raises(BackboneError, match=r"Did you mean 'grad_cam\+\+'"):
        explainer.explain(images, [0] * 5, "gradcam++")
    with pytest.raises(BackboneError, match="Did you mean 'block3_out'"):
        Explainer(model, layer="block3_uot")
    with pytest.raises(BackboneError, match="no feature map"):
        Explainer(model, layer="logits")
    flat = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(BackboneError, match="larger images"):
        find_layer(flat)


QUICK = ("mobilenet_v2", "vgg16", "tiny")
NAMES = [entry.name for entry in list_backbones()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_backbone_is_explained(name):
    entry = next(entry for entry in list_backbones() if entry.name == name)
    size = max(entry.minimum_size, 32) if name in QUICK else max(entry.minimum_size, 64)
    keras.utils.set_random_seed(0)
    model = add_head(build_backbone(name, size=size, weights="none"))
    explainer = Explainer(model)
    shown = explainer.explain(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8), [0, 1])
    assert shown.shape == (2, size, size)
    assert np.isfinite(shown).all() and shown.min() >= 0 and shown.max() <= 1.001


@pytest.mark.parametrize(
    ("name", "layer"),
    [pytest.param(*pair, marks=() if pair[0] in QUICK else pytest.mark.slow) for pair in EXPECTED.items()],
)
def test_the_layer_of_each_family_is_the_one_people_expect(name, layer):
    assert find_layer(build_backbone(name, weights="none")).name == layer


def test_maps_of_a_backbone_within_are_those_of_the_flat_model(images):
    backbone = build_backbone("tiny", weights="none")
    pool, dense = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")
    flat = keras.Model(backbone.input, dense(pool(backbone.output)))
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    nested = keras.Model(inputs, dense(pool(backbone(inputs, training=False))))
    stacked = keras.Sequential([keras.Input((32, 32, 3), dtype="uint8"), backbone, pool, dense])
    classes = [0, 1, 2, 1, 0]
    for method in METHODS:
        expected = Explainer(flat).explain(images[:2], classes[:2], method)
        for model in (nested, stacked):
            explainer = Explainer(model)
            assert explainer.layer == find_layer(model).name == "block3_out"
            assert np.allclose(explainer.explain(images[:2], classes[:2], method), expected, atol=1e-5)


def test_images_and_classes_may_be_tensors(model, images):
    explainer, classes = Explainer(model), [0, 1, 2, 1, 0]
    as_tensors = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(np.array(classes, np.int64))
    assert np.array_equal(explainer.explain(*as_tensors), explainer.explain(images, classes))
    assert np.array_equal(occlude(model, *(one[:1] for one in as_tensors)), occlude(model, images[:1], classes[:1]))
