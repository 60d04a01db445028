"""Perceptual hashes from the lowest frequencies of thumbnails, and the search for similar ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn

RADIUS = 7  # bits; with `_PARTS` parts, one of them then differs by one bit or none

_FREQUENCIES = 8
_PRIOR = 20  # images; a mean over fewer counts for little
_PARTS, _PART_BITS = 4, 16
_PROBES = np.array([0, *(1 << bit for bit in range(_PART_BITS))])
_MAX_BUCKET = 256  # rows read from one bucket, so that a hundred thousand equal hashes do not make n^2 pairs
_CHUNK = 2048
_ROUNDING = 1e-5


class Orientation(NamedTuple):
    """An orientation: mirrored about the diagonal or not, then top to bottom or not, then left to right or not."""

    transposed: bool
    upside_down: bool
    mirrored: bool

    def turn(self, images: np.ndarray) -> np.ndarray:
        """Images [n, side, side] in this orientation."""
        turned = images.transpose(0, 2, 1) if self.transposed else images
        return turned[:, :: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def turn_spectra(self, spectra: np.ndarray) -> np.ndarray:
        """Cosine transforms [n, f, f] of images in this orientation: mirroring changes the sign of odd frequencies."""
        turned = spectra.transpose(0, 2, 1) if self.transposed else spectra
        signs = (-1.0) ** np.arange(spectra.shape[1])
        return turned * (signs[:, None] if self.upside_down else 1) * (signs if self.mirrored else 1)


# A quarter turn to the right undoes one to the left, so that comparing both ways needs only one of the two.
ORIENTATIONS = [way for way in map(Orientation._make, product((False, True), repeat=3)) if way != (True, False, True)]


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Hash of each thumbnail [n, side, side] in each of `ORIENTATIONS`, uint64 [orientations, n], 63 bits of it.

    A bit is set if the coefficient of one of the 8 x 8 lowest frequencies of the cosine transform (without the mean,
    normalised to unit contrast) is above that of the average image, which keeps the bits informative where all images
    show the same kind of thing. No thumbnail is flat.
    """
    spectra = _transform(thumbnails)
    average = spectra.sum(axis=0) / (len(spectra) + _PRIOR)
    return np.stack([_pack(way.turn_spectra(spectra) > average) for way in ORIENTATIONS])


def _transform(thumbnails: np.ndarray) -> np.ndarray:
    """The lowest frequencies of thumbnails [n, side, side], of unit contrast, float32 [n, 8, 8]."""
    spectra = []
    for start in range(0, len(thumbnails), _CHUNK):
        waves = dctn(thumbnails[start : start + _CHUNK].astype(np.float32), axes=(1, 2), norm="ortho")
        waves[:, 0, 0] = 0
        contrast = np.sqrt(np.square(waves).sum(axis=(1, 2), keepdims=True))
        spectra.append(waves[:, :_FREQUENCIES, :_FREQUENCIES] / contrast)
    return np.concatenate(spectra)


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)[:, 0]


def search_all(thumbnails: np.ndarray, threshold: float) -> Iterator[tuple[Orientation, np.ndarray, np.ndarray]]:
    """Yield each orientation with pairs (turned row, row), int64 each, among them all that correlate this much.

    All are compared, by their 64 lowest frequencies and the length of the remainder: as the product of two lengths
    bounds the product of two vectors, no pair is missed. No thumbnail is flat.
    """
    chunks, spectra = range(0, len(thumbnails), _CHUNK), _transform(thumbnails)
    rest = np.sqrt(np.maximum(1 - np.square(spectra).sum(axis=(1, 2)), 0))[:, None]
    upright = np.concatenate([spectra.reshape(len(spectra), -1), rest], axis=1).astype(np.float32)
    for way in ORIENTATIONS:
        turned = np.concatenate([way.turn_spectra(spectra).reshape(len(spectra), -1), rest], axis=1).astype(np.float32)
        for start in chunks:
            for other in chunks:
                near = turned[start : start + _CHUNK] @ upright[other : other + _CHUNK].T >= threshold - _ROUNDING
                left, right = np.nonzero(near)
                yield way, left + start, right + other


class HashIndex:
    """Index of hashes, uint64 [n], that finds those at most `RADIUS` bits away.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): of the four parts of two hashes that differ in seven
    bits or fewer, one differs in at most one bit, so that only rows that share such a part are compared.
    """

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes
        self._tables = [_Table(part) for part in _split(hashes)]

    def search(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs (query, row) at most `RADIUS` bits apart, int64 each, a bounded number of queries at a time."""
        for start in range(0, len(queries), _CHUNK):
            chunk = queries[start : start + _CHUNK]
            found = [table.find(part) for table, part in zip(self._tables, _split(chunk), strict=True)]
            pairs = np.concatenate([query * len(self.hashes) + row for query, row in found])
            query, row = np.divmod(pairs, len(self.hashes))
            near = np.bitwise_count(chunk[query] ^ self.hashes[row]) <= RADIUS
            query, row = np.divmod(np.unique(pairs[near]), len(self.hashes))  # several parts can find the same
            yield query + start, row


def _split(hashes: np.ndarray) -> np.ndarray:
    """uint64 [n] -> int64 [parts, n]."""
    parts = [(hashes >> np.uint64(_PART_BITS * part)) & np.uint64(0xFFFF) for part in range(_PARTS)]
    return np.stack(parts).astype(np.int64)


class _Table:
    def __init__(self, keys: np.ndarray):
        self.order = np.argsort(keys, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << _PART_BITS))])

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(query, row) of all pairs whose parts differ in at most one bit."""
        buckets = (keys[:, None] ^ _PROBES).ravel()
        firsts = self.starts[buckets]
        counts = np.minimum(self.starts[buckets + 1] - firsts, _MAX_BUCKET)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        query = np.repeat(np.arange(len(keys)).repeat(len(_PROBES)), counts)
        return query, self.order[np.repeat(firsts, counts) + offsets]
