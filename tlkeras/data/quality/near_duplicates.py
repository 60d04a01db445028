"""Images that are there twice: the same bytes, or the same image in other bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from tlkeras.data.pipeline import make_image_dataset
from tlkeras.data.quality.perceptual_hash import ORIENTATIONS, HashIndex, Orientation, hash_thumbnails, search_all
from tlkeras.progress import progress_bar

SIDE = 32  # pixels of a thumbnail
# Re-encoded or resized copies of solar cells correlate above the upper bound, different cells below it; images that
# correlate less than the lower bound may be two of the same scene.
LOWEST, HIGHEST = 0.97, 0.9992

MOST_COMPARED = 20_000  # images, of which each is compared with each; beyond, hashes find nearly all copies

_DECODED = 4 * SIDE  # pixels; a large JPEG is shrunk while it is decoded, to no less than this
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # grey from red, green and blue, ITU-R BT.601
_BATCH = 64
_FLAT = 2.0  # grey levels of standard deviation
_COMMON = 64  # directions in which the images of a set differ most
_OWN = 0.9  # what is left of two copies without these correlates more, of two images of one kind of thing seldom
_SAMPLE = 1000  # images that say how alike unlike ones are
_FEWEST = 100  # images; fewer say too little of that
_CHUNK = 4096


class NearDuplicateGroup(NamedTuple):
    """Rows that show the same image, ascending, and the lowest correlation of one of them with the central one."""

    rows: tuple[int, ...]
    similarity: float


def find_exact_duplicates(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Return groups of two rows or more with the same bytes: rows ascending, groups ordered by their first row."""
    rows = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    return [tuple(group) for group in rows.values() if len(group) > 1]


def find_near_duplicates(thumbnails: np.ndarray, digests: Sequence[str]) -> list[NearDuplicateGroup]:
    """Return groups of images that look the same though their bytes differ, ordered by their first row.

    Found are copies re-encoded, resized, slightly brightened, mirrored or turned by quarters: images are often
    augmented on disk before they are divided. Crops are not, nor images without contrast.

    All pairs are compared by the correlation of their thumbnails, of more than 20,000 images those with nearly the
    same hash (see `hashes`); its bound follows from the set, see `choose_bound`. They are compared again without what
    the images of the set have in common, so that two solar cells are not taken for one because their busbars are in
    the same places. Every member of a group was compared with its central image, so that a chain of small changes
    does not join what looks different (star clustering, Aslam, Pelekhov and Rus 2004).

    Args:
        thumbnails: [n, 32, 32], 0 to 255, from `read_thumbnails`.
        digests: What tells the bytes of the images apart, one each; a group holds all rows of a digest or none.
    """
    members = defaultdict(list)
    for row, digest in enumerate(digests):
        members[digest].append(row)
    firsts = np.array([rows[0] for rows in members.values()], np.int64)
    firsts = firsts[thumbnails[firsts].std(axis=(1, 2), dtype=np.float32) >= _FLAT]
    if len(firsts) < 2:
        return []
    groups = []
    for places, similarity in _gather_stars(_find_pairs(thumbnails[firsts])):
        rows = [row for place in places for row in members[digests[firsts[place]]]]
        groups.append(NearDuplicateGroup(tuple(sorted(rows)), similarity))
    return groups


def read_thumbnails(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return grey thumbnails float16 [k, 32, 32], and the places int64 [k] in `paths` of those that can be decoded.

    They are decoded as for training. Whole numbers would drown images of little contrast; 100,000 take 200 MB.
    """
    thumbnails = np.empty((len(paths), SIDE, SIDE), np.float16)
    readable = np.zeros(len(paths), bool)
    with progress_bar("Looking at images", len(paths), "images") as advance:
        for places, images in make_image_dataset(paths, _DECODED, "stretch", _BATCH).as_numpy_iterator():
            blocks = images.reshape(len(images), SIDE, _DECODED // SIDE, SIDE, _DECODED // SIDE, 3)
            thumbnails[places] = blocks.mean(axis=(2, 4), dtype=np.float32) @ _LUMA
            readable[places] = True
            advance(len(places))
        advance(int((~readable).sum()))
    return thumbnails[readable], np.flatnonzero(readable)


def choose_similarity_threshold(thumbnails: np.ndarray) -> float:
    """Return the correlation from which on two thumbnails of a set are taken for the same image.

    It is one that unlike images would not reach once among all pairs, if the Fisher transforms of their correlations
    are normally distributed; their median and median absolute deviation come from a sample. The bound stays between
    `LOWEST` and `HIGHEST`, and is `HIGHEST` for few images.

    Args:
        thumbnails: [n, 32, 32], none of them flat.
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
    """Return the correlation of each pair, lower place first, that is the same image."""
    bound, remove_common = choose_similarity_threshold(thumbnails), _find_common(thumbnails)
    candidates = search_all(thumbnails, bound) if len(thumbnails) <= MOST_COMPARED else _search_hashes(thumbnails)
    pairs: dict[tuple[int, int], float] = {}
    for way, left, right in candidates:
        different = _skip_repeated(way, left, right)
        for one, other in _cut(left[different], right[different]):
            turned, upright = _normalise(way.turn(thumbnails[one])), _normalise(thumbnails[other])
            similarity = _correlate(turned, upright)
            good = similarity >= bound
            unsure = good & (similarity < HIGHEST)
            good[unsure] = _correlate(remove_common(turned[unsure]), remove_common(upright[unsure])) >= _OWN
            ends = np.sort(np.stack([one[good], other[good]], axis=1), axis=1).tolist()
            for (low, high), value in zip(ends, similarity[good].tolist(), strict=True):
                pairs[low, high] = max(value, pairs.get((low, high), 0.0))
    return pairs


def _search_hashes(thumbnails: np.ndarray) -> Iterator[tuple[Orientation, np.ndarray, np.ndarray]]:
    hashes = hash_thumbnails(thumbnails)
    index = HashIndex(hashes[0])
    for way, queries in zip(ORIENTATIONS, hashes, strict=True):
        for left, right in index.search(queries):
            yield way, left, right


def _skip_repeated(way: Orientation, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return which pairs must be compared, bool [n]."""
    # A quarter turn alone is not its own inverse: for the other ways either order finds the same.
    return left != right if way == (True, True, False) else left < right


def _cut(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(left), _CHUNK):
        yield left[start : start + _CHUNK], right[start : start + _CHUNK]


def _find_common(thumbnails: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes from normalised rows [n, pixels] the mean and the directions in which most images differ.

    These are principal components of a sample, upright and turned by a quarter, because two turned cells are not one
    either; at most one per twenty of these, so that an image cannot make one of its own.
    """
    if len(thumbnails) < _FEWEST:
        return lambda rows: rows
    upright = _sample(thumbnails)
    sample = _normalise(np.concatenate([upright, np.swapaxes(upright, 1, 2)]))
    mean = sample.mean(axis=0)
    _, _, directions = np.linalg.svd(sample - mean, full_matrices=False)
    common = directions[: min(_COMMON, len(sample) // 20)]

    def remove(rows: np.ndarray) -> np.ndarray:
        own = rows - mean
        own -= (own @ common.T) @ common
        return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)

    return remove


def _sample(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails[np.linspace(0, len(thumbnails) - 1, min(len(thumbnails), _SAMPLE)).astype(int)]


def _correlate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("np,np->n", left, right)


def _normalise(thumbnails: np.ndarray) -> np.ndarray:
    """Return rows float32 [n, pixels] of mean 0 and length 1."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _gather_stars(pairs: dict[tuple[int, int], float]) -> list[NearDuplicateGroup]:
    """Take the place with most partners that are free, group it with these, and so on."""
    partners: dict[int, dict[int, float]] = defaultdict(dict)
    for (one, other), similarity in pairs.items():
        partners[one][other] = partners[other][one] = similarity
    taken: set[int] = set()
    groups = []
    for centre in sorted(partners, key=lambda place: (-len(partners[place]), place)):
        free = {} if centre in taken else {at: value for at, value in partners[centre].items() if at not in taken}
        if free:
            taken |= {centre, *free}
            groups.append(NearDuplicateGroup(tuple(sorted((centre, *free))), min(*free.values(), 1.0)))
    return sorted(groups)
