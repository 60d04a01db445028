"""Handcrafted features: HOG, SIFT, local binary patterns, colour; one image to one vector.

Nothing here imports TensorFlow, so that processes that only describe images start in a second.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from tlkeras.config.schema.features import ColorHistogramConfig, HogConfig, LbpConfig, SiftConfig
from tlkeras.errors import MissingExtraError, RecipeError, suggest
from tlkeras.features.handcrafted.encodings import LOCAL, Codebook, encode, shape_codebook

_BINS = 4  # per row and per column of a SIFT patch
_ORIENTATIONS = 8
_CLIP = 0.2
_TINY = 1e-12
_NO_BOOK: Codebook = {}


class Descriptor:
    """From an image, uint8 (size, size, 3), to a vector (d,); options and defaults are those of its recipe section."""

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of an image, pixels."""
        raise NotImplementedError

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the arrays that are learned from training images, by name; none where nothing is learned."""
        return {}

    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray:
        raise NotImplementedError


class Hog(HogConfig, Descriptor):
    """Histograms of oriented gradients, in blocks of 2 x 2 cells (Dalal and Triggs, CVPR 2005)."""

    @property
    def minimum_size(self) -> int:
        return 2 * self.cell

    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray:
        from skimage.feature import hog

        cell = (self.cell, self.cell)
        return hog(to_grey(image), self.orientations, cell, cells_per_block=(2, 2), block_norm="L2-Hys")


class Lbp(LbpConfig, Descriptor):
    """Histograms of uniform, rotation invariant local binary patterns in cells (Ojala et al., PAMI 2002)."""

    @property
    def minimum_size(self) -> int:
        return self.grid * (2 * self.radius + 1)

    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray:
        from skimage.feature import local_binary_pattern

        grey = np.round(to_grey(image) * 255).astype(np.uint8)
        codes = local_binary_pattern(grey, self.points, self.radius, method="uniform").astype(np.int64)
        return count_in_cells(codes, self.points + 2, self.grid)


class ColorHistogram(ColorHistogramConfig, Descriptor):
    """Joint histograms of hue, saturation and value in cells."""

    @property
    def minimum_size(self) -> int:
        return self.grid

    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray:
        from skimage.color import rgb2hsv

        steps = np.minimum((rgb2hsv(image) * self.bins).astype(np.int64), self.bins - 1)
        return count_in_cells(steps @ [self.bins**2, self.bins, 1], self.bins**3, self.grid)


class Sift(SiftConfig, Descriptor):
    """SIFT (Lowe, IJCV 2004) with square roots (Arandjelovic and Zisserman, CVPR 2012), as one vector of a codebook."""

    @property
    def minimum_size(self) -> int:
        return _BINS * min(self.sizes) if self.detector == "dense" else 16

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return shape_codebook(self.encoding, self.words, self.components)

    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray:
        return encode(self.find_local(image), book, self.encoding)

    def find_local(self, image: np.ndarray) -> np.ndarray:
        """The local descriptors of an image, float32 (m, 128), of length one; m may be 0."""
        grey = to_grey(image)
        if self.detector == "keypoint":
            return root_sift(find_keypoints(grey))
        fitting = [size for size in self.sizes if _BINS * size <= min(grey.shape)]
        return root_sift(np.concatenate([describe_grid(grey, size, self.step) for size in fitting]))


DESCRIPTORS: dict[str, Any] = {"sift": Sift, "hog": Hog, "lbp": Lbp, "colour": ColorHistogram}


def make_descriptor(kind: str, **options: Any) -> Descriptor:
    """A descriptor by its kind; a RecipeError names the nearest, a MissingExtraError the missing scikit-image."""
    if kind not in DESCRIPTORS:
        raise RecipeError(f"Unknown handcrafted feature {kind!r}.", way_out=suggest(kind, DESCRIPTORS))
    if importlib.util.find_spec("skimage") is None:
        raise MissingExtraError("A handcrafted feature", "handcrafted")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return DESCRIPTORS[kind](kind=kind, **values)


def to_grey(image: np.ndarray) -> np.ndarray:
    """The luminance (Rec. 709) of an image, uint8 (h, w, 3), as float32 (h, w), 0 to 1."""
    return image.astype(np.float32) @ np.array([0.2125, 0.7154, 0.0721], np.float32) / 255


def count_in_cells(codes: np.ndarray, count: int, grid: int) -> np.ndarray:
    """The square roots of the shares of codes 0...count-1 (h, w) in each of grid x grid cells, one vector."""
    height, width = codes.shape
    rows, columns = (np.arange(length) * grid // length for length in (height, width))
    cells = rows[:, None] * grid + columns
    counts = np.bincount((cells * count + codes).ravel(), minlength=grid * grid * count).reshape(-1, count)
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).ravel()


def find_keypoints(grey: np.ndarray) -> np.ndarray:
    """The descriptors of the keypoints of an image, float32 (m, 128)."""
    from skimage.feature import SIFT

    finder = SIFT()
    try:
        finder.detect_and_extract(grey)
    except RuntimeError:  # raised where there are none
        return np.empty((0, LOCAL), np.float32)
    return np.asarray(finder.descriptors, np.float32)


def describe_grid(grey: np.ndarray, size: int, step: int) -> np.ndarray:
    """Upright SIFT descriptors every `step` pixels of a grey image, float32 (m, 128): by row, column, orientation.

    Bins share a pixel linearly, as Lowe's do; without his Gaussian window over the patch all patches are taken from one
    filtered map (as in VLFeat's fast dense SIFT, Vedaldi and Fulkerson 2010).
    """
    smooth = ndimage.gaussian_filter(grey, max(size / 6, 0.5))
    by_row, by_column = np.gradient(smooth)
    turn = np.arctan2(by_row, by_column) / (2 * np.pi) * _ORIENTATIONS % _ORIENTATIONS
    strength = np.hypot(by_row, by_column)
    window = 1 - np.abs(np.arange(1 - size, size)) / size
    maps = []
    for orientation in range(_ORIENTATIONS):
        apart = np.abs(turn - orientation)
        near = np.maximum(0, 1 - np.minimum(apart, _ORIENTATIONS - apart)) * strength
        rows = ndimage.correlate1d(near.astype(np.float32), window, axis=0, mode="constant")
        maps.append(ndimage.correlate1d(rows, window, axis=1, mode="constant"))
    height, width = grey.shape
    rows, columns = (
        np.arange(0, length - _BINS * size + 1, step)[:, None] + size // 2 + size * np.arange(_BINS)
        for length in (height, width)
    )
    patches = np.stack(maps, axis=-1)[rows[:, None, :, None], columns[None, :, None, :]]
    return patches.reshape(-1, LOCAL)


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """The square roots of descriptors (m, 128), clipped as by Lowe, of length one; without those of flat patches."""
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    textured = lengths[:, 0] > 1e-6
    clipped = np.minimum(descriptors[textured] / lengths[textured], _CLIP)
    return np.sqrt(clipped / np.maximum(clipped.sum(axis=1, keepdims=True), _TINY)).astype(np.float32)
