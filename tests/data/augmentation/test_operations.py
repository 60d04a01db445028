"""Operations on one image, against Pillow and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tlkeras.data.augmentation import operations
from tlkeras.data.augmentation.operations import FILLS, OPERATIONS, Transform, apply_dihedral, apply_transforms
from tlkeras.errors import TlkerasError

NOISE = np.random.default_rng(0).integers(10, 240, (32, 24, 3), dtype=np.uint8)
RED = np.zeros((4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def run(moves: dict[str, float], image: np.ndarray, fill: str = "reflect", number: float = 0.9, place=(0.5, 0.5)):
    """Apply transforms with exactly these values (and positive signs)."""
    asked = [Transform(name, value, exact=True) for name, value in moves.items()]
    draws = tf.constant([[number, *place]] * len(asked), tf.float32)
    return apply_transforms(asked, tf.constant(image), draws, fill).numpy()


def move_row(row: list[int], moves: dict[str, float], fill: str = "reflect", **more) -> list[int]:
    image = np.tile(np.array(row, np.uint8)[None, :, None], (len(row), 1, 3))
    return run(moves, image, fill, **more)[len(row) // 2, :, 0].tolist()


@pytest.mark.parametrize("name", OPERATIONS)
def test_neutral_changes_nothing_and_strongest_something(name, colours):
    row = OPERATIONS[name]
    for image in (NOISE, colours):
        same = run({name: row.neutral}, image, place=(0.3, 0.6))
        assert same.dtype == np.uint8 and np.array_equal(same, image)
    # 0 draws all that is by chance, 0.9 the positive sign
    changed = run({name: row.strongest}, NOISE, number=0.0 if row.draw == "chance" else 0.9, place=(0.3, 0.6))
    assert changed.shape == NOISE.shape and not np.array_equal(changed, NOISE)


def enhance(kind: type, amount: float):
    return lambda image: kind(image).enhance(1 + amount)


@pytest.mark.parametrize(
    ("name", "value", "number", "pillow", "tolerance"),
    [
        ("brightness", 0.4, 0.9, enhance(ImageEnhance.Brightness, 0.4), 1),
        ("brightness", 0.4, 0.1, enhance(ImageEnhance.Brightness, -0.4), 1),
        ("contrast", 0.6, 0.9, enhance(ImageEnhance.Contrast, 0.6), 1),
        ("contrast", 0.6, 0.1, enhance(ImageEnhance.Contrast, -0.6), 1),
        ("saturation", 0.7, 0.9, enhance(ImageEnhance.Color, 0.7), 1),
        ("saturation", 1.0, 0.1, enhance(ImageEnhance.Color, -1.0), 1),
        ("sharpness", 0.9, 0.9, enhance(ImageEnhance.Sharpness, 0.9), 1),
        ("sharpness", 0.9, 0.1, enhance(ImageEnhance.Sharpness, -0.9), 1),
        ("posterize", 3, 0.5, lambda image: ImageOps.posterize(image, 3), 0),
        ("solarize", 100, 0.5, lambda image: ImageOps.solarize(image, 100), 0),
        ("autocontrast", 1, 0.5, ImageOps.autocontrast, 1),
        ("equalize", 1, 0.5, ImageOps.equalize, 0),
        ("invert", 1, 0.5, ImageOps.invert, 0),
    ],
)
def test_recolouring_agrees_with_pillow(name, value, number, pillow, tolerance, colours):
    flat = np.full((9, 9, 3), 77, np.uint8)  # one value: nothing to stretch
    for image in (NOISE, colours, np.repeat(colours[:, :, :1], 3, axis=2), flat):
        expected = np.asarray(pillow(Image.fromarray(image))).astype(int)
        assert np.abs(run({name: value}, image, number=number) - expected).max() <= tolerance


@pytest.mark.parametrize("degrees", [17, 90, 180])
def test_rotation_agrees_with_pillow(degrees, colours):
    expected = np.asarray(Image.fromarray(colours).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
    inside = np.hypot(*(np.mgrid[0:32, 0:32] - 15.5)) < 15
    assert np.abs(run({"rotate": degrees}, colours) - expected)[inside].max() <= 1


def test_quarter_turns_are_exact(colours):
    assert np.array_equal(run({"rotate": 90}, colours), np.rot90(colours))
    for quarters, place in ((1, 0.0), (2, 0.5), (3, 0.99)):
        turned = run({"turn": 1}, colours, number=0.0, place=(place, 0.0))
        assert np.array_equal(turned, np.rot90(colours, quarters))


def test_orientations_are_the_dihedral_group(colours):
    elements = [apply_dihedral(tf.constant(colours), element).numpy() for element in range(8)]
    assert np.array_equal(elements[0], colours)
    assert np.array_equal(elements[1], colours[:, ::-1]) and np.array_equal(elements[2], colours[::-1])
    assert np.array_equal(elements[3], np.rot90(colours, 2)) and np.array_equal(elements[4], np.swapaxes(colours, 0, 1))
    contents = {element.tobytes() for element in elements}
    assert len(contents) == 8
    assert {
        apply_dihedral(tf.constant(one), tf.constant(by)).numpy().tobytes() for one in elements for by in range(8)
    } == contents


@pytest.mark.parametrize(
    ("fill", "expected"), [("reflect", [20, 10, 10, 20]), ("nearest", [10, 10, 10, 20]), ("constant", [0, 0, 10, 20])]
)
def test_shifts_and_what_comes_in(fill, expected):
    assert move_row([10, 20, 30, 40], {"translate_x": 0.5}, fill) == expected
    # one and a half pixels to the left are two
    assert move_row([10, 20, 30, 40], {"translate_x": 0.375}, fill, number=0.1)[:2] == [30, 40]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("matrix", [[1, 1, 5, -7], [-1, 1, 3, 0], [1, -1, -30, 4], [-1, -1, 2, 31]])
def test_moved_whole_pixels_are_what_interpolation_gives(matrix, fill):
    across, down, right, below = matrix
    full = tf.constant([[across, 0, right], [0, down, below], [0, 0, 1]], tf.float32)
    moved = operations._move(tf.constant(NOISE), full, fill)
    assert np.array_equal(moved, operations._interpolate(tf.constant(NOISE), full, fill))


def test_warps_by_hand():
    ramp = [0, 10, 20, 30, 40, 50, 60, 70]
    assert move_row(ramp, {"flip_horizontal": 1}, number=0.0) == ramp[::-1]
    # a window of half the side: pixel i shows place i / 2 - 1/4 of it, rounded upwards from a half
    assert move_row(ramp, {"crop": 0.5}, place=(0.0, 0.0))[1:] == [3, 8, 13, 18, 23, 28, 33]
    assert move_row(ramp, {"crop": 0.5}, place=(1.0, 0.0))[:-1] == [38, 43, 48, 53, 58, 63, 68]
    assert move_row(ramp, {"zoom": 0.6}, number=0.9)[2:6] == [26, 32, 38, 44]  # 35 + 10 (i - 3.5) / 1.6
    three = np.arange(9, dtype=np.uint8).reshape(3, 3, 1).repeat(3, axis=2) * 10
    assert run({"shear_x": 1}, three, "nearest")[..., 0].tolist() == [[0, 0, 10], [30, 40, 50], [70, 80, 80]]
    assert run({"shear_y": 1}, three, "nearest")[..., 0].tolist() == [[0, 10, 50], [0, 40, 80], [30, 70, 80]]


def test_warps_in_a_row_are_one_warp(colours):
    """Order counts, and whole pixels stay exact: shift by 8, then mirror, then turn."""
    draws = tf.constant([[0.9, 0, 0], [0.0, 0, 0], [0.9, 0, 0], [0.0, 0, 0]])
    names = {"translate_x": 0.25, "flip_horizontal": 1, "rotate": 90, "invert": 1}
    moves = [Transform(name, value, exact=True) for name, value in names.items()]
    shifted = np.concatenate([colours[:, 7::-1], colours[:, :-8]], axis=1)
    expected = 255 - np.rot90(shifted[:, ::-1])
    assert np.array_equal(apply_transforms(moves, tf.constant(colours), draws, "reflect"), expected)


def test_hue_turns_the_circle_of_colours():
    assert run({"hue": 1 / 3}, RED)[0, 0].tolist() == [0, 255, 0]
    assert run({"hue": 1 / 3}, RED, number=0.1)[0, 0].tolist() == [0, 0, 255]


def test_erased_box():
    erased = run({"erase": 0.5}, RED.repeat(2, axis=0).repeat(2, axis=1), place=(0.0, 0.999))
    assert np.all(erased[4:, :4] == 128) and np.count_nonzero(np.all(erased == 128, axis=2)) == 16


def test_amounts():
    def amounts(name: str, value: float, exact: bool = False) -> list[float]:
        return [round(float(Transform(name, value, exact).draw_amount(tf.constant(u))), 4) for u in (0.0, 0.25, 0.75)]

    assert amounts("rotate", 10) == [-10, -5, 5] and amounts("rotate", 10, exact=True) == [-10, -10, 10]
    assert amounts("crop", 0.6) == [1, 0.9, 0.7] and amounts("crop", 0.6, exact=True) == [0.6] * 3
    assert amounts("invert", 0.5) == [1, 1, 0]


def test_unknown_operation_and_values_out_of_range():
    with pytest.raises(TlkerasError, match="Unknown augmentation operation. Received: 'rotat'. Did you mean 'rotate'"):
        Transform("rotat", 10)
    for name, value, limits in (("rotate", 181, "0 to 180"), ("crop", 1.5, "0.05 to 1"), ("posterize", 0, "1 to 8")):
        with pytest.raises(TlkerasError, match=f"The value of {name} is not a number from {limits}. Received: {value}"):
            Transform(name, value)
    for value in (True, "10", None, float("nan")):
        with pytest.raises(TlkerasError, match="The value of rotate is not a number"):
            Transform("rotate", value)
