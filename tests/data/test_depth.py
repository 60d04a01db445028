"""Images of 16 bits: their range of values, and what it becomes in the decoder."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tlkeras.config.recipe import load_recipe, recipe_to_yaml
from tlkeras.data.decoding import decode, decode_file
from tlkeras.data.depth import choose_depth_range, describe_depth, measure_dataset
from tlkeras.data.headers import Rendering, check_header
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import RecipeError
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.features.extraction import decoding_facts

TWELVE = Rendering(depth_range=(0, 4095))


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ((0, 4095), (0, 4095)),  # 12 bits
        ((3, 4090), (0, 4095)),  # 4087 // 8 = 510: steps of 256
        ((0, 1023), (0, 1023)),
        ((0, 1), (0, 1)),  # a mask
        ((30_000, 31_000), (29_952, 31_039)),  # steps of 64: 468 * 64 and 485 * 64 - 1
        ((0, 32_767), (0, 32_767)),
        ((0, 32_768), None),  # more than half of all values
        ((120, 65_535), None),
        ((60_000, 65_535), (59_904, 65_535)),  # steps of 512: 117 * 512 and 128 * 512 - 1
        ((7, 7), None),
        (None, None),
    ],
)
def test_the_range_is_moved_outwards_to_round_numbers(measured, chosen):
    assert choose_depth_range(measured) == chosen


def to_png(values: np.ndarray, make_png) -> bytes:
    """A PNG of 16 bits with 1 (grey), 2 (with alpha), 3 or 4 channels, uint16 [h, w, c]."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return make_png((width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels]), zlib.compress(rows))


def test_values_by_hand(make_png):
    values = np.array([[0, 100, 2048, 4095], [4096, 65_535, 16, 8]], np.uint16)
    # 255 / 4095 a step: 6.23, 127.53, 0.996, 0.498; what is above is white
    expected = np.array([[0, 6, 128, 255], [255, 255, 1, 0]])
    found = decode(to_png(values[:, :, None], make_png), (2, 4), TWELVE).numpy()
    np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))
    within = decode(to_png(values[:, :, None], make_png), (2, 4), Rendering(depth_range=(1000, 3000))).numpy()
    np.testing.assert_array_equal(within[:, :, 0], [[0, 0, 134, 255], [255, 255, 0, 0]])  # 1048 * 255 / 2000 = 133.6
    high_byte = decode(to_png(values[:, :, None], make_png), (2, 4), Rendering()).numpy()
    np.testing.assert_array_equal(high_byte[:, :, 0], values >> 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("background", ["white", "black", "drop"])
def test_all_modes_of_sixteen_bits(make_png, channels, background):
    values = np.random.default_rng(channels).integers(0, 4096, (9, 7, channels)).astype(np.uint16)
    alpha = np.full((9, 7, 1), 255.0)
    if channels % 2 == 0:
        values[:, :, -1] *= 16
        alpha = np.rint(values[:, :, -1:] / 257) if background != "drop" else alpha
    colours = np.rint(values[:, :, : 3 if channels > 2 else 1] * (255 / 4095))
    shade = 0 if background == "black" else 255
    expected = np.broadcast_to((colours * alpha + shade * (255 - alpha)) / 255, (9, 7, 3))
    look = replace(TWELVE, background=background)
    found = decode(to_png(values, make_png), (9, 7), look).numpy()
    assert np.abs(found - expected).max() <= 0.51


def test_one_transparent_colour(make_png):
    values = np.array([[[9], [4095], [9]]], np.uint16)
    data = to_png(values, make_png)
    transparent = b"\0\0\0\2tRNS\0\t"
    data = data[:33] + transparent + zlib.crc32(transparent[4:]).to_bytes(4, "big") + data[33:]
    assert decode(data, (1, 3), replace(TWELVE, background="white")).numpy()[0, :, 0].tolist() == [255, 255, 255]
    assert decode(data, (1, 3), replace(TWELVE, background="black")).numpy()[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_eight_bits_are_the_same_with_any_range(encode, colours, kind):
    data = encode(Image.fromarray(colours), kind)
    narrow = decode(data, 32, Rendering(depth_range=(10, 20)))
    np.testing.assert_array_equal(narrow, decode(data, 32, Rendering()))


def save_deep(path, values: np.ndarray, kind: str) -> str:
    Image.fromarray(values.astype(np.uint16)).save(path, kind)
    return str(path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_of_twelve_bits_are_not_black(tmp_path, kind):
    values = np.tile(np.arange(0, 4096, 128), (32, 1))
    path = save_deep(tmp_path / "a", values, kind)
    assert decode_file(path, 32, Rendering()).max() == 15
    np.testing.assert_array_equal(decode_file(path, 32, TWELVE)[:, :, 1], np.rint(values * (255 / 4095)))


def describe(folder, values: dict[str, np.ndarray], **rendering) -> Dataset:
    paths = [
        save_deep(folder / name, pixels, "TIFF" if name.endswith("tif") else "PNG") for name, pixels in values.items()
    ]
    dataset = Dataset.of_files(paths, [""] * len(paths), Rendering(**rendering))
    return validate_images(replace(dataset, split=np.array(["train", "train", "test", "train"][: len(paths)], object)))


def test_the_range_is_that_of_the_training_images(tmp_path):
    ramp = np.tile(np.arange(32), (32, 1))
    files = {"a.png": ramp * 100, "b.tif": ramp * 50 + 1000, "c.png": ramp * 2000}
    dataset = describe(tmp_path, files)
    assert [one.code for one in dataset.warnings if "deep" in one.code] == ["deep"] * 3
    assert measure_dataset(dataset) == (0, 62_000)
    assert measure_dataset(dataset, ("train",)) == (0, 3100) and measure_dataset(dataset, ("validation",)) is None
    sentence = "16-bit images hold values of 0 to 62,000 of 65,535: the upper 8 bits are kept (data.depth_range)."
    assert describe_depth(dataset) == sentence
    scaled = replace(dataset, rendering=replace(dataset.rendering, depth_range=(0, 3327)))
    assert "0 to 3,327 are scaled to 8 bits; what lies beyond is clipped" in describe_depth(scaled)


def test_colours_of_sixteen_bits_are_measured_too(tmp_path, make_png):
    values = np.full((4, 4, 3), 77, np.uint16)
    values[0, 0] = (5, 900, 3000)
    (tmp_path / "a.png").write_bytes(to_png(values, make_png))
    dataset = validate_images(Dataset.of_files([str(tmp_path / "a.png")], [""]))
    assert measure_dataset(dataset) == (5, 3000)


def test_images_of_eight_bits_have_no_range_and_their_cache_keys_stay(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    dataset = validate_images(Dataset.of_files([str(tmp_path / "a.png")], [""]))
    assert measure_dataset(dataset) is None and describe_depth(dataset) == ""
    assert decoding_facts(dataset, 32) == {"size": 32, "fit": "stretch", "background": "white", "decoder": 2}
    assert dataset.rendering.to_config() == {"resize": "stretch", "background": "white", "max_pixels": 64_000_000}


def test_a_range_is_part_of_the_cache_keys():
    dataset = Dataset.of_files([], [], TWELVE)
    assert decoding_facts(dataset, 32)["depth"] == (0, 4095)


def test_what_a_run_keeps_reads_back():
    kept = TWELVE.to_config()
    assert Rendering.of({**kept, "depth_range": [0, 4095], "size": 32}) == TWELVE
    assert Rendering.of(Rendering().to_config()) == Rendering()


@pytest.mark.parametrize(
    ("kind", "mode", "deep"),
    [("PNG", "I;16", True), ("TIFF", "I;16", True), ("PNG", "L", False), ("TIFF", "RGB", False), ("BMP", "RGB", False)],
)
def test_headers_tell_the_depth(kind, mode, deep):
    image = Image.fromarray(np.zeros((4, 4), np.uint16)) if mode == "I;16" else Image.new(mode, (4, 4))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    assert check_header(buffer.getvalue()).deep is deep


RECIPE = "data: {source: photos, depth_range: RANGE}\nbackbone: {name: tiny, weights: none}\n"


@pytest.mark.parametrize(("written", "expected"), [("auto", None), ("[0, 4095]", (0, 4095)), ("null", None)])
def test_a_recipe_has_auto_or_two_numbers(tmp_path, written, expected):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("RANGE", written))
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.data.depth_range == expected
    (tmp_path / "b.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path / "b.yaml").data == recipe.data


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[9, 9]", "auto, or a lower and a higher value. Received: 9 and 9"),
        ("[0, 70000]", "less than or equal to 65535"),
        ("[5]", "depth_range"),
        ("wide", "depth_range"),
    ],
)
def test_other_ranges_are_refused(tmp_path, written, expected):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("RANGE", written))
    with pytest.raises(RecipeError, match=expected):
        load_recipe(tmp_path / "a.yaml")


def test_an_export_decodes_what_it_keeps_as_json(make_png):
    """Sizes and ranges come back from JSON as lists; the graph for batches is the decoder's."""
    kept = {"size": [2, 4], "resize": "stretch", "background": "white", "max_pixels": 999, "depth_range": [0, 4095]}
    data = to_png(np.arange(0, 4096, 512, np.uint16).reshape(2, 4, 1), make_png)
    found = Preprocessing.of(kept).decode(np.array([data, data], object)).numpy()
    expected = decode(data, (2, 4), TWELVE).numpy()
    np.testing.assert_array_equal(found, np.stack([expected, expected]))
    assert expected[0, :, 0].tolist() == [0, 32, 64, 96]  # 512 * 255 / 4095 = 31.9
