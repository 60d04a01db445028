"""Augmentations of one image, uint8 RGB, of the same size: warps move pixels, several with one interpolation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import tensorflow as tf

from tlkeras.errors import TlkerasError, suggest

FILLS = ("reflect", "nearest", "constant")
_LUMA = (0.299, 0.587, 0.114)  # grey from red, green and blue, ITU-R BT.601

Matrix = Sequence[Sequence[Any]]
"""Two rows of three numbers: from (x, y, 1) in the result to (x, y) in the image, in pixels from its centre."""


@dataclass(frozen=True)
class Operation:
    """One row of `OPERATIONS`: a warp or a recolouring, and the amount that changes nothing (neutral).

    A policy's values v go to `strongest`; the amount is drawn "between" neutral and v, "around" zero (-v to v), or by
    "chance" (1 with probability v, else 0). A warp makes a `Matrix` of amount, place (two numbers in [0, 1)) and size
    [height, width]; a recolouring an image of image, amount, place.
    """

    neutral: float
    strongest: float
    draw: Literal["between", "around", "chance"]
    warp: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Matrix] | None = None
    recolour: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None


@dataclass(frozen=True)
class Transform:
    """An operation of a policy with its strength, see `Operation.draw`; a TlkerasError if that is out of its range.

    An `exact` value is used itself, with a random sign where there is one, instead of drawing an amount up to it.
    """

    operation: str
    value: float
    exact: bool = False

    def __post_init__(self) -> None:
        name = self.operation
        if name not in OPERATIONS:
            raise TlkerasError("Unknown augmentation operation.", repr(name), suggest(str(name), OPERATIONS))
        low, high = sorted((OPERATIONS[name].neutral, OPERATIONS[name].strongest))
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not low <= self.value <= high:
            raise TlkerasError(f"The value of {name} is not a number from {low:g} to {high:g}.", repr(self.value))

    def draw_amount(self, number: tf.Tensor) -> tf.Tensor:
        """The amount for a number drawn from [0, 1), a float32 scalar."""
        row, value = OPERATIONS[self.operation], float(self.value)
        if row.draw == "chance":
            return tf.cast(number < value, tf.float32)
        if row.draw == "around":
            return tf.where(number < 0.5, -value, value) if self.exact else value * (2 * number - 1)
        return tf.constant(value) if self.exact else row.neutral + (value - row.neutral) * number


def apply_transforms(transforms: Sequence[Transform], image: tf.Tensor, draws: tf.Tensor, fill: str) -> tf.Tensor:
    """Apply transforms in order; `draws` [transforms or more, 3], in [0, 1), are for amount and place of each."""
    matrix = None
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    for transform, draw in zip(transforms, tf.unstack(draws)[: len(transforms)], strict=True):
        row, amount, place = OPERATIONS[transform.operation], transform.draw_amount(draw[0]), draw[1:]
        if row.warp is not None:
            rows = [*row.warp(amount, place, size), (0, 0, 1)]
            further = tf.stack([tf.stack([tf.cast(value, tf.float32) for value in numbers]) for numbers in rows])
            matrix = further if matrix is None else matrix @ further
            continue
        if matrix is not None:
            image, matrix = warp(image, matrix, fill), None
        assert row.recolour is not None
        recolour = partial(row.recolour, image, amount, place)
        image = tf.cond(amount > 0, recolour, lambda kept=image: kept) if row.draw == "chance" else recolour()
    return image if matrix is None else warp(image, matrix, fill)


def warp(image: tf.Tensor, matrix: tf.Tensor, fill: str = "reflect") -> tf.Tensor:
    """Move pixels by an affine map, with bilinear interpolation: uint8 [h, w, 3] -> uint8 [h, w, 3].

    The map is a `Matrix` and the row (0, 0, 1), float32 [3, 3]; one that only mirrors and shifts moves whole pixels,
    five times as fast. Outside the image "reflect" mirrors it, "nearest" repeats its edge, "constant" is black.
    """
    straight = tf.reduce_all(tf.abs(matrix[:2, :2]) == tf.eye(2))
    moved = tf.cond(straight, lambda: _move(image, matrix, fill), lambda: _interpolate(image, matrix, fill))
    return tf.ensure_shape(moved, image.shape)


def _move(image: tf.Tensor, matrix: tf.Tensor, fill: str) -> tf.Tensor:
    for axis, place in ((0, 1), (1, 0)):
        length = tf.shape(image)[axis]
        mirrored = matrix[place, place] < 0
        positions = tf.range(length) + tf.cast(tf.round(matrix[place, 2] * matrix[place, place]), tf.int32)
        positions = tf.where(mirrored, length - 1 - positions, positions)
        inside = (positions >= 0) & (positions < length)
        if fill == "reflect":
            folded = positions % (2 * length)
            positions = tf.minimum(folded, 2 * length - 1 - folded)
        image = tf.gather(image, tf.clip_by_value(positions, 0, length - 1), axis=axis)
        if fill == "constant":
            image *= tf.cast(tf.reshape(inside, [-1, 1, 1] if axis == 0 else [1, -1, 1]), tf.uint8)
    return image


def _interpolate(image: tf.Tensor, matrix: tf.Tensor, fill: str) -> tf.Tensor:
    shape = tf.shape(image)[:2]
    centre = tf.cast(shape - 1, tf.float32)[::-1] / 2
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    offset = centre - tf.linalg.matvec(linear, centre) + shift
    flat = tf.reshape(tf.concat([linear, offset[:, None]], axis=1), [6])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],  # as uint8 it would cut off fractions, and darken
        transforms=tf.concat([flat, [0.0, 0.0]], axis=0)[None],
        output_shape=shape,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill.upper(),
    )
    return tf.cast(moved[0] + 0.5, tf.uint8)


def apply_dihedral(image: tf.Tensor, element: int | tf.Tensor) -> tf.Tensor:
    """One of the eight orientations of an image, uint8 [h, w, 3], above 3 [w, h, 3]; 0 is the image itself.

    Bits of the element: 1 mirrors left and right, 2 up and down (3 turns by a half), 4 first swaps rows and columns.
    """
    if isinstance(element, int) and element == 0:
        return image
    bits = tf.cast(tf.bitwise.bitwise_and(tf.cast(element, tf.int32), [4, 2, 1]), tf.bool)
    turned = tf.cond(bits[0], lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    turned = tf.raw_ops.Reverse(tensor=turned, dims=tf.stack([bits[1], bits[2], False]))
    square = image.shape[0] == image.shape[1]
    return tf.ensure_shape(turned, image.shape if square else [None, None, image.shape[2]])


def _rotate(degrees: tf.Tensor, place: tf.Tensor, size: tf.Tensor) -> Matrix:
    """Counter-clockwise."""
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    return [(cos, -sin, 0), (sin, cos, 0)]


def _turn(amount: tf.Tensor, place: tf.Tensor, size: tf.Tensor) -> Matrix:
    """One to three quarters, counter-clockwise, exactly."""
    quarters = tf.cast(amount * (1 + tf.floor(3 * place[0])), tf.int32)
    cos, sin = tf.gather([1.0, 0.0, -1.0, 0.0], quarters), tf.gather([0.0, 1.0, 0.0, -1.0], quarters)
    return [(cos, -sin, 0), (sin, cos, 0)]


def _crop(side: tf.Tensor, place: tf.Tensor, size: tf.Tensor) -> Matrix:
    """Enlarge a window anywhere in the image; side is that of the window, as a fraction of the image's."""
    shift = (1 - side) * (place - 0.5) * size[::-1]
    return [(side, 0, shift[0]), (0, side, shift[1])]


def _as_floats(change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A recolouring from a change of float32 pixels by an amount."""
    return lambda image, a, _: tf.saturate_cast(change(tf.cast(image, tf.float32), a) + 0.5, tf.uint8)


@_as_floats
def _contrast(pixels: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    mean = tf.tensordot(tf.reduce_mean(tf.reshape(pixels, [-1, 3]), axis=0), tf.constant(_LUMA), 1)
    return mean + (1 + amount) * (pixels - mean)


@_as_floats
def _saturate(pixels: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Blend with grey, a linear map of the colours."""
    matrix = (1 + amount) * tf.eye(3) - amount * tf.constant(_LUMA)[:, None]
    return tf.reshape(tf.reshape(pixels, [-1, 3]) @ matrix, tf.shape(pixels))


@_as_floats
def _sharpen(pixels: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay."""
    inner = pixels[1:-1, 1:-1]
    kernel = tf.reshape([1.0, 1, 1, 1, 5, 1, 1, 1, 1], [3, 3, 1, 1]) / 13
    smooth = tf.nn.depthwise_conv2d(pixels[None], tf.tile(kernel, [1, 1, 3, 1]), [1, 1, 1, 1], "VALID")[0]
    change = tf.pad(amount * (inner - smooth), [[1, 1], [1, 1], [0, 0]])
    return pixels + change


def _posterize(image: tf.Tensor, bits: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    dropped = tf.cast(8 - tf.round(bits), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, dropped), dropped)


def _solarize(image: tf.Tensor, threshold: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Invert what is at least as bright as the threshold."""
    bright = tf.cast(image, tf.float32) >= threshold
    return tf.bitwise.bitwise_xor(image, tf.cast(bright, tf.uint8) * 255)


def _stretch(image: tf.Tensor, amount: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Stretch each channel that is not of one value to 0-255."""
    extremes = (reduce(reduce(image, axis=0), axis=0) for reduce in (tf.reduce_min, tf.reduce_max))
    low, high = (tf.cast(extreme, tf.float32) for extreme in extremes)
    varies = high > low
    scale = tf.where(varies, 255 / (high - low), 1)
    return tf.saturate_cast((tf.cast(image, tf.float32) - tf.where(varies, low, 0)) * scale + 0.5, tf.uint8)


def _equalize(image: tf.Tensor, amount: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Make each channel's histogram flat as Pillow's `equalize` does."""
    channels = tf.cast(tf.transpose(tf.reshape(image, [-1, 3])), tf.int32)
    counts = tf.math.bincount(channels, minlength=256, maxlength=256, axis=-1)
    brightest = tf.reduce_max(channels, axis=1)
    step = (tf.shape(channels)[1] - tf.gather(counts, brightest, batch_dims=1)) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    levels = tf.minimum((below + step[:, None] // 2) // tf.maximum(step, 1)[:, None], 255)
    levels = tf.where(step[:, None] > 0, levels, tf.range(256))
    flat = tf.gather(tf.cast(levels, tf.uint8), channels, batch_dims=1)
    return tf.reshape(tf.transpose(flat), tf.shape(image))


def _erase(image: tf.Tensor, side: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Paint a box inside the image grey; side is that of the box, as a fraction of the image's."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    box = tf.round(side * size)
    start = tf.round(place[::-1] * (size - box))
    down, across = (
        (at >= first) & (at < first + count)
        for at, first, count in zip(map(tf.range, tf.unstack(size)), tf.unstack(start), tf.unstack(box), strict=True)
    )
    return tf.where((down[:, None] & across)[..., None], tf.constant(128, tf.uint8), image)


OPERATIONS: Mapping[str, Operation] = {
    "flip_horizontal": Operation(0, 1, "chance", warp=lambda a, *_: [(1 - 2 * a, 0, 0), (0, 1, 0)]),
    "flip_vertical": Operation(0, 1, "chance", warp=lambda a, *_: [(1, 0, 0), (0, 1 - 2 * a, 0)]),
    "turn": Operation(0, 1, "chance", warp=_turn),
    "rotate": Operation(0, 180, "around", warp=_rotate),
    "shear_x": Operation(0, 1, "around", warp=lambda a, *_: [(1, a, 0), (0, 1, 0)]),
    "shear_y": Operation(0, 1, "around", warp=lambda a, *_: [(1, 0, 0), (a, 1, 0)]),
    "translate_x": Operation(0, 1, "around", warp=lambda a, _, size: [(1, 0, -a * size[1]), (0, 1, 0)]),
    "translate_y": Operation(0, 1, "around", warp=lambda a, _, size: [(1, 0, 0), (0, 1, -a * size[0])]),
    "zoom": Operation(0, 0.9, "around", warp=lambda a, *_: [(1 / (1 + a), 0, 0), (0, 1 / (1 + a), 0)]),
    "crop": Operation(1, 0.05, "between", warp=_crop),
    "brightness": Operation(0, 1, "around", recolour=_as_floats(lambda pixels, a: pixels * (1 + a))),
    "contrast": Operation(0, 1, "around", recolour=_contrast),
    "saturation": Operation(0, 1, "around", recolour=_saturate),
    "hue": Operation(0, 0.5, "around", recolour=_as_floats(lambda rgb, a: tf.image.adjust_hue(rgb / 255, a) * 255)),
    "sharpness": Operation(0, 1, "around", recolour=_sharpen),
    "posterize": Operation(8, 1, "between", recolour=_posterize),
    "solarize": Operation(256, 0, "between", recolour=_solarize),
    "autocontrast": Operation(0, 1, "chance", recolour=_stretch),
    "equalize": Operation(0, 1, "chance", recolour=_equalize),
    "invert": Operation(0, 1, "chance", recolour=lambda image, *_: 255 - image),
    "erase": Operation(0, 1, "between", recolour=_erase),
}
