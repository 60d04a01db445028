"""Formats of files from their first bytes, and headers."""

from __future__ import annotations

import gzip
import os
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tlkeras.data.headers import ImageError, check_header, detect_format, read_image, to_printable

FOREIGN = {
    "Photoshop (PSD)": (b"8BPS" + b"\0" * 60, "unsupported"),
    "JPEG after other bytes": (b"\n\xff\xd8\xff\xe0" + b"\0" * 30, "not-an-image"),
    "gzip archive": (gzip.compress(b"\x89PNG\r\n\x1a\n" + b"\0" * 30), "not-an-image"),
    "JPEG XL": (b"\xff\x0a" + b"\0" * 30, "unsupported"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not-an-image"),
    "XML": (b'<?xml version="1.0"?><annotation/>', "not-an-image"),
    "PDF": (b"%PDF-1.7\n", "not-an-image"),
    "ZIP archive": (b"PK\x03\x04" + b"\0" * 30, "not-an-image"),
    "text": ("Größe: 3\n".encode() * 100, "not-an-image"),
    "unknown content": (bytes(range(128, 192)), "not-an-image"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_content_is_named(kind):
    data, code = FOREIGN[kind]
    assert detect_format(data) == kind
    with pytest.raises(
        ImageError, match=rf"not an image \({re.escape(kind)}\)|{re.escape(kind)} is not supported, only JPEG"
    ) as caught:
        check_header(data)
    assert caught.value.code == code


@pytest.mark.parametrize(("data", "code"), [(b"", "empty"), (b"\xff", "not-an-image"), (b"a", "not-an-image")])
def test_almost_nothing(data, code):
    with pytest.raises(ImageError) as caught:
        check_header(data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("WebP", "RGBA", {}),
    ],
)
def test_size_and_mode(encode, kind, mode, options):
    header = check_header(encode(Image.new(mode, (30, 20)), kind, **options))
    # Pillow calls the opaque black of a WebP without alpha RGB
    assert (header.format, header.width, header.height, header.frames) == (kind, 30, 20, 1)
    assert header.mode == mode or (kind, header.mode) in {("GIF", "P"), ("GIF", "L"), ("WebP", "RGB")}


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_frames_of_an_animation_count_together_in_a_served_model(encode, kind):
    frames = [Image.fromarray(np.full((20, 30, 3), shade, np.uint8)) for shade in (0, 90, 180)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert check_header(data).frames == 3
    assert check_header(data, max_pixels=600).transcoded  # its first frame alone
    assert check_header(data, max_pixels=1800, served=True).width == 30
    with pytest.raises(ImageError, match="30 x 20 pixels in 3 frames are more than 1,799") as caught:
        check_header(data, max_pixels=1799, served=True)
    assert caught.value.code == "too-many-pixels"


def test_a_bomb_is_refused_without_memory(bomb):
    assert len(bomb) < 100_000
    with pytest.raises(ImageError):  # imports what it needs
        check_header(bomb)
    tracemalloc.start()
    with pytest.raises(ImageError, match="16000 x 16000 pixels are more than 64,000,000"):
        check_header(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_orientation_is_read(encode, make_exif, orientation, order):
    data = encode(np.zeros((2, 2, 3), np.uint8), "JPEG", exif=make_exif(orientation, order))
    assert check_header(data).orientation == (orientation if 1 <= orientation <= 8 else 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(encode):
    assert check_header(encode(np.zeros((2, 2, 3), np.uint8), "JPEG", exif=b"Exif\0\0II*\0junk")).orientation == 1


def test_a_served_model_reads_no_other_bitmaps(encode):
    data = encode(Image.new("1", (9, 9)), "BMP")
    assert check_header(data).transcoded and not check_header(data).readable
    with pytest.raises(ImageError, match="this kind of BMP is not supported by a served model, only JPEG"):
        check_header(data, served=True)
    with pytest.raises(ImageError, match="cut off"):
        check_header(data[:40])


def test_a_jpeg_counts_as_it_is_decoded(encode):
    assert check_header(encode(Image.new("L", (1100, 1030)), "JPEG")).decoded_pixels == 550 * 515
    assert check_header(encode(Image.new("L", (1100, 1023)), "JPEG")).decoded_pixels == 1100 * 1023
    assert check_header(encode(Image.new("L", (1100, 1030)), "JPEG", progressive=True)).decoded_pixels == 1100 * 1030
    with pytest.raises(ImageError, match="1100 x 1030 pixels are more than 283,249 in all; data.max_pixels sets the"):
        check_header(encode(Image.new("L", (1100, 1030)), "JPEG"), max_pixels=550 * 515 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"])
def test_a_header_cut_anywhere_raises_nothing_else(encode, kind):
    data = encode(np.zeros((9, 9, 3), np.uint8), kind)
    for end in range(min(len(data), 200)):
        try:
            check_header(data[:end])
        except ImageError as error:
            assert error.code in ("empty", "not-an-image", "damaged", "unsupported")


def test_unusable_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * 11)
    codes = {}
    for name in ("pipe.jpg", "empty.jpg", "large.jpg", "none.jpg", "."):
        with pytest.raises(ImageError, match=r"jpg: |/\.: ") as caught:
            read_image(os.path.join(tmp_path, name), max_bytes=10)
        codes[name] = caught.value.code
    assert codes == {
        "pipe.jpg": "special-file",
        "empty.jpg": "empty",
        "large.jpg": "oversized",
        "none.jpg": "missing",
        ".": "special-file",
    }


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (PermissionError(13, "denied"), "forbidden", "permission"),
        (OSError(5, "Input/output error"), "damaged", "Input"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, monkeypatch, error, code, reason):
    def refuse(*_):
        raise error

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(str(tmp_path / "a.jpg"))
    assert caught.value.code == code


def test_undecodable_names_can_be_printed():
    assert to_printable(os.fsdecode(b"caf\xe9/\xc3\xa9.jpg")) == "caf\\xe9/é.jpg"
