"""Copies are found again in whatever bytes, and unlike images are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance

from tlkeras.data.quality.near_duplicates import (
    HIGHEST,
    LOWEST,
    NearDuplicateGroup,
    _cluster_stars,
    choose_similarity_threshold,
    find_exact_duplicates,
    find_near_duplicates,
    read_thumbnails,
)

COPIES = {
    "re-encoded": lambda image: image,
    "smaller": lambda image: image.resize((70, 70), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned left": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned right": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
}


@pytest.fixture(scope="module")
def windows() -> list[Image.Image]:
    """140 windows of photographs that do not overlap."""
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    cut = [
        photograph[top : top + 56, left : left + 56]
        for photograph in photographs
        for top in range(0, photograph.shape[0] - 56, 60)
        for left in range(0, photograph.shape[1] - 56, 60)
    ]
    contrasted = sorted(cut, key=lambda window: -window.std())[:140]
    return [Image.fromarray(np.ascontiguousarray(window)).resize((112, 112)) for window in contrasted]


def shrink(image: Image.Image, quality: int | None = None) -> np.ndarray:
    buffer = io.BytesIO()
    if quality:
        image.save(buffer, "JPEG", quality=quality)
        image = Image.open(buffer)
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX))


def test_equal_bytes():
    assert find_exact_duplicates(["a", "b", "a", "c", "b", "a"]) == [(0, 2, 5), (1, 4)]
    assert find_exact_duplicates([]) == [] and find_exact_duplicates(["a", "b"]) == []


@pytest.mark.parametrize("most", [0, 20_000], ids=["by hashes", "by all"])
@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(windows, kind, most, monkeypatch):
    monkeypatch.setattr("tlkeras.data.quality.near_duplicates.MOST_COMPARED", most)
    plain = [shrink(window) for window in windows]
    copied = [shrink(COPIES[kind](window), quality=60) for window in windows[:15]]
    thumbnails = np.stack(plain + copied)
    groups = find_near_duplicates(thumbnails, [str(row) for row in range(len(thumbnails))])
    assert {group.rows for group in groups} >= {(row, 140 + row) for row in range(14)}
    assert all(LOWEST <= group.similarity <= 1 for group in groups) and len(groups) <= 15


def test_equal_bytes_come_along(windows):
    plain = [shrink(window) for window in windows[:110]]
    thumbnails = np.stack([*plain, shrink(windows[0], quality=50), shrink(windows[0])])
    digests = [*map(str, range(110)), "other", "0"]
    assert [group.rows for group in find_near_duplicates(thumbnails, digests)] == [(0, 110, 111)]


def test_flat_images_and_few_images():
    flat = np.stack([np.full((32, 32), level, np.uint8) for level in range(0, 250, 2)])
    assert find_near_duplicates(flat, [str(row) for row in range(len(flat))]) == []
    assert find_near_duplicates(flat[:1], ["0"]) == [] and find_near_duplicates(flat[:0], []) == []
    assert choose_similarity_threshold(flat[:5]) == HIGHEST


def test_stars_do_not_chain():
    pairs = {(0, 1): 0.99, (1, 2): 0.98, (2, 3): 0.97, (5, 6): 0.99}
    assert _cluster_stars(pairs) == [NearDuplicateGroup((0, 1, 2), 0.98), NearDuplicateGroup((5, 6), 0.99)]


def test_thumbnails_are_decoded_as_for_training(plant, encode, make_exif):
    upright = skimage.data.chelsea()[:256, :256]
    turned = encode(np.rot90(upright).copy(), "JPEG", quality=95, exif=make_exif(6))
    files = {"a.png": encode(upright), "b.jpg": turned, "c.jpg": b"text", "d.jpg": turned[:-900]}
    root = plant(files)
    thumbnails, readable = read_thumbnails([str(root / name) for name in files])
    assert readable.tolist() == [0, 1] and thumbnails.shape == (2, 32, 32) and thumbnails.dtype == np.float16
    expected = np.asarray(Image.fromarray(upright).convert("L").resize((32, 32), Image.Resampling.BOX), int)
    assert np.abs(thumbnails - expected).mean() < 2
