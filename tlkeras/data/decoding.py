"""Bytes to uint8 RGB of one size: the one decoder, the same graph in training and inside an exported model.

The content decides, not the name. Grey is repeated to RGB, palettes are looked up, of 16 bits the high byte is kept or
a range scaled, CMYK is converted as libjpeg does, alpha is composited (of a GIF it is dropped: `transcoding` makes a
PNG of it). The EXIF orientation of JPEGs alone is applied. Shrinking averages areas; large JPEGs are shrunk by 2, 4 or
8 within the inverse DCT first. Enlarging is bilinear.
"""

from functools import partial

import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import ImageSize, height_and_width
from tlkeras.data.augmentation.operations import apply_dihedral
from tlkeras.data.headers import DepthRange, ImageError, Look, Rendering, read_image
from tlkeras.data.transcoding import to_decodable
from tlkeras.errors import DataError, suggest

RESIZE_MODES = ("stretch", "crop", "pad")
_SHADES = {"white": 255, "black": 0}  # of `Rendering.background`; dropped alpha has none

# Part of the key of everything computed from decoded pixels: raise it whenever the same bytes give other pixels.
VERSION = 2

_MAGIC = [b"\xff\xd8", b"\x89P", b"RI", b"BM"]  # no tensor: TensorFlow joins a cluster only before it has made one

# For rare branches. TensorFlow inlines both sides of a condition and visits every operation of the side not taken; a
# function that is not inlined is a single one.
_rare = tf.function(autograph=False, experimental_attributes={"_noinline": True})


def decode(encoded: tf.Tensor, size: ImageSize, rendering: Look) -> tf.Tensor:
    """Decode one image: scalar string -> uint8 [height, width, 3], in pure TensorFlow operations.

    "stretch" scales both sides; "crop" takes the largest central part of the size's shape; "pad" shows the whole image
    between black bars. A DataError is raised for other words; bytes that cannot be decoded are an InvalidArgumentError
    when run.
    """
    look = Rendering.of(rendering)
    resize, shade = look.resize, _SHADES.get(look.background)
    _check_resize(resize)
    upright, is_square = height_and_width(size), isinstance(size, int)

    def find_target(orientation: tf.Tensor) -> tf.Tensor:  # height and width before the image is turned
        return tf.constant(upright) if is_square else tf.where(orientation > 4, upright[::-1], upright)

    def read_jpeg() -> tuple[tf.Tensor, tf.Tensor]:
        orientation = _read_orientation(encoded)
        return _decode_jpeg(encoded, find_target(orientation), resize), orientation

    kind = tf.reduce_sum(tf.where(tf.strings.substr(encoded, 0, 2) == _MAGIC, [1, 2, 3, 4], 0))
    pixels, orientation = tf.switch_case(
        kind,
        [
            lambda: (_decode_other(encoded), 1),
            read_jpeg,
            lambda: (_decode_png(encoded, shade, look.depth_range), 1),
            lambda: (_decode_webp(encoded, shade), 1),
            lambda: (_decode_bmp(encoded, shade), 1),
        ],
    )
    # Three channels from the start: TensorFlow averages them as fast as one, and is slow to repeat one afterwards.
    pixels = resize_image(tf.ensure_shape(pixels, [None, None, 3]), find_target(orientation), resize)
    # Turned after shrinking, where it is cheap; `resize_image` is symmetric, so the order is free.
    pixels = tf.cond(orientation > 1, lambda: _turn(pixels, orientation), lambda: pixels)
    return tf.ensure_shape(pixels, [*upright, 3])


def decode_file(path: str, size: ImageSize, rendering: Look) -> np.ndarray:
    """Decode one file eagerly: uint8 [height, width, 3]; an ImageError names the path and the reason."""
    data = read_image(path)
    try:
        data = to_decodable(data, Rendering.of(rendering).max_pixels)
        return decode(tf.constant(data), size, rendering).numpy()
    except ImageError as error:
        raise ImageError(error.code, error.reason, path) from None
    except tf.errors.OpError:
        raise ImageError("damaged", "its pixels cannot be decoded: it is cut off or damaged", path) from None


def resize_image(pixels: tf.Tensor, target: tf.Tensor, resize: str) -> tf.Tensor:
    """Resize an image: uint8 [h, w, channels] -> uint8 [*target, channels]; the target is int32 [2].

    Opposite sides are treated alike: where a margin is odd, "crop" takes a pixel more, "pad" shows one more or less.
    """
    _check_resize(resize)
    target = tf.convert_to_tensor(target)
    shape = tf.shape(pixels)[:2]
    if resize == "stretch":
        return _scale(pixels, target)
    across = shape * target[::-1]  # compares the shapes: equal where height : width is that of the target
    if resize == "crop":
        part = tf.cast(tf.round(tf.reduce_min(across) / target[::-1]), tf.int32)
        top, left = tf.unstack((shape - tf.maximum(part, 1)) // 2)
        return _scale(pixels[top : shape[0] - top, left : shape[1] - left], target)
    fitted = tf.where(across[0] >= across[1], 0, 1)  # the side that fills the target
    ideal = tf.cast(shape, tf.float32) * tf.cast(target[fitted], tf.float32) / tf.cast(shape[fitted], tf.float32)
    bars = tf.cast(tf.round((tf.cast(target, tf.float32) - tf.maximum(ideal, 1)) / 2), tf.int32)
    inner = tf.maximum(target - 2 * bars, 2 - target % 2)
    bars = (target - inner) // 2
    margins = tf.concat([tf.stack([bars, bars], axis=1), [[0, 0]]], axis=0)
    return tf.pad(_scale(pixels, inner), margins)


def _check_resize(resize: str) -> None:
    if resize not in RESIZE_MODES:
        raise DataError("Unknown way to resize images.", repr(resize), suggest(resize, RESIZE_MODES))


def _scale(pixels: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Average areas along sides that shrink, interpolate along sides that grow."""
    shrinks = tf.reduce_all(tf.shape(pixels)[:2] >= target)
    scaled = tf.cond(shrinks, lambda: _average(pixels, target)[0], lambda: _grow(pixels, target))
    return tf.cast(tf.round(scaled), tf.uint8)


def _average(pixels: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ResizeArea(images=pixels[None], size=target)


@_rare
def _grow(pixels: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Scale where at least one side grows: shrink the other one first."""
    shrunk = _average(pixels, tf.minimum(tf.shape(pixels)[:2], target))
    return tf.image.resize(shrunk, target, method="bilinear")[0]


@_rare
def _turn(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Apply an EXIF orientation, 1 to 8."""
    return apply_dihedral(pixels, tf.gather([0, 0, 1, 3, 2, 4, 5, 7, 6], orientation))


def _decode_jpeg(encoded: tf.Tensor, target: tf.Tensor, resize: str) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(encoded)[:2]
    larger = shape >= tf.constant([[2], [4], [8]]) * target
    enough = tf.reduce_any(larger, axis=1) if resize == "pad" else tf.reduce_all(larger, axis=1)
    decoders = [partial(tf.io.decode_jpeg, encoded, channels=3, ratio=ratio) for ratio in (1, 2, 4, 8)]
    return tf.switch_case(tf.reduce_sum(tf.cast(enough, tf.int32)), decoders)


@_rare
def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _decode_png(encoded: tf.Tensor, shade: int | None, depth_range: DepthRange | None) -> tf.Tensor:
    def read(channels: int) -> tf.Tensor:
        plain = partial(tf.io.decode_png, encoded, channels=channels)
        if depth_range is None:
            return plain()
        is_deep = tf.strings.substr(encoded, 24, 1) == b"\x10"
        return tf.cond(is_deep, lambda: _decode_deep_png(encoded, channels, depth_range), plain)

    opaque = partial(read, 3)
    if shade is None:
        return opaque()
    # Types 4 and 6 have alpha. Others may have transparent colours, but not if the pixels follow at once.
    colour_type = tf.strings.substr(encoded, 25, 1)
    seen = (colour_type == b"\x04") | (colour_type == b"\x06")
    plain = tf.strings.substr(encoded, 37, 4) == b"IDAT"
    has_alpha = tf.cond(seen | plain, lambda: seen, lambda: _has_transparent_colours(encoded))
    return tf.cond(has_alpha, lambda: _composite(read(4), shade), opaque)


@_rare
def _decode_deep_png(encoded: tf.Tensor, channels: int, depth_range: DepthRange) -> tf.Tensor:
    """Decode a PNG of 16 bits, the range of its colours scaled to 0 to 255, alpha as it is: uint8 [h, w, channels]."""
    values = np.arange(65_536, dtype=np.float64)
    low, high = depth_range
    scaled = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    pixels = tf.cast(tf.io.decode_png(encoded, channels=channels, dtype=tf.uint16), tf.int32)
    colours = tf.gather(tf.constant(scaled), pixels[:, :, :3])
    if channels == 3:
        return colours
    return tf.concat([colours, tf.cast((pixels[:, :, 3:] + 128) // 257, tf.uint8)], axis=2)


@_rare
def _has_transparent_colours(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a PNG has the chunk tRNS, which stands before the pixels."""
    size = tf.strings.length(encoded)

    def is_before(at: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(tf.strings.substr(encoded, at + 4, 4) != [b"tRNS", b"IDAT", b"IEND"])

    def skip(at: tf.Tensor) -> list[tf.Tensor]:  # beyond the end, where the next chunk cannot be read
        length = tf.io.decode_raw(tf.strings.substr(encoded, at, 4), tf.int32, little_endian=False)[0]
        return [at + 12 + tf.clip_by_value(length, 0, size)]

    at = tf.while_loop(is_before, skip, [tf.constant(33)])[0]
    return tf.strings.substr(encoded, at + 4, 4) == b"tRNS"


@_rare
def _composite(pixels: tf.Tensor, shade: int | None) -> tf.Tensor:
    """RGBA over a grey background, uint8 [h, w, 4] -> [h, w, 3]; None drops alpha."""
    if shade is None:
        return pixels[:, :, :3]
    wide = tf.cast(pixels, tf.uint16)
    alpha = wide[:, :, 3:]
    mixed = wide[:, :, :3] * alpha + tf.cast(shade, tf.uint16) * (255 - alpha)
    return tf.cast((mixed + 127) // 255, tf.uint8)


@_rare
def _decode_webp(encoded: tf.Tensor, shade: int | None) -> tf.Tensor:
    """Decode the first frame. TensorFlow 2.21 must be told whether there is alpha (`channels=0` writes past its buffer)
    and refuses animations without: they are unpacked to RGBA in any case, so their header is made to say that they have
    alpha.
    """
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, 30) + tf.constant(b"\0" * 30), tf.uint8)
    chunk = tf.strings.substr(encoded + b"\0" * 16, 12, 4)
    flags = tf.where(chunk == b"VP8X", head[20], tf.constant(0, tf.uint8))
    lossless_alpha = (chunk == b"VP8L") & _has_bit(head[24], 0x10)
    animated = _has_bit(flags, 0x02)
    marked = tf.cond(
        animated,
        lambda: tf.strings.join([tf.strings.substr(encoded, 0, 20), b"\x12", tf.strings.substr(encoded, 21, -1)]),
        lambda: encoded,
    )
    return tf.cond(
        animated | lossless_alpha | _has_bit(flags, 0x10),
        lambda: _composite(tf.io.decode_webp(marked, channels=4)[0], shade),
        lambda: tf.io.decode_webp(marked, channels=3)[0],
    )


def _has_bit(byte: tf.Tensor, bit: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(byte, tf.constant(bit, byte.dtype)) > 0


@_rare
def _decode_bmp(encoded: tf.Tensor, shade: int | None) -> tf.Tensor:
    """Decode a BMP; TensorFlow returns the indices of a palette, which are looked up here. It takes every BMP for one
    of bytes in the order B, G, R, A, without compression: others get no pixels.
    """
    start = tf.strings.substr(tf.strings.substr(encoded, 0, 70) + b"\0" * 70, 14, 56)
    fields = tf.io.decode_raw(start, tf.int32, little_endian=True)
    head, bits, compression, masks = fields[0], fields[3] // 65536, fields[4], fields[10:14]
    masked = (compression == 3) & (bits == 32) & tf.reduce_all(masks[:3] == [0xFF0000, 0xFF00, 0xFF])
    pixels = tf.io.decode_bmp(tf.cond((compression == 0) | masked, lambda: encoded, lambda: tf.constant(b"")))

    def look_up() -> tf.Tensor:
        table = tf.strings.substr(tf.strings.substr(encoded, 14 + head, 1024) + b"\0" * 1024, 0, 1024)
        colours = tf.reshape(tf.io.decode_raw(table, tf.uint8), [256, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(pixels[:, :, 0], tf.int32))

    has_alpha = masked & (head >= 56) & (masks[3] == -(1 << 24))
    return tf.case(
        [(tf.shape(pixels)[2] == 1, look_up), (has_alpha, lambda: _composite(pixels, shade))],
        default=lambda: pixels[:, :, :3],
    )


def _read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """EXIF orientation of a JPEG, 1 to 8; 1 if there is none in its first 64 KiB. EXIF 2.32, 4.5 and 4.6: the segment
    APP1 "Exif" stands among the application segments at the start; it holds a TIFF header, whose first directory has
    the orientation as tag 0x0112.
    """
    start = tf.strings.substr(encoded, 0, 22) + b"\0" * 22
    # The two usual beginnings without EXIF are seen at once: tables first, or the 16 bytes of JFIF and then tables.
    second, third = tf.strings.substr(start, 2, 2) == b"\xff\xdb", tf.strings.substr(start, 20, 2) == b"\xff\xdb"
    plain = second | ((tf.strings.substr(start, 2, 4) == b"\xff\xe0\x00\x10") & third)
    return tf.cond(plain, lambda: 1, lambda: _search_orientation(encoded))


@_rare
def _search_orientation(encoded: tf.Tensor) -> tf.Tensor:
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 65536) + b"\0" * 64, tf.uint8), tf.int32)
    last = tf.shape(data)[0] - 32

    def is_exif(at: tf.Tensor) -> tf.Tensor:
        # FF E1, two bytes of length, "Exif", two zeros
        return tf.reduce_all(tf.gather(data[at : at + 10], [0, 1, 4, 5, 6, 7]) == [0xFF, 0xE1, 69, 120, 105, 102])

    def is_before(at: tf.Tensor) -> tf.Tensor:
        marker = data[at + 1]
        application = (data[at] == 0xFF) & ((marker == 0xFE) | ((marker >= 0xE0) & (marker <= 0xEF)))
        return (at < last) & application & ~is_exif(at)

    def skip(at: tf.Tensor) -> list[tf.Tensor]:
        return [tf.minimum(at + 2 + data[at + 2] * 256 + data[at + 3], last)]

    at = tf.while_loop(is_before, skip, [tf.constant(2)])[0]
    return tf.cond(is_exif(at), lambda: _orientation_of_tiff(data[at + 10 :]), lambda: 1)


def _orientation_of_tiff(tiff: tf.Tensor) -> tf.Tensor:
    """Look up tag 0x0112 in the first directory of a TIFF structure: int32 [bytes] -> scalar, 1 if absent."""
    little = tiff[0] == 0x49
    short = tf.where(little, [1, 256], [256, 1])
    last = tf.shape(tiff)[0] - 2
    offset = tf.reduce_sum(tiff[4:8] * tf.where(little, [1, 256, 65536, 0], [0, 65536, 256, 1]))
    directory = tf.clip_by_value(offset, 0, last)
    count = tf.reduce_sum(tiff[directory : directory + 2] * short)
    body = tiff[directory + 2 :]
    count = tf.minimum(count, tf.shape(body)[0] // 12)
    entries = tf.reshape(body[: count * 12], [-1, 12])
    tags = tf.reduce_sum(entries[:, 0:2] * short, axis=1)
    values = tf.boolean_mask(tf.reduce_sum(entries[:, 8:10] * short, axis=1), tags == 0x0112)
    value = tf.concat([values, [1]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)
