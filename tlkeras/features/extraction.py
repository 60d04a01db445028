"""Frozen activations of pictures: looked up in the cache, the missing ones computed and kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tlkeras.data import decoding
from tlkeras.data.headers import Rejection, printable
from tlkeras.data.pipeline import explain_unreadable, stream_pictures
from tlkeras.errors import TlkerasError, suggest
from tlkeras.features.cache import ActivationCache, Space
from tlkeras.features.engines import Batch, Engine, Result, make_engine
from tlkeras.features.store import Store
from tlkeras.progress import track

BATCH_SIZE = 32

POOLINGS: Mapping[str, Any] = {
    "average": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
    "none": None,
}


def pool(prefix: keras.Model, pooling: str) -> keras.Model:
    """Return the prefix with each output that is a map [n, height, width, channels] pooled to [n, channels].

    Raises:
        TlkerasError: The pooling is none of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise TlkerasError("The pooling must be a known one.", repr(pooling), suggest(pooling, POOLINGS))
    layer = POOLINGS[pooling]
    if layer is None:
        return prefix
    outputs = [layer()(output) if len(output.shape) == 4 else output for output in prefix.outputs]
    only = outputs[0] if len(outputs) == 1 else outputs  # Keras keeps a list of one as a list
    return keras.Model(prefix.input, only, name=f"{prefix.name}_{pooling}")


@dataclass(frozen=True)
class Pictures:
    """Picture files as a prefix will see them.

    Args:
        paths: Files.
        digests: The hex SHA-256 of each file's bytes.
        fit: How a picture becomes a square: "squash", "crop" or "pad".
    """

    paths: Sequence[str]
    digests: Sequence[str]
    fit: str = "squash"

    def __len__(self) -> int:
        return len(self.paths)

    def facts(self, size: int) -> dict[str, Any]:
        """Return what a picture's pixels depend on besides the bytes of its file."""
        return {"size": size, "fit": self.fit, "decoder": decoding.VERSION}

    def stream(self, rows: np.ndarray, size: int) -> Generator[Batch, None, None]:
        """Yield (rows [b], pictures uint8 [b, size, size, 3]); unreadable ones do not appear."""
        paths = [self.paths[row] for row in rows]
        for index, pictures in stream_pictures(paths, size, self.fit, BATCH_SIZE).as_numpy_iterator():
            yield rows[index], pictures


@dataclass(frozen=True)
class Rows:
    """Activations of one output of the prefix, on disk, in the order of the pictures kept.

    `rows[selection]` reads any rows as an array; `np.asarray(rows)` reads all.
    """

    store: Store
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
class Features:
    """What `extract` returns.

    Attributes:
        outputs: One `Rows` per output of the prefix.
        kept: int64 [k], the pictures that have rows.
        rejected: The others, each with its reason.
        engine: What computed; None if nothing had to be.
        computed: Pictures run through the engine.
        reused: Pictures kept whose rows were there before.
        seconds: All of it, building the engine included.
    """

    outputs: tuple[Rows, ...]
    kept: np.ndarray
    rejected: tuple[Rejection, ...]
    engine: str | None
    computed: int
    reused: int
    seconds: float
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the cache be pruned again; without a cache, remove the rows."""
        self._open.close()


def extract(
    prefix: keras.Model,
    pictures: Pictures,
    facts: Sequence[Mapping[str, Any]],
    *,
    cache: ActivationCache | None = None,
    engine: str | Engine = "auto",
    dtype: str = "float16",
) -> Features:
    """Return the activations of pictures; what the cache lacks is computed, streaming, and kept.

    A picture is known by its bytes, so equal files are computed once. Memory does not grow with the number of
    pictures. Interrupted, at most the last half minute is lost.

    Args:
        prefix: From pictures [n, size, size, 3] to one or several tensors.
        pictures: The files, and how they become tensors.
        facts: For each output what names its values in the cache: weights fingerprint, cut, pooling ... The
            pictures' own facts, shape and dtype are added here.
        cache: Where rows are kept; None keeps them in a temporary folder until the result is closed.
        engine: A name as in `make_engine`, or an engine made for this prefix before, to be used again.
        dtype: "float16" or "float32", as stored.

    Raises:
        DataError: An activation is NaN, infinite or too large for float16; the message names the picture.
        ResourceError: The rows do not fit the cache's budget or the disk.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if cache is None:
            cache = ActivationCache(stack.enter_context(tempfile.TemporaryDirectory(prefix="tlkeras-")))
        spaces = _describe_spaces(prefix, pictures, facts, dtype)
        stores = [stack.enter_context(cache.open(space)) for space in spaces]
        lacking, rows = _find_lacking(stores, pictures.digests)
        used, computed = None, 0
        if len(rows):
            cache.check_space(sum(space.row_bytes for space in spaces) * len(rows))
            runner = make_engine(prefix, engine) if isinstance(engine, str) else engine
            used = runner.name
            stream = pictures.stream(rows, prefix.input_shape[1])
            computed = _fill(stores, lacking, pictures, rows, runner.run(stream))
        ids = np.stack([store.locate(pictures.digests) for store in stores])
        found = np.all(ids >= 0, axis=0)
        return Features(
            outputs=tuple(Rows(store, of[found]) for store, of in zip(stores, ids, strict=True)),
            kept=np.flatnonzero(found),
            rejected=tuple(explain_unreadable(pictures.paths[row]) for row in np.flatnonzero(~found).tolist()),
            engine=used,
            computed=computed,
            reused=int(np.count_nonzero(~lacking.any(axis=0))),
            seconds=time.monotonic() - started,
            _open=stack.pop_all(),
        )


def count_lacking(
    prefix: keras.Model,
    pictures: Pictures,
    facts: Sequence[Mapping[str, Any]],
    cache: ActivationCache,
    dtype: str = "float16",
) -> int:
    """Return how many pictures `extract` would compute with the same arguments.

    Raises:
        ResourceError: Their rows do not fit the cache's budget or the disk.
    """
    spaces = _describe_spaces(prefix, pictures, facts, dtype)
    with ExitStack() as stack:
        stores = [stack.enter_context(cache.open(space)) for space in spaces]
        _, rows = _find_lacking(stores, pictures.digests)
    if len(rows):
        cache.check_space(sum(space.row_bytes for space in spaces) * len(rows))
    return len(rows)


def _describe_spaces(
    prefix: keras.Model, pictures: Pictures, facts: Sequence[Mapping[str, Any]], dtype: str
) -> list[Space]:
    common = pictures.facts(prefix.input_shape[1])
    return [
        Space({**common, **about}, tuple(output.shape[1:]), dtype)
        for about, output in zip(facts, prefix.outputs, strict=True)
    ]


def _find_lacking(stores: Sequence[Store], digests: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which store lacks which picture, bool [stores, n], and the rows to compute, without repetitions."""
    lacking = np.stack([~store.known(digests) for store in stores])
    return lacking, _first_of_each(digests, np.asarray(lacking.any(axis=0)))


def _first_of_each(digests: Sequence[str], wanted: np.ndarray) -> np.ndarray:
    """Return the wanted rows, only the first of those with equal digests, in order."""
    first = {digests[row]: row for row in reversed(np.flatnonzero(wanted))}
    return np.array(sorted(first.values()), np.int64)


def _fill(
    stores: Sequence[Store],
    lacking: np.ndarray,
    pictures: Pictures,
    rows: np.ndarray,
    results: Generator[Result, None, None],
) -> int:
    """Add to each store the rows that it lacks; return how many pictures came out, of those asked for."""
    computed = 0
    with ExitStack() as stack:
        advance = stack.enter_context(track("Extracting features", len(rows), "pictures"))
        writers = [stack.enter_context(store.writer()) for store in stores]
        for index, outputs in stack.enter_context(closing(results)):
            for writer, output, lack in zip(writers, outputs, lacking, strict=True):
                new = lack[index]
                names = [printable(pictures.paths[row]) for row in index[new]]
                writer.add([pictures.digests[row] for row in index[new]], output[new], names)
            computed += len(index)
            advance(len(index))
        advance(len(rows) - computed)  # the unreadable ones
    return computed
