"""Frozen activations of images: looked up in the cache, the missing ones computed and kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tlkeras.data import decoding
from tlkeras.data.augmentation.views import IDENTITY_VIEW, AugmentedView, digest_to_seed, make_all_views_fn
from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.tables import Dataset
from tlkeras.errors import TlkerasError
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.features.engines import Engine, EngineBatch, Result, make_engine
from tlkeras.features.store import ActivationStore
from tlkeras.progress import progress_bar

BATCH_SIZE = 32


def average_positions(rows: np.ndarray) -> np.ndarray:
    """Return maps [n, height, width, channels] averaged to [n, channels]; rows [n, d] as they are."""
    return rows.mean(axis=(1, 2)) if rows.ndim == 4 else rows


def decoding_facts(size: int, resize: str) -> Mapping[str, Any]:
    """What an image's pixels depend on besides the bytes of its file, as it stands in cache keys."""
    return {"size": size, "fit": resize, "decoder": decoding.VERSION}


def stream_images(
    dataset: Dataset,
    rows: np.ndarray,
    size: int,
    resize: str = "stretch",
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
) -> Generator[EngineBatch, None, None]:
    """Batches of decoded images, (sights int64 [b], images uint8 [b, size, size, 3]); each file is decoded once.

    A sight is one view of one image, `row * len(views) + number of the view`. Those of an image follow each other; of
    an unreadable one there are none.

    Args:
        dataset: The images; their digests are known.
        rows: Positions of the images to decode, int64 [n].
        size: Side of the decoded images in pixels.
        resize: How an image becomes a square: "stretch", "crop" or "pad".
        views: How each image is seen.
    """
    augment = None
    if any(view.facts() for view in views):
        augment = make_all_views_fn(views, digest_to_seed(dataset.digests[rows].tolist()))
    batch_size = max(1, BATCH_SIZE // len(views))
    paths = dataset.paths[rows].tolist()
    for index, images in make_image_dataset(paths, size, resize, batch_size, augment=augment).as_numpy_iterator():
        sights = rows[index][:, None] * len(views) + np.arange(len(views))
        yield sights.ravel(), images.reshape(-1, *images.shape[-3:])


@dataclass(frozen=True)
class CachedActivations:
    """Activations of one output of the prefix, on disk, in the order of the images kept.

    `rows[selection]` reads any rows as an array; `np.asarray(rows)` reads all.
    """

    store: ActivationStore
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ids), *self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype

    def __getitem__(self, selection: Any) -> np.ndarray:
        chosen = self.ids[selection]
        return self.store.gather(chosen) if chosen.ndim else self.store.gather(chosen[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Activations:
    """What `extract` returns.

    Attributes:
        views: For each view, one `Rows` per output of the prefix.
        kept: int64 [k], the images that have rows.
        rejected: The others, each with its reason.
        engine: What computed; None if nothing had to be.
        computed: Images run through the engine, each view counted.
        reused: Images whose rows were there before, each view counted.
        seconds: All of it, building the engine included.
    """

    views: tuple[tuple[CachedActivations, ...], ...]
    kept: np.ndarray
    rejected: tuple[InvalidImage, ...]
    engine: str | None
    computed: int
    reused: int
    seconds: float
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def outputs(self) -> tuple[CachedActivations, ...]:
        """The rows of the first view."""
        return self.views[0]

    def __enter__(self) -> Activations:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the cache be pruned again; without a cache, remove the rows."""
        self._open.close()


def extract_activations(
    extractor: keras.Model,
    dataset: Dataset,
    facts: Sequence[Mapping[str, Any]],
    *,
    resize: str = "stretch",
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
    cache: ActivationCache | None = None,
    engine: str | Engine = "auto",
    dtype: str | Sequence[str] = "float16",
) -> Activations:
    """Return the activations of images; what the cache lacks is computed, streaming, and kept.

    An image is known by its bytes, so equal files are computed once; each file is decoded once for all views.
    Memory does not grow with the number of images. Interrupted, at most the last half minute is lost.

    Args:
        extractor: From images [n, size, size, 3] to one or several tensors.
        dataset: The images; their digests are known.
        facts: Per output, what names its values in the cache; those of images, view, shape and dtype are added here.
        resize: How an image becomes a square: "stretch", "crop" or "pad".
        views: How each image is seen.
        cache: Where rows are kept; None keeps them in a temporary folder until the result is closed.
        engine: A name as in `make_engine`, or an engine made for this prefix before, to be used again.
        dtype: "float16" or "float32", as stored; one, or one per output.

    Raises:
        TlkerasError: Two views are the same.
        DataError: An activation is NaN, infinite or too large for float16; the message names the image.
        ResourceError: The rows do not fit the cache's budget or the disk.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if cache is None:
            cache = ActivationCache(stack.enter_context(tempfile.TemporaryDirectory(prefix="tlkeras-")))
        spaces = _describe_spaces(extractor, resize, facts, views, dtype)
        stores = [[stack.enter_context(cache.open(space)) for space in of_view] for of_view in spaces]
        digests = dataset.digests.tolist()
        lacking = _find_lacking(stores, digests)
        wanted = _find_wanted(lacking, digests)
        used, computed = None, 0
        if wanted.any():
            cache.check_space(_count_bytes(spaces, wanted))
            runner = make_engine(extractor, engine) if isinstance(engine, str) else engine
            used = runner.name
            rows = np.flatnonzero(wanted.any(axis=1))
            stream = _take_wanted(stream_images(dataset, rows, extractor.input_shape[1], resize, views), wanted)
            computed = _fill(stores, lacking, dataset, int(wanted.sum()), runner.run(stream))
        ids = np.array([[store.locate(digests) for store in of_view] for of_view in stores])
        found = np.all(ids >= 0, axis=(0, 1))
        return Activations(
            views=tuple(
                tuple(CachedActivations(store, of[found]) for store, of in zip(of_view, ids_of_view, strict=True))
                for of_view, ids_of_view in zip(stores, ids, strict=True)
            ),
            kept=np.flatnonzero(found),
            rejected=tuple(read_error(dataset.paths[row]) for row in np.flatnonzero(~found).tolist()),
            engine=used,
            computed=computed,
            reused=int(np.count_nonzero(~lacking.any(axis=1))),
            seconds=time.monotonic() - started,
            _open=stack.pop_all(),
        )


def count_cache_misses(
    extractor: keras.Model,
    dataset: Dataset,
    facts: Sequence[Mapping[str, Any]],
    cache: ActivationCache,
    dtype: str | Sequence[str] = "float16",
    *,
    resize: str = "stretch",
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
) -> int:
    """Return how many images, each view counted, `extract` would compute with the same arguments.

    Raises:
        TlkerasError: Two views are the same.
        ResourceError: Their rows do not fit the cache's budget or the disk.
    """
    spaces = _describe_spaces(extractor, resize, facts, views, dtype)
    with ExitStack() as stack:
        stores = [[stack.enter_context(cache.open(space)) for space in of_view] for of_view in spaces]
        digests = dataset.digests.tolist()
        wanted = _find_wanted(_find_lacking(stores, digests), digests)
    if wanted.any():
        cache.check_space(_count_bytes(spaces, wanted))
    return int(wanted.sum())


def _describe_spaces(
    extractor: keras.Model,
    resize: str,
    facts: Sequence[Mapping[str, Any]],
    views: Sequence[AugmentedView],
    dtype: str | Sequence[str],
) -> list[list[Namespace]]:
    """Return for each view the space of each output."""
    common = decoding_facts(extractor.input_shape[1], resize)
    dtypes = [dtype] * len(facts) if isinstance(dtype, str) else dtype
    spaces = [
        [
            Namespace({**common, **view.facts(), **about}, tuple(output.shape[1:]), kind)
            for about, output, kind in zip(facts, extractor.outputs, dtypes, strict=True)
        ]
        for view in views
    ]
    if len({of_view[0].key for of_view in spaces}) < len(views):
        raise TlkerasError("Each view must be another one.", ", ".join(str(view.facts()) for view in views))
    return spaces


def _find_lacking(stores: Sequence[Sequence[ActivationStore]], digests: Sequence[str]) -> np.ndarray:
    """Return which store lacks which image: bool [views, outputs, n]."""
    return np.array([[~store.known(digests) for store in of_view] for of_view in stores])


def _find_wanted(lacking: np.ndarray, digests: Sequence[str]) -> np.ndarray:
    """Return what to compute, bool [n, views]: of images with equal digests only the first."""
    wanted = np.asarray(lacking.any(axis=1)).T
    first = {digests[row]: row for row in reversed(np.flatnonzero(wanted.any(axis=1)))}
    chosen = np.zeros_like(wanted)
    rows = list(first.values())
    chosen[rows] = wanted[rows]
    return chosen


def _count_bytes(spaces: Sequence[Sequence[Namespace]], wanted: np.ndarray) -> int:
    widths = [sum(space.row_bytes for space in of_view) for of_view in spaces]
    return int(np.dot(wanted.sum(axis=0), widths))


def _take_wanted(batches: Iterable[EngineBatch], wanted: np.ndarray) -> Generator[EngineBatch, None, None]:
    """Leave out the sights that are there already."""
    flat = wanted.ravel()
    for sights, images in batches:
        chosen = flat[sights]
        yield (sights, images) if chosen.all() else (sights[chosen], images[chosen])


def _fill(
    stores: Sequence[Sequence[ActivationStore]],
    lacking: np.ndarray,
    dataset: Dataset,
    wanted: int,
    results: Generator[Result, None, None],
) -> int:
    """Add to each store the rows that it lacks; return how many sights came out, of those wanted."""
    computed = 0
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar("Extracting features", wanted, "images"))
        writers = [[stack.enter_context(store.writer()) for store in of_view] for of_view in stores]
        for sights, outputs in stack.enter_context(closing(results)):
            rows, views = np.divmod(sights, len(stores))
            for view in np.unique(views):
                for writer, output, lack in zip(writers[view], outputs, lacking[view], strict=True):
                    new = (views == view) & lack[rows]
                    names = [to_printable(dataset.paths[row]) for row in rows[new]]
                    writer.add([dataset.digests[row] for row in rows[new]], output[new], names)
            computed += len(sights)
            advance(len(sights))
        advance(wanted - computed)  # the unreadable ones
    return computed
