"""One decoder: every format, mode and orientation to the same pixels."""

from __future__ import annotations

import io
import zlib
from functools import cache

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image, ImageOps

from tlkeras.data.decoding import RESIZE_MODES, decode, decode_file, resize_image
from tlkeras.data.headers import ImageError
from tlkeras.errors import DataError


@cache
def decoder(size: int, resize: str):
    function = tf.function(lambda encoded: decode(encoded, size, resize), autograph=False)
    return function.get_concrete_function(tf.TensorSpec([], tf.string))


def run(data: bytes, size: int = 32, resize: str = "stretch") -> np.ndarray:
    return decoder(size, resize)(tf.constant(data)).numpy()


def grey_of(colours: np.ndarray) -> np.ndarray:
    return colours[:, :, 0]


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def with_alpha(colours: np.ndarray) -> np.ndarray:
    return np.dstack([colours, np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))])


def over_white(pixels: np.ndarray | Image.Image) -> np.ndarray:
    """Pillow's composition of what has alpha."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return np.asarray(white.convert("RGB"))


def see_through(colours: np.ndarray) -> Image.Image:
    image = palette_of(colours)
    image.info["transparency"] = 3
    return image


def palette_of(colours: np.ndarray) -> Image.Image:
    return Image.fromarray(colours).quantize(64)


def animate(image: Image.Image) -> dict:
    return {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}


def lossless(encode, pixels, **options) -> bytes:
    return encode(pixels, "WEBP", lossless=True, exact=True, **options)


# Each row: how the bytes are made of uint8 [32, 32, 3], and the pixels that they must give, exactly.
EXACT = {
    "png colour": (lambda e, c: e(c), lambda c: c),
    "png grey": (lambda e, c: e(grey_of(c)), lambda c: as_rgb(grey_of(c))),
    "png 1 bit": (lambda e, c: e(Image.fromarray(grey_of(c) > 99)), lambda c: as_rgb(np.uint8(grey_of(c) > 99) * 255)),
    "png palette": (lambda e, c: e(palette_of(c)), lambda c: np.asarray(palette_of(c).convert("RGB"))),
    "png palette, transparent": (
        lambda e, c: e(palette_of(c), transparency=3),
        lambda c: over_white(see_through(c)),
    ),
    "png alpha": (lambda e, c: e(with_alpha(c)), lambda c: over_white(with_alpha(c))),
    "png one colour transparent": (
        lambda e, c: e(c, transparency=tuple(c[5, 7].tolist())),
        lambda c: np.where((c == c[5, 7]).all(axis=2, keepdims=True), 255, c),
    ),
    "png grey with alpha": (
        lambda e, c: e(np.dstack([grey_of(c), c[:, :, 1]])),
        lambda c: over_white(np.dstack([grey_of(c), c[:, :, 1]])),
    ),
    "png 16 bits": (lambda e, c: e(grey_of(c).astype(np.uint16) * 256 + 200), lambda c: as_rgb(grey_of(c))),
    "png animated": (lambda e, c: e(c, **animate(Image.fromarray(c))), lambda c: c),
    "bmp colour": (lambda e, c: e(c, "BMP"), lambda c: c),
    "bmp grey": (lambda e, c: e(grey_of(c), "BMP"), lambda c: as_rgb(grey_of(c))),
    "bmp palette": (lambda e, c: e(palette_of(c), "BMP"), lambda c: np.asarray(palette_of(c).convert("RGB"))),
    "bmp of four bytes": (lambda e, c: e(with_alpha(c), "BMP"), lambda c: c),
    "gif": (lambda e, c: e(palette_of(c), "GIF"), lambda c: np.asarray(palette_of(c).convert("RGB"))),
    "gif animated": (
        lambda e, c: e(palette_of(c), "GIF", **animate(palette_of(c))),
        lambda c: np.asarray(palette_of(c).convert("RGB")),
    ),
    "webp": (lossless, lambda c: c),
    "webp alpha": (lambda e, c: lossless(e, with_alpha(c)), lambda c: over_white(with_alpha(c))),
    "webp with exif": (
        lambda e, c: lossless(e, with_alpha(c), exif=b"Exif\0\0MM\0*"),
        lambda c: over_white(with_alpha(c)),
    ),
    "webp animated": (lambda e, c: lossless(e, c, **animate(Image.fromarray(c))), lambda c: c),
    "webp animated, alpha": (
        lambda e, c: lossless(e, with_alpha(c), **animate(Image.fromarray(with_alpha(c)))),
        lambda c: over_white(with_alpha(c)),
    ),
    "webp lossy": (
        lambda e, c: e(with_alpha(c), "WEBP", quality=90, exact=True),
        lambda c: over_white(Image.open(io.BytesIO(_lossy(c)))),
    ),
}


def _lossy(colours: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(with_alpha(colours)).save(buffer, "WEBP", quality=90, exact=True)
    return buffer.getvalue()


@pytest.mark.parametrize("row", EXACT)
def test_formats_and_modes(encode, colours, row):
    make, expect = EXACT[row]
    np.testing.assert_array_equal(run(make(encode, colours)), expect(colours))


def test_sixteen_bit_colour_keeps_the_high_byte(make_png, colours):
    wide = np.stack([colours, np.full_like(colours, 77)], axis=-1).reshape(32, -1)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide))
    np.testing.assert_array_equal(run(make_png((32, 32, 16, 2), rows)), colours)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(encode, colours, mode, options):
    data = encode(Image.fromarray(colours).convert(mode), "JPEG", quality=95, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(run(data) - expected).mean() < 3


def test_the_content_decides_and_not_the_name(tmp_path, encode, colours):
    (tmp_path / "a.jpg").write_bytes(encode(colours, "PNG"))
    np.testing.assert_array_equal(decode_file(str(tmp_path / "a.jpg"), 32, "stretch"), colours)


def turn_by_hand(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32: which corner of the stored image row 0 and column 0 are."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[::-1],
    }[orientation]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_orientation_turns_the_finished_image(encode, make_exif, resize, orientation, order):
    photograph = skimage.data.chelsea()[:120, :191]
    data = encode(photograph, "JPEG", quality=95, exif=make_exif(orientation, order))
    found = run(data, 24, resize)
    plain = run(encode(photograph, "JPEG", quality=95), 24, resize)
    np.testing.assert_array_equal(found, turn_by_hand(plain, orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if resize == "stretch":
        assert np.abs(found - np.asarray(upright.resize((24, 24), Image.Resampling.BOX)).astype(int)).mean() < 2.5


def insert_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    blocks = (bytes([0xFF, mark]) + (len(body) + 2).to_bytes(2, "big") + body for mark, body in segments)
    return data[:2] + b"".join(blocks) + data[2:]


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        (lambda exif: [(0xE1, exif(6))], 6),
        (lambda exif: [(0xE0, b"JFIF\0" + b"\0" * 9), (0xE1, exif(8))], 8),
        (lambda exif: [(0xFE, b"a comment"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), (0xE1, exif(3))], 3),
        (lambda exif: [(0xE2, b"ICC_PROFILE\0" + b"\0" * 9000), (0xE1, exif(6))], 6),
        (lambda exif: [(0xE1, exif(0))], 1),
        (lambda exif: [(0xE1, exif(9))], 1),
        (lambda exif: [(0xE1, exif(6, offset=60_000))], 1),
        (lambda exif: [(0xE1, exif(6, offset=4_000_000_000))], 1),
        (lambda exif: [(0xE1, exif(6)[:12])], 1),
        (lambda exif: [(0xE1, b"Exif\0\0")], 1),
        (lambda exif: [(0xE1, exif(6)[:14] + b"\xff\xff" + exif(6)[16:])], 6),
        (lambda exif: [(0xE1, exif(6)), (0xE1, exif(3))], 6),
    ],
)
def test_orientation_is_found_among_segments(encode, make_exif, colours, segments, orientation):
    plain = encode(colours, "JPEG", quality=95)
    data = insert_segments(plain, *segments(make_exif))
    np.testing.assert_array_equal(run(data), turn_by_hand(run(plain), orientation))


def test_resize_by_hand():
    pixels = np.array([[[0], [10], [20], [30]], [[2], [12], [22], [35]]], np.uint8)
    np.testing.assert_array_equal(resize_image(pixels, [2, 2], "stretch")[:, :, 0], [[5, 25], [7, 28]])
    np.testing.assert_array_equal(resize_image(pixels, [2, 2], "crop")[:, :, 0], [[10, 20], [12, 22]])
    padded = np.zeros((4, 4), int)
    padded[1:3] = pixels[:, :, 0]
    np.testing.assert_array_equal(resize_image(pixels, [4, 4], "pad")[:, :, 0], padded)


@pytest.mark.parametrize(
    ("target", "resize", "expected"),
    [
        ((2, 1), "stretch", [[12], [44]]),  # means of the upper and of the lower half: 96 / 8 and 350 / 8
        ((1, 2), "crop", [[23, 30]]),  # rows 1 and 2 are twice as wide as high: 92 / 4 and 120 / 4
        ((2, 1), "crop", [[12], [43]]),  # columns 1 and 2: 47 / 4 and 172 / 4
        ((2, 8), "pad", [[0, 0, 0, 13, 11, 0, 0, 0], [0, 0, 0, 41, 46, 0, 0, 0]]),  # 51, 45, 164 and 185 over 4
        ((7, 1), "pad", [[0], [0], [0], [28], [0], [0], [0]]),  # 446 / 16
    ],
)
def test_resize_to_other_shapes_by_hand(target, resize, expected):
    pixels = np.array([[0, 1, 2, 3], [40, 10, 34, 6], [20, 22, 30, 50], [60, 62, 58, 48]], np.uint8)
    np.testing.assert_array_equal(resize_image(pixels[:, :, None], target, resize)[:, :, 0], expected)


def test_bars_are_alike_on_both_sides():
    pixels = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    np.testing.assert_array_equal(
        resize_image(pixels, (4, 8), "pad")[:, :, 0], np.pad(pixels[:, :, 0], [(0, 0), (2, 2)])
    )
    inner = resize_image(pixels, (3, 4), "stretch")[:, :, 0]  # bars of 1.5 rows, and one row less of the image
    np.testing.assert_array_equal(resize_image(pixels, (7, 4), "pad")[:, :, 0], np.pad(inner, [(2, 2), (0, 0)]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_orientation_turns_images_that_are_not_square(encode, make_exif, resize, orientation):
    photograph = skimage.data.chelsea()[:120, :191]
    found = run(encode(photograph, "JPEG", quality=95, exif=make_exif(orientation)), (24, 40), resize)
    stored = (40, 24) if orientation > 4 else (24, 40)
    plain = run(encode(photograph, "JPEG", quality=95), stored, resize)
    np.testing.assert_array_equal(found, turn_by_hand(plain, orientation))


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (17, 96)])
def test_an_image_of_the_shape_of_the_size_is_seen_whole(encode, size):
    """All three ways are then one, and Pillow's box filter gives the same."""
    height, width = size
    photograph = Image.fromarray(skimage.data.chelsea()).resize((3 * width, 3 * height))
    seen = [run(encode(photograph), size, resize) for resize in RESIZE_MODES]
    assert seen[0].shape == (height, width, 3)
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])
    expected = np.asarray(photograph.resize((width, height), Image.Resampling.BOX)).astype(int)
    assert np.abs(seen[0] - expected).max() <= 1


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize(("resize", "shape"), [("crop", (24, 40)), ("pad", (24, 40)), ("stretch", (24, 40))])
def test_no_pixels_are_lost_inside_the_transform_of_other_shapes(encode, resize, shape, ratio):
    """A JPEG is shrunk only so far that the result never has to be enlarged again."""
    photograph = Image.fromarray(skimage.data.chelsea()).resize((40 * ratio, 36 * ratio))
    data = encode(photograph, "JPEG", quality=95)
    whole = resize_image(np.asarray(Image.open(io.BytesIO(data))), shape, resize).numpy().astype(int)
    assert np.abs(run(data, shape, resize) - whole).mean() < 4


def test_shrinking_averages_fine_patterns():
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.unique(resize_image(board, [64, 64], "stretch")).tolist() == [128]
    stripes = resize_image(board[:509, :509], [224, 224], "stretch").numpy().astype(int)
    # a cell holds 509/224 = 2.27 pixels a side: at worst it averages 0.273^2 of one pixel too many
    assert np.abs(stripes - 127.5).max() < 255 * 0.273**2 / (509 / 224) ** 2 / 2 + 25


def test_resizing_agrees_with_pillow():
    photograph = skimage.data.chelsea()[:, :300]
    image = Image.fromarray(photograph)

    def difference(size: int, method: Image.Resampling) -> np.ndarray:
        expected = np.asarray(image.resize((size, size), method), int)
        return np.abs(resize_image(photograph, [size, size], "stretch").numpy() - expected)

    assert difference(75, Image.Resampling.BOX).max() <= 1
    assert difference(224, Image.Resampling.BOX).mean() < 2
    assert difference(417, Image.Resampling.BILINEAR).max() <= 1


def test_one_side_may_shrink_while_the_other_grows():
    pixels = np.tile(np.array([0, 200], np.uint8), 50)[None, :, None].repeat(2, axis=0)
    np.testing.assert_array_equal(resize_image(pixels, [10, 10], "stretch"), np.full((10, 10, 1), 100))


@pytest.mark.parametrize(("extra", "tolerance"), [(0, 3), (3, 10)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_large_jpegs_shrink_inside_the_transform(encode, ratio, extra, tolerance):
    # A last column of less than `ratio` pixels counts as a whole one: a shift of less than one pixel of the result.
    width, height = 28 * ratio + extra, 24 * ratio + extra
    photograph = Image.fromarray(skimage.data.chelsea()[:, :300]).resize((width, height))
    data = encode(photograph, "JPEG", quality=95)
    whole = resize_image(np.asarray(Image.open(io.BytesIO(data))), [24, 24], "stretch").numpy().astype(int)
    assert np.abs(run(data, 24) - whole).mean() < tolerance


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize("size", [24, (24, 31)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 7), (24, 25), (23, 24)])
def test_odd_shapes_are_symmetric(encode, shape, size, resize):
    half = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = np.maximum(half, half[::-1, ::-1])
    found = run(encode(pixels), size, resize).astype(int)
    assert np.abs(found - found[::-1, ::-1]).max() <= 1  # rounding
    assert found.max() > 0


def test_pad_adds_black_bars(encode):
    found = run(encode(np.full((10, 20), 255, np.uint8)), 24, "pad")
    assert (found[6:18] == 255).all() and not found[:6].any() and not found[18:].any()


BAD = {
    "empty": (lambda e, c: b"", "empty"),
    "one byte": (lambda e, c: b"\xff", "not-an-image"),
    "text": (lambda e, c: b"not found", "not-an-image"),
    "html": (lambda e, c: b"<html>404</html>", "not-an-image"),
    "photoshop": (lambda e, c: b"8BPS" + bytes(99), "unsupported"),
    "tiff, half": (lambda e, c: _half(e(c, "TIFF")), "damaged"),
    "jpeg, half": (lambda e, c: _half(e(c, "JPEG")), "damaged"),
    "jpeg, all but the last 20 bytes": (lambda e, c: e(c, "JPEG")[:-20], "damaged"),
    "png, half": (lambda e, c: _half(e(c)), "damaged"),
    "png, wrong checksum": (lambda e, c: _flip(e(c), 60), "damaged"),
    "webp, half": (lambda e, c: _half(e(c, "WEBP")), "damaged"),
    "webp animated, half": (lambda e, c: _half(e(c, "WEBP", **animate(Image.fromarray(c)))), "damaged"),
    "gif, half": (lambda e, c: _half(e(c, "GIF")), "damaged"),
    "bmp, half": (lambda e, c: _half(e(c, "BMP")), "damaged"),
}


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize("row", BAD)
def test_bad_files_are_explained(tmp_path, encode, colours, row):
    make, code = BAD[row]
    (tmp_path / "a.jpg").write_bytes(make(encode, colours))
    with pytest.raises(ImageError, match=r"a\.jpg: ") as caught:
        decode_file(str(tmp_path / "a.jpg"), 8, "stretch")
    assert caught.value.code == code


@pytest.mark.parametrize("row", sorted(set(BAD) - {"photoshop"}))
def test_bad_bytes_stop_the_graph(encode, colours, row):
    with pytest.raises(tf.errors.OpError):
        run(BAD[row][0](encode, colours))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, bomb):
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"bomb\.png: 16000 x 16000 pixels are more than"):
        decode_file(str(tmp_path / "bomb.png"), 8, "stretch")


def test_unknown_resize():
    with pytest.raises(DataError, match=r"Unknown way to resize images. Received: 'cropp'. Did you mean 'crop'\?"):
        decode(tf.constant(b""), 8, "cropp")


def test_the_decoder_works_in_an_exported_graph(tmp_path, encode, make_exif, colours):
    images = [EXACT[row][0](encode, colours) for row in ("png grey", "bmp palette", "gif", "webp animated")]
    images.append(encode(colours, "JPEG", exif=make_exif(6)))

    class Server(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def serve(self, encoded):
            one = tf.TensorSpec([16, 16, 3], tf.uint8)
            return tf.map_fn(lambda data: decode(data, 16, "stretch"), encoded, fn_output_signature=one)

    server = Server()
    tf.saved_model.save(server, str(tmp_path / "model"))
    served = tf.saved_model.load(str(tmp_path / "model")).serve(tf.constant(images)).numpy()
    for found, data in zip(served, images, strict=True):
        np.testing.assert_array_equal(found, run(data, 16))
