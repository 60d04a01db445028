"""Several depths and backbones: found by name, fused as the formula says, trained, asked and exported as one model."""

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.builder import build_backbone
from tlkeras.errors import RecipeError
from tlkeras.features.pooling import concatenate_backbones, extract_taps, find_taps

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny():
    return build_backbone("tiny", size=32, weights="none")


def test_taps_are_blocks_by_name_or_index_from_input_to_output(tiny):
    blocks = find_blocks(tiny)
    found = find_taps(tiny, [-1, blocks[0].name])
    assert [cut.name for cut in found] == [blocks[0].cut.name, blocks[-1].cut.name]
    with pytest.raises(RecipeError) as caught:
        find_taps(tiny, [0, blocks[0].name, 99, "nothing"])
    for part in ("listed already", "no block or cut 99. It has blocks 0 to", "no block or cut 'nothing'"):
        assert part in str(caught.value)


def test_each_depth_has_length_one_in_the_fused_vector(tiny):
    first, last = find_taps(tiny, [0, -1])
    fused = extract_taps(tiny, [first, last], "average")(IMAGES)
    maps = keras.Model(tiny.input, [first.tensor, last.tensor])(IMAGES)
    parts = [np.mean(values, axis=(1, 2)) for values in maps]
    expected = np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts])
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    alone = extract_taps(tiny, [last], "average")(IMAGES)
    np.testing.assert_allclose(alone, parts[1], rtol=1e-5)


def test_backbones_are_concatenated(tiny):
    other = build_backbone("tiny", size=32, weights="none")
    vectors = [extract_taps(model, find_taps(model, [-1]), "max") for model in (tiny, other)]
    both = concatenate_backbones(vectors[0], vectors[1:])(IMAGES)
    expected = [np.asarray(vector(IMAGES)) for vector in vectors]
    expected = np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in expected])
    np.testing.assert_allclose(both, expected, atol=1e-5)


@pytest.mark.slow
def test_a_fused_run_exports_as_one_model(workplace):
    features = {"taps": [0, -1], "backbones": [{"name": "tiny", "weights": "none"}], "pooling": "both"}
    result = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"features": features, "head": {"kind": "ridge"}}))
    assert result.metrics["accuracy"].value > 0.9
    assert set(result.main.late_fusion) == {"mean", "stacking"}
    assert tlkeras.export(result.path, workplace / "models").difference < 1e-3
    again = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"features": features, "head": {"kind": "lda"}}))
    assert again.features["computed"] == 0  # another head on the same features


def test_what_cannot_be_fused_is_refused(workplace):
    for change, message in (
        ({"finetuning": {}}, "finetuning needs one backbone at one depth"),
        ({"head": {"kind": "attention"}}, "head.kind attention takes one map"),
        ({"features.cut": "block1"}, "taps replace cut: remove cut"),
        ({"features.backbones": [{"name": "tiny", "size": 64}]}, "remove their own size"),
    ):
        with pytest.raises(RecipeError, match=message):
            tlkeras.check("mine.yaml", {"features.taps": [0, 1], **change})
    (problem,) = tlkeras.check("mine.yaml", {"features.taps": [0, 77]}).problems
    assert "features.taps: tiny has no block or cut 77" in problem
