"""Handcrafted features, one image to one vector: HOG, SIFT, local binary patterns, colour; imports no TensorFlow."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from tlkeras.config.schema.features import ColorHistogramConfig, HogConfig, LbpConfig, SiftConfig
from tlkeras.errors import MissingExtraError, RecipeError, suggest

ENCODINGS = ("vlad", "fisher", "words")

Codebook = Mapping[str, np.ndarray]
"""`mean` (128,), `projection` (128, c), `centres` (k, c); of Fisher vectors `variances` (k, c) and `shares` (k,)."""

LOCAL = 128
"""Length of a SIFT descriptor."""

_BINS = 4  # per row and per column of a SIFT patch
_ORIENTATIONS = 8
_CLIP = 0.2
_TINY = 1e-12
_NO_BOOK: Codebook = {}


class Descriptor(ABC):
    """From an image, uint8 (h, w, 3), to a vector (d,); options and defaults are those of its recipe section."""

    @property
    @abstractmethod
    def minimum_size(self) -> int:
        """Minimum height and width of an image, pixels."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the arrays that are learned from training images, by name."""
        return {}

    @abstractmethod
    def describe(self, image: np.ndarray, book: Codebook = _NO_BOOK) -> np.ndarray: ...


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
        words, components = self.words, self.components
        mixture = {"variances": (words, components), "shares": (words,)} if self.encoding == "fisher" else {}
        return {"mean": (LOCAL,), "projection": (LOCAL, components), "centres": (words, components), **mixture}

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


def encode(descriptors: np.ndarray, book: Codebook, encoding: str) -> np.ndarray:
    """The vector of length one, (k,), (k c,) or (2 k c,), of an image's descriptors (m, 128); zeros if m is 0."""
    words, components = book["centres"].shape
    if not len(descriptors):
        return np.zeros({"words": words, "vlad": words * components, "fisher": 2 * words * components}[encoding])
    reduced = (descriptors - book["mean"]) @ book["projection"]
    if encoding == "fisher":
        return encode_fisher(reduced, book["centres"], book["variances"], book["shares"])
    return (encode_vlad if encoding == "vlad" else bag_of_words)(reduced, book["centres"])


def bag_of_words(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The square roots of the shares of rows (m, c) nearest to each centre (k, c): (k,); Csurka et al., 2004."""
    return np.sqrt(np.bincount(_find_nearest(X, centres), minlength=len(centres)) / len(X))


def encode_vlad(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The sums of differences of rows (m, c) from their nearest centre, centre after centre: (k c,).

    Jegou et al., CVPR 2010; each sum is normalised before all are (Arandjelovic and Zisserman, "All about VLAD", 2013).
    """
    chosen = _find_nearest(X, centres)
    member = (chosen[:, None] == np.arange(len(centres))).astype(X.dtype)
    sums = member.T @ X - member.sum(axis=0)[:, None] * centres
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), _TINY)
    return _normalize(sums.ravel())


def encode_fisher(X: np.ndarray, centres: np.ndarray, variances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The Fisher vector of rows (m, c): gradients by means, then by standard deviations, (2 k c,).

    Perronnin et al., ECCV 2010, equations 7 and 8 with diagonal covariances, signed roots and length one.
    """
    odds = _responsibilities(X, centres, variances, shares)
    mass, first, second = odds.sum(axis=0)[:, None], odds.T @ X, odds.T @ X**2
    deviations = np.sqrt(variances)
    by_mean = (first - mass * centres) / deviations
    by_deviation = (second - 2 * first * centres + mass * centres**2) / variances - mass
    scale = len(X) * np.sqrt(shares)[:, None]
    vector = np.concatenate([(by_mean / scale).ravel(), (by_deviation / (scale * np.sqrt(2))).ravel()])
    return _normalize(np.sign(vector) * np.sqrt(np.abs(vector)))


def _responsibilities(X: np.ndarray, centres: np.ndarray, variances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The probability that each row (m, c) is from each component of a mixture (k, c): (m, k)."""
    precisions = 1 / variances
    distances = X**2 @ precisions.T - 2 * X @ (centres * precisions).T + np.sum(centres**2 * precisions, axis=1)
    logs = np.log(shares) - 0.5 * (distances + np.log(variances).sum(axis=1))
    odds = np.exp(logs - logs.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _find_nearest(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin(np.sum(centres**2, axis=1) - 2 * X @ centres.T, axis=1)


def _normalize(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), _TINY)
