"""Every format, mode, depth and orientation beside Pillow: composited as documented, or refused with a reason."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import tlkeras
from tlkeras.data import png_store, transcoding
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, InvalidImage, Rendering, check_header
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import make_image_dataset, read_error

SIDE = 48
SHADES = {"white": 255, "black": 0}


def paint(mode: str, seed: int = 0) -> Image.Image:
    """A smooth picture, different in every corner and channel."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    opaque = image.convert("RGB")
    if mode == "I;16":
        return Image.fromarray(np.asarray(opaque.convert("L")).astype(np.uint16) * 257)
    return opaque.quantize(16) if mode == "P" else opaque.convert(mode)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_masked_bmp(order: str, bits: tuple[int, int, int, int] = (8, 8, 8, 8), head: int = 56) -> bytes:
    """A BITFIELDS bitmap with channels in the order of their letters, the last in the lowest bits; X is unused."""
    depth = 32 if sum(bits) > 16 else 16
    pixels = dict(zip("RGBA", np.moveaxis(np.asarray(paint("RGBA")).astype(np.uint32), 2, 0), strict=True))
    packed, masks, shift = np.zeros((SIDE, SIDE), np.uint32), dict.fromkeys("RGBAX", 0), 0
    for name, width in list(zip(order, bits, strict=True))[::-1]:
        masks[name] = ((1 << width) - 1) << shift
        packed |= (pixels.get(name, pixels["R"] * 0 + 77) >> (8 - width)) << shift
        shift += width
    rows = packed[::-1].astype("<u4" if depth == 32 else "<u2").tobytes()
    fields = [masks[name] for name in "RGBA"][: (head - 40) // 4 if head > 40 else 3]
    start = 14 + 40 + 4 * len(fields)
    info = struct.pack("<IiiHHIIiiII", head, SIDE, SIDE, 1, depth, 3, len(rows), 0, 0, 0, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(rows), 0, 0, start)
        + info
        + struct.pack(f"<{len(fields)}I", *fields)
        + rows
    )


def make_rle_bmp() -> bytes:
    image = paint("P")
    pixels, palette = np.asarray(image)[::-1], np.zeros((256, 4), np.uint8)
    colours = np.array(image.getpalette()).reshape(-1, 3)
    palette[: len(colours), :3] = colours[:, ::-1]
    body = b"".join(bytes([1, value]) for row in pixels for value in [*row.tolist(), None] if value is not None)
    lines = [body[at : at + 2 * SIDE] + b"\0\0" for at in range(0, len(body), 2 * SIDE)]
    packed = b"".join(lines) + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(packed), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(packed), 0, 0, 1078) + info + palette.tobytes() + packed


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def animate(kind: str, mode: str) -> bytes:
    return encode(paint(mode), kind, save_all=True, append_images=[paint(mode, 1), paint(mode, 2)])


MODES = {
    "JPEG": ("1 L RGB CMYK", {"quality": 95, "subsampling": 0}),
    "PNG": ("1 L LA P RGB RGBA I;16", {}),
    "GIF": ("L P RGB RGBA", {}),
    "BMP": ("1 L P RGB RGBA", {}),
    "WEBP": ("L RGB RGBA", {"lossless": True}),
    "TIFF": ("1 L LA P RGB RGBA CMYK YCbCr I;16", {}),
    "AVIF": ("L RGB RGBA", {"quality": 95}),
    "JPEG2000": ("L LA RGB RGBA I;16", {}),
    "ICO": ("L P RGB RGBA", {"sizes": [(SIDE, SIDE)]}),
    "PPM": ("1 L RGB I;16", {}),
    "TGA": ("1 L LA P RGB RGBA", {}),
}
CASES: dict[str, Callable[[], bytes]] = {
    f"{kind} {mode}": lambda kind=kind, mode=mode, options=options: encode(paint(mode), kind, **options)
    for kind, (modes, options) in MODES.items()
    for mode in modes.split()
}
CASES |= {f"TIFF {way}": lambda way=way: encode(paint("RGB"), "TIFF", compression=way) for way in ("tiff_lzw", "jpeg")}
CASES |= {
    f"{kind} turned {at}": lambda kind=kind, at=at: encode(paint("RGB"), kind, quality=95, exif=exif(at))
    for kind in ("JPEG", "AVIF", "TIFF")
    for at in range(2, 9)
}
CASES |= {
    f"BMP of masks {order} {head}": lambda order=order, head=head: make_masked_bmp(order, head=head)
    for order in ("ARGB", "XRGB", "RGBA", "RGBX", "ABGR", "XBGR", "BGRA", "BGRX", "GRBX", "XGBR")
    for head in (40, 56)
}
CASES |= {
    "BMP 5-6-5": lambda: make_masked_bmp("RGBX", (5, 6, 5, 0)),
    "BMP 5-5-5": lambda: make_masked_bmp("XRGB", (1, 5, 5, 5)),
    "BMP 5-6-2": lambda: make_masked_bmp("XRGB", (3, 5, 6, 2)),
    "BMP RLE": make_rle_bmp,
    "BMP 4 bits": lambda: encode(paint("P"), "BMP", bits=4),
    "PNG palette with alpha": lambda: encode(paint("P"), "PNG", transparency=bytes(range(0, 256, 16))),
    "PNG grey, one transparent": lambda: encode(paint("L"), "PNG", transparency=99),
    "PNG with chunks": lambda: encode(
        paint("RGB"), "PNG", dpi=(72, 72), icc_profile=b"\0" * 999, transparency=(9, 9, 9)
    ),
    "GIF with a transparent colour": lambda: encode(paint("P"), "GIF", transparency=3),
    "GIF animated": lambda: animate("GIF", "P"),
    "WEBP animated": lambda: animate("WEBP", "RGBA"),
    "AVIF animated": lambda: animate("AVIF", "RGB"),
    "TIFF of pages": lambda: animate("TIFF", "RGB"),
    "TIFF of floats": lambda: encode(paint("L").convert("F"), "TIFF"),
    "TIFF of 32 bits": lambda: encode(paint("L").convert("I"), "TIFF"),
    "TIFF LAB": lambda: encode(Image.new("LAB", (9, 9)), "TIFF"),
    "PPM of floats": lambda: encode(paint("L").convert("F"), "PPM"),
}
QUICK = ("TIFF I;16", "AVIF turned 6", "TIFF turned 5", "JPEG2000 RGBA", "ICO RGBA", "PPM L", "TGA RGBA", "BMP RLE")
QUICK += ("BMP 4 bits", "BMP 5-6-5", "BMP of masks RGBX 40", "BMP of masks ABGR 56", "PNG palette with alpha")
QUICK += (
    "PNG with chunks",
    "GIF with a transparent colour",
    "WEBP animated",
    "TIFF of floats",
    "BMP 5-6-2",
    "TIFF LAB",
)


def see_with_pillow(data: bytes, background: str) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if image.format in ("JPEG", "AVIF"):
        image = ImageOps.exif_transpose(image)
    if image.mode[0] == "I":
        high = np.asarray(image).astype(int) >> 8
        return np.repeat(high[:, :, None], 3, axis=2)
    whole = Image.new("RGBA", image.size, background)
    whole.alpha_composite(image.convert("RGBA"))
    return np.asarray(whole.convert("RGB")).astype(int)


def compare(path: Path, data: bytes, background: str) -> None:
    """Decode one file by both; what is refused is refused by the check of headers or with a reason of pixels."""
    path.write_bytes(data)
    try:
        found = decode_file(str(path), SIDE, Rendering(background=background)).astype(int)
    except ImageError as error:
        assert error.code == "unsupported" and len(error.reason) > 20
        return
    assert np.abs(found - see_with_pillow(data, background)).mean() <= 3
    ((_, streamed),) = make_image_dataset([str(path)], SIDE, Rendering(background=background), 1).as_numpy_iterator()
    np.testing.assert_array_equal(streamed[0], found)


@pytest.mark.parametrize("row", QUICK)
def test_files_beside_pillow(tmp_path, row):
    compare(tmp_path / "image", CASES[row](), "white")


@pytest.mark.slow
@pytest.mark.parametrize("background", SHADES)
@pytest.mark.parametrize("row", CASES)
def test_all_files_beside_pillow(tmp_path, row, background):
    compare(tmp_path / "image", CASES[row](), background)


REFUSED = {"BMP 5-6-2", "TIFF of floats", "TIFF LAB", "PPM of floats"}


@pytest.mark.slow
def test_few_are_refused(tmp_path):
    refused = set()
    for row, make in CASES.items():
        (tmp_path / "image").write_bytes(make())
        if isinstance(read_header_and_digest(str(tmp_path / "image")), InvalidImage) or not list(
            make_image_dataset([str(tmp_path / "image")], 8, "stretch", 1)
        ):
            assert read_error(str(tmp_path / "image")).code == "unsupported"
            refused.add(row)
    assert refused >= REFUSED and all("BMP of masks" in row for row in refused - REFUSED), refused


@pytest.mark.parametrize("row", ["PNG RGBA", "PNG LA", "WEBP RGBA", "GIF with a transparent colour", "TIFF RGBA"])
def test_alpha_is_composited_or_dropped(tmp_path, row):
    (tmp_path / "image").write_bytes(CASES[row]())
    seen = [
        decode_file(str(tmp_path / "image"), SIDE, Rendering(background=word)) for word in ("white", "black", "drop")
    ]
    assert seen[0].mean() > seen[2].mean() > seen[1].mean() or row.startswith("GIF")
    assert seen[0].mean() > seen[1].mean()


def test_what_the_decoder_reads_is_left_alone():
    for row in ("JPEG RGB", "PNG RGBA", "WEBP RGBA", "BMP RGB", "GIF P"):
        assert transcoding.to_decodable(CASES[row]()) == CASES[row]()


def test_a_png_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    data, made = CASES["TIFF RGB"](), []
    to_png = transcoding._to_png
    monkeypatch.setattr(transcoding, "_to_png", lambda *given: made.append(1) or to_png(*given))
    first = transcoding.to_decodable(data)
    assert transcoding.to_decodable(data) == first and len(made) == 1
    ((path, _),) = png_store.list_pngs()
    path.write_bytes(path.read_bytes()[:-1])  # by a crash
    assert transcoding.to_decodable(data) == first and len(made) == 2 and path.read_bytes() == first
    transcoding.to_decodable(CASES["PPM L"](), keep=False)
    assert [one for one, _ in png_store.list_pngs()] == [path]
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "file"))
    assert transcoding.to_decodable(data) == first and len(made) == 4


def test_pngs_that_are_used_least_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    files = [encode(paint("RGB", seed), "TIFF") for seed in range(4)]
    size = len(transcoding.to_decodable(files[0]))
    for data in files[1:]:
        transcoding.to_decodable(data)
    for at, (path, _) in enumerate(png_store.list_pngs()):
        os.utime(path, (at, at))
    transcoding.to_decodable(files[0])
    assert png_store.prune_pngs(2.5 * size)[0] == 2 and len(png_store.list_pngs()) == 2
    kept = {path.stem for path, _ in png_store.list_pngs()}
    assert hashlib.sha256(files[0]).hexdigest() in kept
    monkeypatch.setattr(png_store, "MAX_BYTES", 20 * size)
    for seed in range(9, 40):
        transcoding.to_decodable(encode(paint("RGB", seed), "TIFF"))
    assert sum(status.st_size for _, status in png_store.list_pngs()) <= 21 * size
    listed = tlkeras.list_cache()
    assert listed.spaces[-1].key == "png" and listed.bytes == sum(s.st_size for _, s in png_store.list_pngs())
    assert tlkeras.prune_cache(unused_days=1).bytes == 0
    assert tlkeras.prune_cache(max_gb=0).bytes == listed.bytes and not png_store.list_pngs()


def test_long_animations_are_cut_before_they_are_decoded():
    frames = [Image.fromarray(np.full((480, 640), shade, np.uint8)) for shade in range(220)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert 640 * 480 * 220 > 64_000_000 and check_header(data).frames == 220
    assert Image.open(io.BytesIO(transcoding.to_decodable(data))).size == (640, 480)


def test_an_icon_counts_what_it_holds(bomb):
    data = bytearray(encode(paint("RGB").resize((256, 256)), "ICO", sizes=[(256, 256)]))
    data[6:8] = b"\x10\x10"
    with pytest.raises(ImageError, match="256 x 256 pixels are more than 1,000"):
        transcoding.to_decodable(bytes(data), max_pixels=1000)
    with pytest.raises(ImageError, match="could be decompression bomb"):
        check_header(data[:14] + struct.pack("<II", len(bomb), 22) + bomb)


def test_heic_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(ImageError, match=r"HEIC needs pillow-heif: pip install 'tlkeras\[heic\]'") as caught:
        check_header(b"\0\0\0\x18ftypheic" + bytes(99))
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_heic(tmp_path, mode):
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(paint(mode)).save(stream, quality=95, chroma=444)
    (tmp_path / "a.heic").write_bytes(stream.getvalue())
    whole = Image.new("RGBA", (SIDE, SIDE), "white")
    whole.alpha_composite(paint(mode).convert("RGBA"))
    found = decode_file(str(tmp_path / "a.heic"), SIDE, "stretch").astype(int)
    assert np.abs(found - np.asarray(whole.convert("RGB"))).mean() <= 3


MEASURE = """
import resource, sys
from tlkeras.data.decoding import decode_file
from tlkeras.data.inspection import read_header_and_digest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_header_and_digest(sys.argv[1]), decode_file(sys.argv[1], 224, "stretch").shape)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)])
def test_photographs_of_large_sensors(tmp_path, size):
    paint("RGB").resize(size).save(tmp_path / "big.jpg", quality=90)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "big.jpg"], capture_output=True, text=True, check=True
    )
    assert "(224, 224, 3)" in done.stdout
    assert int(done.stdout.split()[-1]) < 400 * 1024  # KiB
