"""Pictures that are there twice: the same bytes, or the same picture in other bytes."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from tlkeras.data.hashes import ORIENTATIONS, HashIndex, Orientation, hash_thumbnails
from tlkeras.data.headers import PictureError, check_header, read_picture
from tlkeras.progress import track

SIDE = 32  # pixels of a thumbnail
# Re-encoded or resized copies of solar cells correlate above the upper bound, different cells below it; pictures that
# correlate less than the lower bound may be two of the same scene.
LOWEST, HIGHEST = 0.97, 0.9992

_DECODED = 4 * SIDE  # a JPEG is decoded to no less than this
_FLAT = 2.0  # grey levels of standard deviation
_SAMPLE = 1000  # pictures that say how alike unlike ones are
_FEWEST = 100  # pictures; fewer say too little of that
_CHUNK = 4096


class Group(NamedTuple):
    """Rows that show the same picture, ascending, and the lowest correlation of one of them with the central one."""

    rows: tuple[int, ...]
    similarity: float


def find_equal(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Return groups of two rows or more with the same bytes: rows ascending, groups ordered by their first row."""
    rows = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    return [tuple(group) for group in rows.values() if len(group) > 1]


def find_near(paths: Sequence[str], digests: Sequence[str]) -> list[Group]:
    """Return groups of pictures that look the same though their bytes differ, ordered by their first row.

    Found are copies re-encoded, resized, slightly brightened, mirrored or turned by quarters: pictures are often
    augmented on disk before they are divided. Slight crops are found where the pictures of the set differ enough from
    each other. Left out are files that cannot be read and pictures without contrast.

    Each file is decoded once, to a grey thumbnail of 32 x 32 that stays in memory (100 MB per 100,000 pictures). Pairs
    with nearly the same hash (see `hashes`) are compared by the correlation of their thumbnails; the bound follows from
    the set, see `choose_bound`. Every member of a group was compared with its central picture, so that a chain of
    small changes does not join what looks different (star clustering, Aslam, Pelekhov and Rus 2004).

    Args:
        paths: Files.
        digests: What tells their bytes apart, one each; the first row stands for those that are equal.
    """
    first = dict(zip(reversed(digests), reversed(range(len(digests))), strict=True))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    thumbnails, readable = _load([paths[row] for row in rows])
    rows = rows[readable]
    if len(rows) < 2:
        return []
    return [
        Group(tuple(int(rows[place]) for place in group.rows), group.similarity)
        for group in _gather_stars(_find_pairs(thumbnails))
    ]


def choose_bound(thumbnails: np.ndarray) -> float:
    """Return the correlation from which on two thumbnails of a set are taken for the same picture.

    It is one that unlike pictures would not reach once among all pairs, if the Fisher transforms of their correlations
    are normally distributed; their median and median absolute deviation come from a sample. The bound stays between
    `LOWEST` and `HIGHEST`, and is `HIGHEST` for few pictures.

    Args:
        thumbnails: uint8 [n, 32, 32], none of them flat.
    """
    if len(thumbnails) < _FEWEST:
        return HIGHEST
    sample = _normalise(thumbnails[np.linspace(0, len(thumbnails) - 1, min(len(thumbnails), _SAMPLE)).astype(int)])
    correlations = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    transformed = np.arctanh(np.clip(correlations, -0.999999, 0.999999))
    centre = np.median(transformed)
    spread = np.median(np.abs(transformed - centre)) / norm.ppf(0.75)
    pairs = len(ORIENTATIONS) * len(thumbnails) ** 2 / 2
    return float(np.clip(np.tanh(centre + spread * norm.isf(1 / pairs)), LOWEST, HIGHEST))


def _load(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return thumbnails uint8 [k, side, side], and the places in `paths` that they are of."""
    thumbnails = np.empty((len(paths), SIDE, SIDE), np.uint8)
    kept = np.zeros(len(paths), bool)
    with ThreadPoolExecutor(os.cpu_count()) as pool, track("Looking for copies", len(paths), "pictures") as advance:
        for start in range(0, len(paths), _CHUNK):
            for place, thumbnail in enumerate(pool.map(_shrink, paths[start : start + _CHUNK]), start):
                if thumbnail is not None and thumbnail.std() >= _FLAT:
                    thumbnails[place], kept[place] = thumbnail, True
                advance(1)
    return thumbnails[kept], np.flatnonzero(kept)


def _shrink(path: str) -> np.ndarray | None:
    from PIL import Image

    try:
        data = read_picture(path)
        check_header(data)
        with Image.open(io.BytesIO(data)) as picture:
            picture.draft("L", (_DECODED, _DECODED))
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            else:
                grey = picture.convert("RGB").convert("L")  # by RGB: an alpha channel is dropped, a palette looked up
            return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0))
    except (PictureError, OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
        return None


def _find_pairs(thumbnails: np.ndarray) -> dict[tuple[int, int], float]:
    """Return the correlation of each pair, lower place first, that is the same picture."""
    bound = choose_bound(thumbnails)
    hashes = hash_thumbnails(thumbnails)
    index = HashIndex(hashes[0])
    pairs: dict[tuple[int, int], float] = {}
    for way, queries in zip(ORIENTATIONS, hashes, strict=True):
        for left, right in index.search(queries):
            for one, other, similarity in _verify(thumbnails, way, left, right, bound):
                pair = min(one, other), max(one, other)
                pairs[pair] = max(similarity, pairs.get(pair, 0.0))
    return pairs


def _verify(
    thumbnails: np.ndarray, way: Orientation, left: np.ndarray, right: np.ndarray, bound: float
) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs that correlate enough, the left one turned."""
    # A quarter turn alone is not its own inverse: for the other ways either order finds the same.
    different = left != right if way == (True, True, False) else left < right
    left, right = left[different], right[different]
    for start in range(0, len(left), _CHUNK):
        lefts, rights = left[start : start + _CHUNK], right[start : start + _CHUNK]
        turned = _normalise(way.turn(thumbnails[lefts]))
        correlations = np.einsum("np,np->n", turned, _normalise(thumbnails[rights]))
        good = correlations >= bound
        yield from zip(lefts[good].tolist(), rights[good].tolist(), correlations[good].tolist(), strict=True)


def _normalise(thumbnails: np.ndarray) -> np.ndarray:
    """Return rows float32 [n, pixels] of mean 0 and length 1."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _gather_stars(pairs: dict[tuple[int, int], float]) -> list[Group]:
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
            groups.append(Group(tuple(sorted((centre, *free))), min(*free.values(), 1.0)))
    return sorted(groups)
