"""A look at every file: digests, rejections, notes."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkeras.data.inspection import validate_images
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset
from tlkeras.errors import DataError


def read(root: Path):
    return build_dataset(read_table(str(root)))


def test_bad_files_are_listed_and_left_out(plant, encode, bomb):
    good = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}
    bad = {
        "cat/empty.jpg": b"",
        "cat/text.jpg": b"hello",
        "cat/page.jpg": b"<html></html>",
        "dog/bomb.png": bomb,
        "dog/photo.jpg": b"8BPS" + bytes(99),
        "dog/cut.png": b"\x89PNG\r\n\x1a\n\0\0",
        "dog/gone.png": 9,
    }
    root = plant({**good, **bad, "cat/notes.txt": b"text"})
    dataset = read(root)
    os.remove(root / "dog/gone.png")
    found = validate_images(dataset, workers=3)
    assert found.keys.tolist() == list(good)
    assert found.digests.tolist() == [hashlib.sha256((root / key).read_bytes()).hexdigest() for key in good]
    assert {os.path.relpath(bad.path, root): bad.code for bad in found.rejected} == {
        "cat/notes.txt": "not-an-image",
        "cat/empty.jpg": "empty",
        "cat/text.jpg": "not-an-image",
        "cat/page.jpg": "not-an-image",
        "dog/bomb.png": "too-many-pixels",
        "dog/photo.jpg": "unsupported",
        "dog/cut.png": "damaged",
        "dog/gone.png": "missing",
    }
    reasons = {os.path.basename(bad.path): bad.reason for bad in found.rejected}
    assert reasons["page.jpg"].startswith("not an image (HTML)") and "PSD" in reasons["photo.jpg"]


def test_what_is_odd_is_noted(plant, encode, make_exif, make_png):
    grey = np.zeros((32, 40), np.uint8)
    plain, frame = encode(grey), Image.fromarray(grey)
    other = Image.fromarray(grey + 9)
    files = {
        "a/1.jpg": plain,
        "a/2": plain,
        "a/3.PNG": plain,
        "a/4.png": encode(np.zeros((31, 400), np.uint8)),
        "a/5.png": encode(frame.convert("RGBA")),
        "a/6.png": encode(frame.convert("I;16")),
        "a/7.jpg": encode(frame.convert("CMYK"), "JPEG"),
        "b/1.webp": encode(frame.convert("RGB"), "WEBP", exif=make_exif(6)),
        "b/2.jpeg": encode(grey, "JPEG", exif=make_exif(6)),
        "b/3.webp": encode(frame, "WEBP", save_all=True, append_images=[other]),
        "b/4.png": make_png((5000, 4801, 1, 0), zlib.compress(b"\0" * 626 * 4801)),
    }
    root = plant(files)
    found = validate_images(read(root))
    assert len(found) == len(files) and not found.rejected
    assert [(os.path.relpath(note.path, root), note.code) for note in found.warnings] == [
        ("a/1.jpg", "wrong-extension"),
        ("a/2", "wrong-extension"),
        ("a/4.png", "tiny"),
        ("a/5.png", "mode"),
        ("a/6.png", "deep"),
        ("a/7.jpg", "mode"),
        ("b/1.webp", "orientation-ignored"),
        ("b/2.jpeg", "turned"),
        ("b/3.webp", "transcoded"),
        ("b/3.webp", "animated"),
        ("b/4.png", "mode"),
        ("b/4.png", "huge"),
    ]
    assert found.warnings[0].reason == "named like a JPEG, and read as the PNG that it is"


def test_nothing_left(plant):
    root = plant({"a/1.jpg": b"", "a/2.jpg": b"", "b/1.jpg": b"", "b/2.jpg": b""})
    with pytest.raises(
        DataError, match=r"(?s)No image of '.*set' can be read.*4 files in .*set, such as a/1\.jpg.*: the file is empty"
    ):
        validate_images(read(root))


def test_a_class_that_vanishes(plant):
    root = plant({"a/1.jpg": b"", "a/2.jpg": b"x", "b/1.png": 1, "b/2.png": 1})
    with pytest.raises(DataError, match=r"(?s)'label': every image of class 'a' was rejected.*2\.jpg: not an image"):
        validate_images(read(root))


def test_many_more_files_than_a_chunk(plant, make_dataset, monkeypatch):
    monkeypatch.setattr("tlkeras.data.inspection._CHUNK", 3)
    root = plant({f"{number}.png": number for number in range(10)})
    paths = np.array([str(root / f"{number}.png") for number in range(10)], dtype=object)
    found = validate_images(make_dataset(np.arange(10) % 2, paths=paths), workers=2)
    assert len(found.digests) == len(set(found.digests)) == 10
