"""Presets of KerasHub: small ones that these tests save themselves."""

from pathlib import Path

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.backbones import kerashub
from tlkeras.backbones.blocks import find_blocks, find_cuts, split
from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import find_backbone
from tlkeras.backbones.weights import fingerprint
from tlkeras.diagnostics.recommend.candidates import BackboneLimits, choose_candidates
from tlkeras.errors import BackboneError
from tlkeras.features.pooling import pool
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import Run

SMALL = {"image_shape": (32, 32, 3)}
TRANSFORMER = {**SMALL, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16}
RESIDUAL = {
    "image_shape": (None, None, 3),
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [2, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
}
SHIFTED = {**SMALL, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
MIXED = {
    **SMALL,
    "layerwise_depths": [1, 1],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
    "hidden_dims": [8, 16],
}
INVERTED = {
    "image_shape": (32, 32, 3),
    "stackwise_block_types": [["er"], ["uir", "uir"]],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_filters": [[8], [16, 16]],
    "stackwise_strides": [[2], [2, 1]],
    "stackwise_act_layers": [["relu"], ["relu", "relu"]],
    "stackwise_exp_ratios": [[2.0], [2.0, 2.0]],
    "stackwise_dw_kernel_sizes": [[0], [3, 3]],
    "stackwise_exp_kernel_sizes": [[3], [0, 0]],
    "stackwise_pw_kernel_sizes": [[1], [0, 0]],
    "stackwise_use_cpe": [[False], [False, False]],
    **{
        f"stackwise_{name}": [[0], [0, 0]]
        for name in (
            *("se_ratios", "dw_start_kernel_sizes", "dw_end_kernel_sizes", "num_heads"),
            *("key_dims", "value_dims", "kv_strides"),
        )
    },
    "stem_size": 8,
    "num_features": 24,
    "msfa_indices": (-2, -1),
    "msfa_output_resolution": 4,
}
# class, arguments, blocks, shape of the last map
FAMILIES = {
    "vit": ("ViTBackbone", {**TRANSFORMER, "mlp_dim": 32}, 4, (4, 4, 16)),
    "resnet": ("ResNetBackbone", RESIDUAL, 4, (4, 4, 64)),
    "deit": ("DeiTBackbone", {**TRANSFORMER, "intermediate_dim": 32}, 4, (4, 4, 16)),
    "dino": ("DINOV2Backbone", {**TRANSFORMER, "intermediate_dim": 32, "num_register_tokens": 2}, 4, (4, 4, 16)),
    "swin": ("SwinTransformerBackbone", SHIFTED, 3, (8, 8, 16)),
    "mobilenet_v5": ("MobileNetV5Backbone", INVERTED, 3, (4, 4, 24)),
    "mit": ("MiTBackbone", MIXED, 4, (4, 4, 16)),
}
QUICK = ("vit",)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A function that saves a small preset of a family, and returns its name and KerasHub's own backbone."""
    import keras_hub

    saved = {}

    def save_one(family):
        if family not in saved:
            kind, arguments, *_ = FAMILIES[family]
            keras.utils.set_random_seed(0)
            backbone = getattr(keras_hub.models, kind)(**arguments)
            folder = str(tmp_path_factory.mktemp(family))
            backbone.save_to_preset(folder)
            converter = keras_hub.layers.ImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1.0)
            converter.save_to_preset(folder)
            saved[family] = f"hub:{folder}", backbone
        return saved[family]

    return save_one


def predict_with_hub(backbone, images):
    pixels = images.astype("float32") / 127.5 - 1
    inputs = dict.fromkeys(backbone.input, pixels) if isinstance(backbone.input, dict) else pixels
    return np.array(backbone(inputs, training=False))


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_the_graph_is_flat_and_predicts_as_kerashub_does(family, save, tmp_path):
    name, backbone = save(family)
    _, _, blocks, shape = FAMILIES[family]
    model = build_backbone(name, weights="preset")
    assert model.input_shape == (None, 32, 32, 3) and model.input.dtype == "uint8"
    assert model.output_shape[1:] == shape
    maps, expected = model.predict(IMAGES, verbose=0), predict_with_hub(backbone, IMAGES)
    tokens = expected.reshape(len(expected), -1, shape[-1])[:, -shape[0] * shape[1] :]
    np.testing.assert_allclose(maps.reshape(tokens.shape), tokens, atol=1e-4)
    found = find_blocks(model)
    assert len(found) == blocks
    assert sum(block.parameters for block in found) == model.count_params() == find_backbone(name).parameters
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), maps, atol=1e-6)
    assert fingerprint(again) == fingerprint(model)


def test_every_cut_divides_it(save):
    model = build_backbone(save("vit")[0], weights="preset")
    expected = model.predict(IMAGES, verbose=0)
    for cut in find_cuts(model):
        prefix, suffix = split(model, cut)
        np.testing.assert_allclose(suffix(prefix(IMAGES)), expected, atol=1e-5)
    tokens = pool(split(model, 3)[0], "average")
    assert tokens.output_shape == (None, 16)
    np.testing.assert_allclose(tokens(IMAGES), np.mean(split(model, 3)[0](IMAGES), axis=1), atol=1e-5)


@pytest.mark.slow
def test_two_models_share_no_weights(save, tmp_path):
    model = build_backbone(save("vit")[0], weights="preset")
    model.save(tmp_path / "m.keras")
    first, second = (keras.models.load_model(tmp_path / "m.keras") for _ in range(2))
    first.set_weights([0 * weight for weight in first.get_weights()])
    np.testing.assert_allclose(second.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.slow
def test_sizes(save):
    free, fixed = save("resnet")[0], save("vit")[0]
    assert build_backbone(free, size=64, weights="preset").output_shape == (None, 8, 8, 64)
    assert build_backbone(free, size=(32, 64), weights="preset").output_shape == (None, 4, 8, 64)
    assert build_backbone(fixed, size=(32, 64), weights="none").output_shape == (None, 4, 8, 16)
    assert find_backbone(fixed).default_size == 32
    with pytest.raises(BackboneError, match="KerasHub cannot load.*Give the size that the preset was made for"):
        build_backbone(fixed, size=(32, 64), weights="preset")
    with pytest.raises(BackboneError, match="KerasHub cannot load"):
        build_backbone(fixed, size=64, weights="preset")
    with pytest.raises(BackboneError, match="at least 32 x 32"):
        build_backbone(fixed, size=16, weights="preset")


@pytest.mark.slow
def test_random_weights_are_of_a_process_and_the_presets_are_not(save):
    name, _ = save("vit")
    assert fingerprint(build_backbone(name, weights="preset")) == fingerprint(build_backbone(name, weights="preset"))
    assert fingerprint(build_backbone(name, weights="none")) != fingerprint(build_backbone(name, weights="preset"))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hub:vit_base_patch16_224_imagent", "Did you mean 'vit_base_patch16_224_imagenet'"),
        ("hub:no/such/folder", "KerasHub has no preset 'no/such/folder'.*a folder that save_to_preset wrote"),
    ],
)
def test_unknown_presets_are_named(name, expected):
    with pytest.raises(BackboneError, match=expected):
        build_backbone(name, weights="preset")


def test_what_cannot_be_used_is_refused(save, tmp_path, monkeypatch):
    import keras_hub

    name, backbone = save("vit")
    with pytest.raises(BackboneError, match="has no such weights.*'preset', 'none' or a file"):
        build_backbone(name, weights="imagenet")
    with pytest.raises(BackboneError, match="A preset has its own weights.*hub:FOLDER"):
        build_backbone(name, weights="mine.weights.h5")
    with pytest.raises(BackboneError, match="come without an ImageNet classifier"):
        build_backbone(name, weights="preset", top=True)
    backbone.save_to_preset(tmp_path / "bare")
    with pytest.raises(BackboneError, match="does not hold the scaling of its pixels"):
        build_backbone(f"hub:{tmp_path / 'bare'}", weights="preset")
    words = keras_hub.models.BertBackbone(50, 1, 1, 8, 8, max_sequence_length=8)
    words.save_to_preset(tmp_path / "words")
    with pytest.raises(BackboneError, match="does not take square RGB images"):
        build_backbone(f"hub:{tmp_path / 'words'}", weights="preset")
    with pytest.raises(BackboneError, match="KerasHub has no such backbone"):
        kerashub.HubLayer("os", {}, ["system"])

    def fail(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(kerashub.importlib, "import_module", fail)
    with pytest.raises(BackboneError, match=r'pip install "tlkeras\[hub\]"'):
        build_backbone("hub:another", weights="preset")


@pytest.mark.slow
def test_presets_are_candidates(save):
    name, _ = save("vit")
    chosen, _ = choose_candidates(BackboneLimits(patterns=(name,)))
    assert [(candidate.entry.name, candidate.weights, candidate.size) for candidate in chosen] == [(name, "preset", 32)]


@pytest.mark.slow
def test_heads_that_eat_maps_eat_tokens_and_the_source_cannot_be_distilled(save, workplace):
    name, _ = save("vit")
    tokens = {"backbone": {"name": name}, "features.cut": 2, "head.kind": "attention", "training.epochs": 1}
    assert tlkeras.evaluate(tlkeras.train("mine.yaml", set=tokens)).metrics["accuracy"].value >= 0
    distilled = {"backbone": {"name": name}, "finetuning": {"regularizer": {"kind": "lwf"}}}
    (problem,) = tlkeras.check("mine.yaml", distilled).problems
    assert f"come without an ImageNet classifier. Received: {name}" in problem


@pytest.mark.slow
def test_a_recipe_trains_in_stages_from_cached_tokens(save, workplace):
    name, backbone = save("vit")
    stages = [{"name": "head", "unfreeze": 0, "epochs": 1}, {"name": "top", "unfreeze": "1 block", "epochs": 1}]
    result = tlkeras.evaluate(
        tlkeras.train("mine.yaml", set={"backbone": {"name": name}, "finetuning": {"stages": stages, "keep": "last"}})
    )
    model = load_model(Run(Path(result.path)))
    trained = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    encoder = backbone.get_layer("vit_encoder")
    for number, block in enumerate(encoder.encoder_layers, start=1):
        pairs = zip(trained[f"vit_encoder_{block.name}"], block.get_weights(), strict=True)
        assert all(np.array_equal(mine, its) for mine, its in pairs) == (number < 3), block.name
    assert tlkeras.predict(result.path, ["photos/day/0-000.png"])
