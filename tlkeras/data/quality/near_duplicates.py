"""Exact duplicates by their bytes, and near duplicates by the correlation of thumbnails and by perceptual hashes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn
from scipy.linalg import eigh
from scipy.stats import norm

from tlkeras.data.headers import Look, Rendering
from tlkeras.data.pipeline import make_image_dataset
from tlkeras.progress import progress_bar

SIDE = 32  # pixels of a thumbnail
# Re-encoded or resized copies of solar cells correlate above the upper bound, different cells below it; images that
# correlate less than the lower bound may be two of the same scene.
LOWEST, HIGHEST = 0.97, 0.9992

MOST_COMPARED = 20_000  # images of which all pairs are compared; beyond, hashes find nearly all copies

_DECODED = 4 * SIDE  # pixels; a large JPEG is shrunk while it is decoded, to no less than this
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # grey from red, green and blue, ITU-R BT.601
_BATCH = 64
_FLAT = 2.0  # grey levels of standard deviation
_COMMON = 64  # directions in which the images of a set differ most
_OWN = 0.9  # without these, two copies correlate more than this, two images of the same kind of thing rarely
_SAMPLE = 1000  # images to estimate the correlations of different images from
_FEWEST = 100  # images; fewer are too few for that
_COMPARED = 4096  # pairs at once
_CHUNK = 2048

RADIUS = 7  # bits of a hash; with `_PARTS` parts, one of them then differs by one bit or none
_FREQUENCIES = 8
_PRIOR = 20  # images; a mean over fewer counts for little
_PARTS, _PART_BITS = 4, 16
_PROBES = np.array([0, *(1 << bit for bit in range(_PART_BITS))])
_MAX_BUCKET = 256  # rows read from one bucket, so that a hundred thousand equal hashes do not make n^2 pairs
_ROUNDING = 1e-5


class NearDuplicateGroup(NamedTuple):
    """Rows of images that look the same, ascending, and the lowest correlation of one with the central one."""

    rows: tuple[int, ...]
    similarity: float


def find_exact_duplicates(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of two or more rows with the same bytes: rows ascending, groups ordered by their first row.

    >>> find_exact_duplicates(["ab", "cd", "ab"])
    [(0, 2)]
    """
    return [tuple(rows) for rows in _list_rows(digests).values() if len(rows) > 1]


def _list_rows(digests: Sequence[str]) -> dict[str, list[int]]:
    rows = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    return rows


def find_near_duplicates(thumbnails: np.ndarray, digests: Sequence[str]) -> list[NearDuplicateGroup]:
    """Groups of images that look the same although their bytes differ, ordered by their first row.

    Copies are found that were re-encoded, resized, slightly brightened, mirrored or turned by quarters, not crops or
    images without contrast. All pairs are compared by the correlation of their thumbnails, among more than 20,000
    images those with nearly the same hash, and again without the structure common to all images, such as the busbars of
    solar cells. A group has a central image (star clustering, Aslam, Pelekhov and Rus 2004), and all rows of a digest.
    """
    members = _list_rows(digests)
    firsts = np.array([rows[0] for rows in members.values()], np.int64)
    firsts = firsts[thumbnails[firsts].std(axis=(1, 2), dtype=np.float32) >= _FLAT]
    if len(firsts) < 2:
        return []
    groups = []
    for positions, similarity in _cluster_stars(_find_pairs(thumbnails[firsts])):
        rows = [row for position in positions for row in members[digests[firsts[position]]]]
        groups.append(NearDuplicateGroup(tuple(sorted(rows)), similarity))
    return groups


def read_thumbnails(paths: Sequence[str], rendering: Look = "stretch") -> tuple[np.ndarray, np.ndarray]:
    """Grey thumbnails of the images that can be decoded, float16 [k, 32, 32], and their positions, int64 [k]."""
    thumbnails = np.empty((len(paths), SIDE, SIDE), np.float16)
    readable = np.zeros(len(paths), bool)
    if not paths:  # no graph is made for nothing
        return thumbnails, np.flatnonzero(readable)
    whole = replace(Rendering.of(rendering), resize="stretch")
    with progress_bar("Comparing images", len(paths), "images") as advance:
        for index, images in make_image_dataset(paths, _DECODED, whole, _BATCH).as_numpy_iterator():
            blocks = images.reshape(len(images), SIDE, _DECODED // SIDE, SIDE, _DECODED // SIDE, 3)
            thumbnails[index] = blocks.mean(axis=(2, 4), dtype=np.float32) @ _LUMA
            readable[index] = True
            advance(len(index))
        advance(int((~readable).sum()))
    return thumbnails[readable], np.flatnonzero(readable)


def choose_similarity_threshold(thumbnails: np.ndarray) -> float:
    """The correlation from which two thumbnails, not flat, are taken for the same image; `HIGHEST` for few images.

    Different images are expected to reach it less than once among all pairs, if the Fisher transforms of their
    correlations are normally distributed; their median and median absolute deviation come from a sample.
    """
    if len(thumbnails) < _FEWEST:
        return HIGHEST
    sample = _normalise(_sample(thumbnails))
    correlations = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    transformed = np.arctanh(np.clip(correlations, -0.999999, 0.999999))
    centre = np.median(transformed)
    spread = np.median(np.abs(transformed - centre)) / norm.ppf(0.75)
    pairs = len(ORIENTATIONS) * len(thumbnails) ** 2 / 2
    return float(np.clip(np.tanh(centre + spread * norm.isf(1 / pairs)), LOWEST, HIGHEST))


def _find_pairs(thumbnails: np.ndarray) -> dict[tuple[int, int], float]:
    """Correlation of each pair of positions, ascending, that is the same image."""
    threshold, remove_common = choose_similarity_threshold(thumbnails), _fit_common(thumbnails)
    few = len(thumbnails) <= MOST_COMPARED
    candidates = search_all(thumbnails, threshold) if few else search_hashes(thumbnails)
    pairs: dict[tuple[int, int], float] = {}
    for way, left, right in candidates:
        # A quarter turn alone is not its own inverse: for the other orientations either order finds the same.
        different = np.flatnonzero(left != right if way == (True, True, False) else left < right)
        for start in range(0, len(different), _COMPARED):
            chosen = different[start : start + _COMPARED]
            one, other = left[chosen], right[chosen]
            turned, upright = _normalise(way.turn(thumbnails[one])), _normalise(thumbnails[other])
            similarity = np.einsum("np,np->n", turned, upright)
            good = similarity >= threshold
            unsure = good & (similarity < HIGHEST)
            own = remove_common(turned[unsure]), remove_common(upright[unsure])
            good[unsure] = np.einsum("np,np->n", *own) >= _OWN
            ends = np.sort(np.stack([one[good], other[good]], axis=1), axis=1).tolist()
            for (low, high), value in zip(ends, similarity[good].tolist(), strict=True):
                pairs[low, high] = max(value, pairs.get((low, high), 0.0))
    return pairs


def _fit_common(thumbnails: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that removes from normalised rows [n, pixels] the mean and the first principal components. They come
    from a sample, upright and turned by a quarter; at most one component per twenty thumbnails.
    """
    if len(thumbnails) < _FEWEST:
        return lambda rows: rows
    upright = _sample(thumbnails)
    sample = _normalise(np.concatenate([upright, np.swapaxes(upright, 1, 2)]))
    mean = sample.mean(axis=0)
    centred = (sample - mean).astype(np.float64)
    pixels, count = sample.shape[1], min(_COMMON, len(sample) // 20)
    _, directions = eigh(centred.T @ centred, subset_by_index=[pixels - count, pixels - 1])  # far fewer than an SVD has
    common = directions.T.astype(np.float32)

    def remove(rows: np.ndarray) -> np.ndarray:
        own = rows - mean
        own -= (own @ common.T) @ common
        return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)

    return remove


def _sample(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails[np.linspace(0, len(thumbnails) - 1, min(len(thumbnails), _SAMPLE)).astype(int)]


def _normalise(thumbnails: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, float32 [n, pixels]."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _cluster_stars(pairs: dict[tuple[int, int], float]) -> list[NearDuplicateGroup]:
    """Group the image with most partners with those of them that are in no group yet, and so on."""
    partners: dict[int, dict[int, float]] = defaultdict(dict)
    for (one, other), similarity in pairs.items():
        partners[one][other] = partners[other][one] = similarity
    taken: set[int] = set()
    groups = []
    for centre in sorted(partners, key=lambda row: (-len(partners[row]), row)):
        free = {} if centre in taken else {at: value for at, value in partners[centre].items() if at not in taken}
        if free:
            taken |= {centre, *free}
            groups.append(NearDuplicateGroup(tuple(sorted((centre, *free))), min(*free.values(), 1.0)))
    return sorted(groups)


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

Candidates = tuple[Orientation, np.ndarray, np.ndarray]
"""Pairs that may be the same image: an orientation, rows turned so, rows, int64 [n] each."""


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Hash of each thumbnail [n, side, side], not flat, in each of `ORIENTATIONS`, uint64 [orientations, n], 63 bits.

    A bit is set if the coefficient of one of the 8 x 8 lowest frequencies of the cosine transform (without the mean, of
    unit contrast) is above that of the average image: informative where all images show the same kind of thing.
    """
    spectra = _transform(thumbnails)
    average = spectra.sum(axis=0) / (len(spectra) + _PRIOR)
    bits = ((way.turn_spectra(spectra) > average).reshape(len(spectra), -1) for way in ORIENTATIONS)
    return np.stack([np.packbits(each, axis=1).view(np.uint64)[:, 0] for each in bits])


def _transform(thumbnails: np.ndarray) -> np.ndarray:
    """The lowest frequencies of thumbnails [n, side, side], of unit contrast, float32 [n, 8, 8]."""
    spectra = []
    for start in range(0, len(thumbnails), _CHUNK):
        waves = dctn(thumbnails[start : start + _CHUNK].astype(np.float32), axes=(1, 2), norm="ortho")
        waves[:, 0, 0] = 0
        contrast = np.sqrt(np.square(waves).sum(axis=(1, 2), keepdims=True))
        spectra.append(waves[:, :_FREQUENCIES, :_FREQUENCIES] / contrast)
    return np.concatenate(spectra)


def search_all(thumbnails: np.ndarray, threshold: float) -> Iterator[Candidates]:
    """Yield pairs, among them all that correlate this much, by 64 lowest frequencies and the length of the remainder.

    As the product of two lengths bounds the product of two vectors, no pair is missed. No thumbnail is flat.
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


def search_hashes(thumbnails: np.ndarray) -> Iterator[Candidates]:
    """Yield pairs with hashes at most `RADIUS` bits apart."""
    hashes = hash_thumbnails(thumbnails)
    index = HashIndex(hashes[0])
    for way, queries in zip(ORIENTATIONS, hashes, strict=True):
        yield from ((way, left, right) for left, right in index.search(queries))


class HashIndex:
    """Index of hashes, uint64 [n], that finds those at most `RADIUS` bits away.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): only rows are compared that share one of four parts but
    for one bit, as two hashes do that differ in seven bits or fewer.
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
