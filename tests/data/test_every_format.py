"""Files of every kind beside Pillow, or beside the numbers they were made of: alike, or refused with a reason.

`test_transcoding` has the usual ones; here are depths, layouts, byte orders, orientations and rare variants.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, Rendering, check_header
from tlkeras.data.pipeline import make_image_dataset

HEIGHT, WIDTH = 40, 56  # of all: an image that was turned wrongly has another shape
RANGES = [None, (0, 4095), (500, 3000)]


def draw(channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """Smooth values of so many bits, uint16 [h, w, c], different in every corner and channel."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), np.uint8)
    planes = [
        np.asarray(
            Image.fromarray(coarse[:, :, number]).convert("F").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        )
        for number in range(channels)
    ]
    return np.rint(np.stack(planes, axis=-1) / 255 * (2**bits - 1)).astype(np.uint16)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def make_png(values: np.ndarray, bits: int, *, palette: np.ndarray | None = None, extra: bytes = b"") -> bytes:
    """A PNG of samples of any depth, [h, w, c]: grey, with alpha, colours, with alpha, or indices of a palette."""
    height, width, channels = values.shape
    if bits == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        spread = np.unpackbits(values.astype(np.uint8).reshape(height, -1, 1), axis=2)[:, :, 8 - bits :]
        rows = np.packbits(spread.reshape(height, -1), axis=1)
    kind = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    table = b"" if palette is None else chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    body = zlib.compress(np.pad(rows, [(0, 0), (1, 0)]).tobytes())
    return b"\x89PNG\r\n\x1a\n" + head + table + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def make_tiff(values: np.ndarray, bits: int = 16, *, order: str = "<", packed: bool = False, **tags: int) -> bytes:
    """A TIFF of one strip, or of one per plane; further tags: `photometric`, `planar`, `turned`, `sign`, `alpha`."""
    height, width, channels = values.shape
    planar = tags.get("planar", 1)
    planes = [values] if planar == 1 else [values[:, :, number] for number in range(channels)]
    strips = [plane.astype(f"{order}u{bits // 8}").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    extra = channels in (2, 4) and "photometric" not in tags
    fields: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * channels),
        (259, "H", [8 if packed else 1]),
        (262, "H", [tags.get("photometric", 2 if channels > 2 else 1)]),
        (273, "I", [0] * len(strips)),
        (274, "H", [tags.get("turned", 1)]),
        (277, "H", [channels]),
        (278, "I", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [planar]),
        *([(338, "H", [tags.get("alpha", 2)])] if extra else []),
        (339, "H", [tags.get("sign", 1)] * channels),
    ]
    start = 8 + 2 + 12 * len(fields) + 4
    beyond, entries = b"", b""
    sizes = {len(values) * struct.calcsize(kind) for _, kind, values in fields}
    room = sum(size for size in (len(one[2]) * struct.calcsize(one[1]) for one in fields) if size > 4)
    offsets = np.cumsum([0, *map(len, strips)])[: len(strips)] + start + room
    for tag, kind, given in fields:
        numbers = offsets.tolist() if tag == 273 else given
        body = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(numbers))
        if len(body) > 4:
            entries += struct.pack(f"{order}I", start + len(beyond))
            beyond += body
        else:
            entries += body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(fields))
    assert sizes and len(beyond) == room
    return head + entries + struct.pack(f"{order}I", 0) + beyond + b"".join(strips)


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32: which corner of the stored image row 0 and column 0 are."""
    values = values.swapaxes(0, 1) if orientation > 4 else values
    down = orientation in (3, 4, 7, 8)
    across = orientation in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if across else 1]


# Files of 16 bits, each with the numbers that it holds, uint16 [h, w, c].
DEEP: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {}
for _channels, _name in ((1, "grey"), (2, "grey with alpha"), (3, "colour"), (4, "colour with alpha")):
    for _bits in (12, 16):
        DEEP[f"PNG {_name} {_bits}"] = lambda c=_channels, b=_bits: (make_png(draw(c, b), 16), draw(c, b))
for _channels, _name in ((1, "grey"), (3, "colour"), (4, "colour with alpha")):
    for _order in "<>":
        for _packed in (False, True):
            DEEP[f"TIFF {_name} {_order}{' packed' * _packed}"] = lambda c=_channels, o=_order, p=_packed: (
                make_tiff(draw(c, 12), order=o, packed=p),
                draw(c, 12),
            )
for _turned in range(2, 9):
    DEEP[f"TIFF turned {_turned}"] = lambda t=_turned: (make_tiff(draw(3, 12), turned=t), turn(draw(3, 12), t))
    DEEP[f"TIFF grey turned {_turned}"] = lambda t=_turned: (make_tiff(draw(1, 12), turned=t), turn(draw(1, 12), t))
DEEP["TIFF white is zero"] = lambda: (make_tiff(65_535 - draw(1, 16), photometric=0), draw(1, 16))
DEEP["TIFF of planes"] = lambda: (make_tiff(draw(3, 12), planar=2), draw(3, 12))
DEEP["TIFF of planes, packed"] = lambda: (make_tiff(draw(3, 12), planar=2, packed=True), draw(3, 12))
DEEP["TIFF with a channel of no meaning"] = lambda: (make_tiff(draw(4, 12), alpha=0), draw(4, 12)[:, :, :3])
DEEP["TIFF of premultiplied alpha"] = lambda: (make_tiff(draw(4, 12), alpha=1), draw(4, 12))
DEEP["TIFF grey with alpha"] = lambda: (make_tiff(draw(2, 12)), draw(2, 12))
DEEP["TIFF signed"] = lambda: (make_tiff(draw(1, 12), sign=2), draw(1, 12))
DEEP["TIFF of 32 bits"] = lambda: (make_tiff(draw(1, 12), 32), draw(1, 12))
DEEP["PGM of 12 bits"] = lambda: (make_netpbm(draw(1, 12), 4095), np.rint(draw(1, 12) / 4095 * 65_535))
DEEP["PGM of 16 bits"] = lambda: (make_netpbm(draw(1, 16), 65_535), draw(1, 16))
QUICK_DEEP = ("PNG grey 12", "PNG colour with alpha 12", "TIFF colour >", "TIFF grey < packed", "TIFF turned 6")


def make_netpbm(values: np.ndarray, most: int, magic: bytes = b"P5") -> bytes:
    kind = ">u2" if most > 255 else "u1"
    return magic + b"\n%d %d\n%d\n" % (values.shape[1], values.shape[0], most) + values.astype(kind).tobytes()


def scale(values: np.ndarray, depth_range: tuple[int, int] | None, background: str) -> np.ndarray:
    """What a file of these numbers must become, as documented, float [h, w, 3]."""
    alpha = values[:, :, -1:] / 65_535 if values.shape[2] in (2, 4) and background != "drop" else np.ones(())
    colours = values[:, :, : 3 if values.shape[2] > 2 else 1].astype(float)
    low, high = depth_range or (0, 65_535)
    scaled = np.clip((colours - low) / (high - low), 0, 1) * 255
    return np.broadcast_to(scaled * alpha + (0 if background == "black" else 255) * (1 - alpha), (*values.shape[:2], 3))


Pair = tuple[bytes, np.ndarray]
"""A file and what it must become, [h, w, 3]."""


def find_faults(folder: Path, pairs: dict[str, Pair], rendering: Rendering) -> tuple[dict[str, str], set[str]]:
    """What is wrong with each file, in one way to decode or the other; and those that are refused with a reason."""
    faults, found = {}, {}
    for number, (name, (data, expected)) in enumerate(pairs.items()):
        path = folder / str(number)
        path.write_bytes(data)
        try:
            found[name] = str(path), decode_file(str(path), expected.shape[:2], rendering)
        except ImageError as error:
            if error.code != "unsupported" or len(error.reason) < 20:
                faults[name] = str(error)
            continue
        if (difference := np.abs(found[name][1] - expected).mean()) > 3:
            faults[name] = f"differs by {difference:.1f}"
    for shape in {pixels.shape for _, pixels in found.values()}:
        alike = [(name, path, pixels) for name, (path, pixels) in found.items() if pixels.shape == shape]
        stream = make_image_dataset([path for _, path, _ in alike], shape[:2], rendering, 8).as_numpy_iterator()
        streamed = {row: image for index, images in stream for row, image in zip(index.tolist(), images, strict=True)}
        for row, (name, _, pixels) in enumerate(alike):
            if row not in streamed or not np.array_equal(streamed[row], pixels):
                faults[name] = "is another image in a stream"
    return faults, {*pairs} - {*found} - {*faults}


def test_some_deep_files_beside_their_numbers(tmp_path):
    made = {row: DEEP[row]() for row in QUICK_DEEP}
    pairs = {row: (data, scale(values, (0, 4095), "white")) for row, (data, values) in made.items()}
    assert find_faults(tmp_path, pairs, Rendering(depth_range=(0, 4095))) == ({}, set())


REFUSED_DEEP = {"TIFF of planes", "TIFF of planes, packed", "TIFF grey with alpha", "TIFF of premultiplied alpha"}


@pytest.mark.slow
@pytest.mark.parametrize("background", ["white", "black", "drop"])
@pytest.mark.parametrize("depth_range", RANGES)
def test_deep_files_beside_their_numbers(tmp_path, depth_range, background):
    made = {row: make() for row, make in DEEP.items()}
    pairs = {row: (data, scale(values, depth_range, background)) for row, (data, values) in made.items()}
    look = Rendering(background=background, depth_range=depth_range)
    assert find_faults(tmp_path, pairs, look) == ({}, REFUSED_DEEP)
    assert all(check_header(data).deep for row, (data, _) in made.items() if row not in REFUSED_DEEP)


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def paint(mode: str = "RGB") -> Image.Image:
    values = draw(4, 8).astype(np.uint8)
    values[:, :, 3] = np.maximum(values[:, :, 3], 1)
    return Image.fromarray(values, "RGBA").convert(mode) if mode != "P" else paint().quantize(16)


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def make_grey_png(bits: int) -> bytes:
    return make_png(draw(1, bits), bits)


def make_palette_png(bits: int, *, alpha: bool = False) -> bytes:
    colours = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
    transparent = chunk(b"tRNS", bytes(range(0, 256, 256 // 2**bits))[: 2**bits]) if alpha else b""
    return make_png(draw(1, bits), bits, palette=colours, extra=transparent)


def make_text_pixmap(magic: bytes, values: np.ndarray, most: int | None) -> bytes:
    numbers = " ".join(map(str, values.ravel().tolist()))
    head = b"%s\n# a comment\n%d %d\n" % (magic, values.shape[1], values.shape[0])
    return head + (b"" if most is None else b"%d\n" % most) + numbers.encode() + b"\n"


def make_top_down_bmp() -> bytes:
    data = bytearray(save(paint(), "BMP"))
    stored = np.frombuffer(data[54:], np.uint8).reshape(HEIGHT, -1)
    return bytes(data[:22]) + struct.pack("<i", -HEIGHT) + bytes(data[26:54]) + stored[::-1].tobytes()


# Files of 8 bits and less, which Pillow shows.
PLAIN: dict[str, Callable[[], bytes]] = {
    **{f"PNG grey of {bits}": lambda b=bits: make_grey_png(b) for bits in (1, 2, 4, 8)},
    **{f"PNG palette of {bits}": lambda b=bits: make_palette_png(b) for bits in (1, 2, 4, 8)},
    **{f"PNG palette with alpha of {bits}": lambda b=bits: make_palette_png(b, alpha=True) for bits in (1, 2, 4, 8)},
    "PNG animated": lambda: save(paint(), "PNG", save_all=True, append_images=[paint().rotate(180)]),
    **{f"JPEG subsampled {way}": lambda w=way: save(paint(), "JPEG", quality=95, subsampling=w) for way in (0, 1, 2)},
    "JPEG progressive": lambda: save(paint(), "JPEG", quality=95, progressive=True),
    "JPEG with restarts": lambda: save(paint(), "JPEG", quality=95, restart_marker_rows=1),
    "JPEG kept as RGB": lambda: save(paint(), "JPEG", quality=95, keep_rgb=True),
    "JPEG CMYK": lambda: save(paint("CMYK"), "JPEG", quality=95),
    "MPO": lambda: save(paint(), "MPO", quality=95, save_all=True, append_images=[paint().rotate(180)]),
    "GIF interlaced": lambda: save(paint("P"), "GIF", interlace=1),
    "GIF not interlaced": lambda: save(paint("P"), "GIF", interlace=0),
    "BMP from the top": make_top_down_bmp,
    "BMP of 1 bit": lambda: save(paint("1"), "BMP"),
    "WEBP lossy": lambda: save(paint(), "WEBP", quality=95),
    "WEBP lossy with alpha": lambda: save(paint("RGBA"), "WEBP", quality=95, exact=True),
    "WEBP lossless with alpha": lambda: save(paint("RGBA"), "WEBP", lossless=True, exact=True),
    **{
        f"TIFF {way} {mode}": lambda w=way, m=mode: save(paint(m), "TIFF", compression=w)
        for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
        for mode in ("1", "L", "P", "RGB", "RGBA")
    },
    "TIFF jpeg": lambda: save(paint(), "TIFF", compression="jpeg"),
    **{f"TIFF {way}": lambda w=way: save(paint("1"), "TIFF", compression=w) for way in ("group3", "group4")},
    "TIFF big": lambda: save(paint(), "TIFF", big_tiff=True),
    "TIFF in tiles": lambda: save(paint(), "TIFF", compression="tiff_lzw", tile=(16, 16)),
    **{f"TIFF of planes {order}": lambda o=order: make_tiff(draw(3, 8), 8, order=o, planar=2) for order in "<>"},
    "TIFF grey, white is zero": lambda: make_tiff(draw(1, 8), 8, photometric=0),
    "AVIF 4:2:0": lambda: save(paint(), "AVIF", quality=95, subsampling="4:2:0"),
    "AVIF with alpha": lambda: save(paint("RGBA"), "AVIF", quality=98),
    "JPEG 2000 lossy": lambda: save(paint(), "JPEG2000", quality_mode="dB", quality_layers=[45], irreversible=True),
    "JPEG 2000 codestream": lambda: save(paint(), "JPEG2000", no_jp2=True),
    "JPEG 2000 with alpha": lambda: save(paint("RGBA"), "JPEG2000"),
    "ICO of BMP": lambda: save(paint("RGBA").resize((32, 32)), "ICO", sizes=[(32, 32)], bitmap_format="bmp"),
    "ICO of two sizes": lambda: save(paint().resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)]),
    "PBM as text": lambda: make_text_pixmap(b"P1", 1 - draw(1, 1), None),
    "PGM as text": lambda: make_text_pixmap(b"P2", draw(1, 8), 255),
    "PPM as text": lambda: make_text_pixmap(b"P3", draw(3, 8), 255),
    "PPM of 12 bits": lambda: make_netpbm(draw(3, 12), 4095, b"P6"),
    "PPM of 15 values": lambda: make_netpbm(draw(3, 4), 15, b"P6"),
    "TGA run-length": lambda: save(paint(), "TGA", compression="tga_rle"),
    "TGA from the top": lambda: save(paint("RGBA"), "TGA", orientation=1),
    **{
        f"{kind} turned {number}": lambda k=kind, n=number: save(paint(), k, quality=95, exif=exif(n))
        for kind in ("JPEG", "AVIF", "TIFF", "PNG", "WEBP", "MPO")
        for number in range(2, 9)
    },
    **{
        f"JPEG {mode} turned {number}": lambda m=mode, n=number: save(paint(m), "JPEG", quality=95, exif=exif(n))
        for mode in ("L", "CMYK")
        for number in (3, 6)
    },
}
QUICK = ("PNG palette with alpha of 4", "TIFF of planes <", "PPM of 12 bits", "TIFF in tiles", "WEBP turned 6")
TURNED = ("JPEG", "MPO", "AVIF")  # as `docs/data.md` says; Pillow turns a TIFF itself


def see_with_pillow(data: bytes, background: str) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image = ImageOps.exif_transpose(image) if image.format in TURNED else image
    pixels = image.convert("RGBA")
    if background == "drop":
        return np.asarray(pixels)[:, :, :3].astype(float)
    whole = Image.new("RGBA", pixels.size, background)
    whole.alpha_composite(pixels)
    return np.asarray(whole.convert("RGB")).astype(float)


def test_some_files_beside_pillow(tmp_path):
    made = {row: PLAIN[row]() for row in QUICK}
    pairs = {row: (data, see_with_pillow(data, "white")) for row, data in made.items()}
    assert find_faults(tmp_path, pairs, Rendering()) == ({}, set())


@pytest.mark.slow
@pytest.mark.parametrize("background", ["white", "black", "drop"])
def test_files_beside_pillow(tmp_path, background):
    """With a range of 16 bits, too, which does not touch them."""
    made = {row: make() for row, make in PLAIN.items()}
    pairs = {row: (data, see_with_pillow(data, background)) for row, data in made.items()}
    for depth_range in RANGES[:2]:
        look = Rendering(background=background, depth_range=depth_range)
        assert find_faults(tmp_path, pairs, look) == ({}, set())


@pytest.mark.slow
@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("bits", [8, 10])
def test_heic(tmp_path, turned, bits):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    if bits == 8:
        picture = pillow_heif.from_pillow(paint())
    else:
        wide = draw(3, 16).astype("<u2").tobytes()
        picture = pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), wide)
    stream = io.BytesIO()
    picture.save(stream, quality=98, chroma=444, exif=exif(turned))
    expected = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")).astype(float)
    assert find_faults(tmp_path, {"HEIC": (stream.getvalue(), expected)}, Rendering()) == ({}, set())
