"""The catalog's facts against the graphs, for every backbone in it."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.backbones import weights
from tlkeras.backbones.architectures import create_model, normalize
from tlkeras.backbones.blocks import find_blocks, find_cuts, split
from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import find_backbone, list_backbones
from tlkeras.backbones.graph import count_multiply_adds
from tlkeras.errors import BackboneError

NAMES = [entry.name for entry in list_backbones()]
SMALLEST = {}  # one backbone per family
for _entry in sorted(list_backbones(), key=lambda entry: entry.parameters):
    SMALLEST.setdefault(_entry.family, _entry.name)
del SMALLEST["nasnet"]  # takes as long as four others; the long ring has it
ROUND_TRIPS = ["tiny", "vgg16"]


def draw_images(size, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def check_graph(name):
    """All that must hold of any backbone, at its least size."""
    entry = find_backbone(name)
    model = build_backbone(name, size=entry.minimum_size, weights="none")
    assert model.name == name
    assert model.input.name == "images"
    assert model.input.dtype == "uint8"
    assert model.input.shape == (None, entry.minimum_size, entry.minimum_size, 3)
    assert model.output.dtype == "float32"
    assert len(model.output.shape) == 4
    assert model.output.shape[-1] == entry.feature_width
    assert model.count_params() == entry.parameters
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    cuts, blocks = find_cuts(model), find_blocks(model)
    assert cuts[-1].tensor is model.output
    assert blocks[-1].cut == cuts[-1]
    owned = [layer for block in blocks for layer in block.layers]
    assert sorted(owned) == sorted(operation.name for operation in model.operations if operation.name != "images")
    assert sum(block.parameters for block in blocks) == entry.parameters
    assert sum(block.multiply_adds for block in blocks) == count_multiply_adds(model)
    assert len({block.name for block in blocks}) == len(blocks)
    return model


def check_round_trip(model, tmp_path):
    """Cutting, saving and loading leave every bit as it was."""
    images = draw_images(model.input.shape[1])
    whole = keras.ops.convert_to_numpy(model(images, training=False))
    assert whole.std() > 0
    cuts = find_cuts(model)
    prefix, suffix = split(model, cuts[len(cuts) // 2])
    assert np.array_equal(suffix(prefix(images, training=False), training=False), whole)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    (tmp_path / "model.keras").unlink()  # up to 1.4 GB
    assert np.array_equal(loaded(images, training=False), whole)


def test_catalog_holds_all_of_keras_applications_and_no_more():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert {entry.constructor for entry in list_backbones()} - {""} == constructors
    assert len(NAMES) == len(set(NAMES)) == len(constructors) + 4


@pytest.mark.parametrize("entry", list_backbones(), ids=NAMES)
def test_rows_are_complete(entry):
    assert entry.parameters > 0
    assert entry.multiply_adds > 0
    assert entry.minimum_size <= entry.default_size
    assert entry.weights[-1] == "none"
    assert ("packaged" in entry.weights) == (entry.package is not None)
    assert (entry.top1 is None) == (entry.name == "tiny")
    if "imagenet" in entry.weights:
        for top in (False, True):
            assert weights.DOWNLOADS[entry.name, top].url.startswith("https://storage.googleapis.com/")


@pytest.mark.parametrize("name", SMALLEST.values())
def test_smallest_of_each_family(name, tmp_path):
    model = check_graph(name)
    if name in ROUND_TRIPS:
        check_round_trip(model, tmp_path)
    keras.backend.clear_session(free_memory=False)  # else it looks through all objects of the process


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone(name, tmp_path):
    check_round_trip(check_graph(name), tmp_path)
    entry = find_backbone(name)
    model = create_model(entry, entry.default_size, top=False)
    assert count_multiply_adds(model) == entry.multiply_adds
    keras.backend.clear_session()


@pytest.mark.parametrize(
    ("pixels", "module"),
    [
        ("BGR minus mean", keras.applications.vgg16),
        ("BGR minus mean", keras.applications.resnet),
        ("-1..1", keras.applications.resnet_v2),
        ("-1..1", keras.applications.inception_v3),
        ("-1..1", keras.applications.inception_resnet_v2),
        ("-1..1", keras.applications.xception),
        ("-1..1", keras.applications.mobilenet),
        ("-1..1", keras.applications.mobilenet_v2),
        ("-1..1", keras.applications.nasnet),
        ("mean and deviation", keras.applications.densenet),
    ],
)
def test_normalization_is_preprocess_input(pixels, module):
    images = draw_images(8)
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    ours = keras.Model(inputs, normalize(inputs, pixels))(images)
    np.testing.assert_allclose(ours, module.preprocess_input(images.astype("float32")), atol=1e-4)


@pytest.mark.parametrize(
    ("constructor", "before"),
    [
        ("MobileNetV3Small", "conv"),
        pytest.param("EfficientNetV2B0", "stem_conv", marks=pytest.mark.slow),
        pytest.param("EfficientNetV2S", "stem_conv", marks=pytest.mark.slow),
    ],
)
def test_normalization_is_what_keras_builds_in(constructor, before):
    entry = find_backbone(constructor)
    theirs = getattr(keras.applications, constructor)(weights=None, include_top=False, input_shape=(32, 32, 3))
    images = draw_images(32)
    inside = keras.Model(theirs.input, theirs.get_layer(before).input)(images.astype("float32"))
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    ours = keras.Model(inputs, normalize(inputs, entry.pixels))(images)
    np.testing.assert_allclose(ours, inside, atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("(x - 127)/128", [-127 / 128, 0, 1]),
        ("x/128 - 1", [-1, -1 / 128, 127 / 128]),
        ("0..1", [0, 127 / 255, 1]),
        ("mean and deviation", [-0.485 / 0.229, (127 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("BGR minus mean", [255 - 103.939, 127 - 116.779, 0 - 123.68]),
    ],
)
def test_normalization_by_hand(pixels, expected):
    inputs = keras.Input((1, 1, 3), dtype="uint8")
    ours = keras.Model(inputs, normalize(inputs, pixels))(np.array([[[[0, 127, 255]]]], np.uint8))
    np.testing.assert_allclose(np.asarray(ours).ravel(), expected, atol=1e-5)


def test_names_do_not_depend_on_what_else_the_process_built():
    before = [operation.name for operation in build_backbone("mobilenet_v3_small", size=32, weights="none").operations]
    keras.layers.Activation("relu")
    assert [
        operation.name for operation in build_backbone("mobilenet_v3_small", size=32, weights="none").operations
    ] == before
    assert "activation_001" in before


def test_top_gives_a_thousand_probabilities():
    model = build_backbone("tiny", weights="none", top=True)
    probabilities = np.asarray(model(draw_images(32), training=False))
    assert probabilities.shape == (2, 1000)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_listing_imports_no_framework():
    code = (
        "import sys; from tlkeras.backbones.catalog import list_backbones\n"
        "list_backbones(); print({'keras', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_list_filters():
    assert [entry.name for entry in list_backbones("*lite?")] == [f"efficientnet_lite{i}" for i in range(3)]
    assert {entry.family for entry in list_backbones(family="nasnet")} == {"nasnet"}
    assert [entry.name for entry in list_backbones(weights="packaged", max_parameters=4)] == ["efficientnet_lite0"]
    assert [entry.name for entry in list_backbones(max_multiply_adds=1)] == ["tiny"]
    assert list_backbones("no such name") == []


@pytest.mark.parametrize(
    ("arguments", "way_out"), [({"family": "resnett"}, "'resnet'"), ({"weights": "pakaged"}, "'packaged'")]
)
def test_list_names_the_nearest_word(arguments, way_out):
    with pytest.raises(BackboneError, match=f"Did you mean {way_out}"):
        list_backbones(**arguments)


def test_find_takes_names_of_keras():
    assert find_backbone("ResNet50V2") is find_backbone("resnet50_v2")


def test_find_names_the_nearest():
    with pytest.raises(BackboneError, match=r"Unknown backbone 'resnet50v2'. Did you mean 'resnet50_v2'\?"):
        find_backbone("resnet50v2")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("inception_v3", {"size": 64}, "inception_v3 needs images of at least 75 x 75 pixels. Received: size=64."),
        ("tiny", {"size": 0}, "at least 8 x 8"),
        ("vgg16", {"size": 96, "top": True}, "classifier of vgg16 only fits images of 224 pixels"),
        ("tiny", {"weights": "imagenet"}, "tiny has no such weights. Received: 'imagenet'. Choose 'none' or a file."),
        ("resnet50", {"weights": "packaged"}, "Choose 'imagenet', 'none' or a file"),
        ("tiny", {"weights": "nonne"}, "Did you mean 'none'"),
        ("tiny", {"weights": "no/such/file.h5"}, "Give the path of a file"),
    ],
)
def test_build_refuses(name, arguments, message):
    with pytest.raises(BackboneError) as caught:
        build_backbone(name, **({"weights": "none"} | arguments))
    assert message in str(caught.value)


def test_verbs_give_objects_each_time():
    for _ in range(2):
        (info,) = tlkeras.list_backbones("tiny")
        shown = tlkeras.show_backbone("tiny")
    assert info.to_dict()["weights"] == ["none"] and info.parameters == 8280
    assert (shown.name, shown.size, len(shown.blocks)) == ("tiny", 32, 4)
    assert sum(block.parameters for block in shown.blocks) == info.parameters
    assert shown.to_dict()["blocks"][0] == {
        "index": 0,
        "name": "stem",
        "shape": [16, 16, 8],
        "bytes": 4096,
        "parameters": 248,
        "multiply_adds": 55296,
        "layers": 4,
    }
