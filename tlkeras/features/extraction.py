"""The frozen network up to a tap, and its activations: read from the cache, the missing ones computed and cached."""

import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones.blocks import Block, find_cut
from tlkeras.backbones.graph import open_nested
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.image_size import ImageSize, simplify_size
from tlkeras.data import decoding
from tlkeras.data.augmentation.views import IDENTITY_VIEW, AugmentedView, digest_to_seed, make_all_views_fn
from tlkeras.data.headers import InvalidImage, Look, to_printable
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, TlkerasError, list_some
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.features.engines import Engine, EngineBatch, EngineOutput, make_engine
from tlkeras.features.store import ActivationStore
from tlkeras.files import sha256
from tlkeras.lazy_tensorflow import check_backend
from tlkeras.progress import progress_bar

BATCH_SIZE = 32
_Facts = Sequence[Mapping[str, Any]]
_Stores = list[list[ActivationStore]]  # by view, and by output of the extractor


POOLED = "features"
SOURCE_LOGITS = "source"

_EPSILON = 1e-30  # a float32 below every probability that matters


@dataclass(frozen=True)
class FeatureExtractor:
    """The pretrained half. Its taps are POOLED, SOURCE_LOGITS (with a source head) and the names of cuts.

    The backbone, weights loaded, makes of uint8 images [n, h, w, 3] a map [n, h, w, width], with the pooling
    features [n, d]; the source head makes of the map the probabilities of the classes that the weights were trained on.
    """

    backbone: keras.Model
    pooled: keras.Model
    blocks: tuple[Block, ...] = ()
    source_head: keras.Model | None = None

    def join(self, taps: Sequence[str]) -> keras.Model:
        """One model from images to the activations at each tap."""
        outputs = [self._find(tap) for tap in taps]
        only = outputs[0] if len(outputs) == 1 else outputs  # Keras keeps a list of one as a list
        return keras.Model(self.backbone.input, only, name=self.backbone.name)

    def describe(self, taps: Sequence[str], name: str) -> list[Mapping[str, Any]]:
        """The facts of each tap's activations for the cache; the fingerprint identifies them."""
        return [{"backbone": name, "model": fingerprint(self.join([tap]))} for tap in taps]

    def copy_teacher(self) -> keras.Model:
        """A copy, with weights of its own, of the model to `source_log_probabilities`."""
        teacher = self.join([SOURCE_LOGITS])
        copied = keras.models.clone_model(teacher)
        copied.set_weights(teacher.get_weights())
        return copied

    def _find(self, tap: str) -> keras.KerasTensor:
        if tap == POOLED:
            return self.pooled.output
        if tap == SOURCE_LOGITS:
            return source_log_probabilities(self.backbone, self.source_head)
        return find_cut(self.backbone, tap).tensor


def source_log_probabilities(backbone: keras.Model, source_head: keras.Model | None) -> keras.KerasTensor:
    """The log-probabilities that the source head predicts, float32 [n, classes of the source]."""
    if source_head is None:
        raise ValueError("The network has no source head.")
    return keras.ops.log(source_head(backbone.output) + _EPSILON)


def average_positions(rows: np.ndarray) -> np.ndarray:
    """Maps [n, height, width, channels] averaged to [n, channels]; vectors [n, d] as they are."""
    return rows.mean(axis=(1, 2)) if rows.ndim == 4 else rows


def decoding_facts(dataset: Dataset, size: ImageSize) -> Mapping[str, Any]:
    """The facts that an image's pixels depend on besides the bytes of its file, for keys of the cache."""
    rendering = dataset.rendering
    depth = {"depth": rendering.depth_range} if rendering.depth_range else {}
    facts = {"size": size, "fit": rendering.resize, "background": rendering.background, **depth}
    return {**facts, "decoder": decoding.VERSION}


def stream_images(
    dataset: Dataset, rows: np.ndarray, size: ImageSize, views: Sequence[AugmentedView] = (IDENTITY_VIEW,)
) -> Generator[EngineBatch, None, None]:
    """Batches of decoded images, (samples int64 [b], images uint8 [b, h, w, 3]); each file is decoded once.

    A sample is one view of one readable image, `row * len(views) + number of the view`.
    """
    augment = None
    if any(view.facts() for view in views):
        augment = make_all_views_fn(views, digest_to_seed(dataset.digests[rows].tolist()))
    batch_size = max(1, BATCH_SIZE // len(views))
    paths = dataset.paths[rows].tolist()
    batches = make_image_dataset(paths, size, dataset.rendering, batch_size, augment=augment)
    for index, images in batches.as_numpy_iterator():
        samples = rows[index][:, None] * len(views) + np.arange(len(views))
        yield samples.ravel(), images.reshape(-1, *images.shape[-3:])


@dataclass(frozen=True)
class CachedActivations:
    """Activations of one output of the extractor, on disk; indexing and `np.asarray` read them."""

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
class Activations(AbstractContextManager["Activations"]):
    """Of each view the activations of each output of the extractor, and how `extract_activations` came by them.

    `kept` are the positions of images that have activations, int64 [k]; `rejected` the others, with reasons. The engine
    is None if all were cached; computed and reused are numbers of images, each view counted; seconds are all.
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
        """The activations of the first view."""
        return self.views[0]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the cache, which can be pruned then; without a cache, remove the activations."""
        self._open.close()


def extract_activations(
    extractor: keras.Model,
    dataset: Dataset,
    facts: Sequence[Mapping[str, Any]],
    *,
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
    cache: ActivationCache | None = None,
    engine: str | Engine = "auto",
    dtype: str | Sequence[str] = "float16",
) -> Activations:
    """The activations of images; those missing in the cache are computed, streaming, and cached.

    An image is identified by its bytes, so that equal files are computed once; each file is decoded once for all views.
    Memory does not grow with the number of images. An interruption loses at most the last half minute.

    Args:
        extractor: From images [n, h, w, 3] to one or several tensors.
        facts: Of the namespace of each output; those of images, view, shape and dtype are added here.
        cache: None: a temporary folder until the result is closed.
        engine: A name as in `make_engine`, or an engine made for this extractor before.
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
        namespaces = _make_namespaces(extractor, dataset, facts, views, dtype)
        digests = dataset.digests.tolist()
        stores, missing, needed = _open_stores(stack, cache, namespaces, digests)
        used, computed = None, 0
        if needed.any():
            runner = make_engine(extractor, engine) if isinstance(engine, str) else engine
            used = runner.name
            rows = np.flatnonzero(needed.any(axis=1))
            stream = _select_needed(
                stream_images(dataset, rows, simplify_size(extractor.input_shape[1:3]), views), needed
            )
            computed = _fill(stores, missing, dataset, int(needed.sum()), runner.run(stream))
        ids = np.array([[store.locate(digests) for store in of_view] for of_view in stores])
        found = np.all(ids >= 0, axis=(0, 1))
        outputs = [
            tuple(CachedActivations(store, of[found]) for store, of in zip(*of_view, strict=True))
            for of_view in zip(stores, ids, strict=True)
        ]
        rejected = tuple(read_error(path, dataset.rendering) for path in dataset.paths[~found])
        reused, seconds = int(np.count_nonzero(~missing.any(axis=1))), time.monotonic() - started
        kept = np.flatnonzero(found)
        return Activations(tuple(outputs), kept, rejected, used, computed, reused, seconds, stack.pop_all())


def extract(
    model: keras.Model,
    images: Sequence[str | PathLike[str]],
    *,
    cache: ActivationCache | None = None,
    engine: str = "auto",
    dtype: str = "float16",
    resize: Look = "stretch",
) -> np.ndarray:
    """Activations of image files at the output of a model of one's own, [n, ...], in their order.

        prefix, suffix = tlkeras.backbones.split(model, "block_12_add")
        features = tlkeras.features.extract(prefix, paths)

    They are cached by the bytes of the files and all that decides the model's output, weights included: only what is
    missing is computed. DataError if files cannot be read, or are not found.

    Args:
        model: From RGB images of a fixed size [n, size, size, 3], 0 to 255, to one tensor; with one input.
        cache: That of the user by default, see `tlkeras cache`.
        engine: "auto", or one of `make_engine`.
        dtype: "float16" or "float32", as cached.
        resize: How images become squares: "stretch", "crop" or "pad".
    """
    check_backend("extract")
    graph = open_nested(model)
    shape = tuple(graph.inputs[0].shape)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or shape[1:] != (shape[1], shape[1], 3) or shape[1] is None:
        rule = "Features are extracted by models from square RGB images of a fixed size to one tensor."
        raise TlkerasError(rule, f"{len(graph.outputs)} outputs of inputs {shape}", "Build the model with a size.")
    paths = [fspath(path) for path in images]
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise DataError("Some image files do not exist.", f"{missing[0]!r}, and {len(missing) - 1} more")
    dataset = Dataset.of_files(paths, list(map(sha256, paths)), resize)
    facts, cache = [{"backbone": "own", "model": fingerprint(graph)}], cache or ActivationCache()
    with extract_activations(graph, dataset, facts, cache=cache, engine=engine, dtype=dtype) as found:
        if problems := [f"{to_printable(bad.path)}: {bad.reason}" for bad in found.rejected]:
            raise DataError.from_problems("Some image files cannot be read:", list_some(problems))
        return np.asarray(found.outputs[0])


def count_cache_misses(
    extractor: keras.Model,
    dataset: Dataset,
    facts: Sequence[Mapping[str, Any]],
    cache: ActivationCache,
    dtype: str | Sequence[str] = "float16",
    *,
    views: Sequence[AugmentedView] = (IDENTITY_VIEW,),
) -> int:
    """The number of images, each view counted, that `extract_activations` would compute; it raises the same errors."""
    namespaces = _make_namespaces(extractor, dataset, facts, views, dtype)
    with ExitStack() as stack:
        _, _, needed = _open_stores(stack, cache, namespaces, dataset.digests.tolist())
    return int(needed.sum())


def _make_namespaces(
    extractor: keras.Model, dataset: Dataset, facts: _Facts, views: Sequence[AugmentedView], dtype: str | Sequence[str]
) -> list[list[Namespace]]:
    common = decoding_facts(dataset, simplify_size(extractor.input_shape[1:3]))
    dtypes = [dtype] * len(facts) if isinstance(dtype, str) else dtype
    outputs = list(zip(facts, extractor.outputs, dtypes, strict=True))
    namespaces = [
        [Namespace({**common, **view.facts(), **own}, tuple(output.shape[1:]), kind) for own, output, kind in outputs]
        for view in views
    ]
    if len({of_view[0].key for of_view in namespaces}) < len(views):
        raise TlkerasError("Two views are the same.", ", ".join(str(view.facts()) for view in views))
    return namespaces


def _open_stores(
    stack: ExitStack, cache: ActivationCache, namespaces: Sequence[Sequence[Namespace]], digests: Sequence[str]
) -> tuple[_Stores, np.ndarray, np.ndarray]:
    """The stores; which images they lack, bool [views, outputs, n]; images and views to compute, bool [n, views]. Of
    images with equal digests only the first is computed. A ResourceError is raised if there is no space for them.
    """
    stores = [[stack.enter_context(cache.open(namespace)) for namespace in of_view] for of_view in namespaces]
    missing = np.array([[~store.known(digests) for store in of_view] for of_view in stores])
    incomplete = np.asarray(missing.any(axis=1)).T
    first = {digests[row]: row for row in reversed(np.flatnonzero(incomplete.any(axis=1)))}
    needed, rows = np.zeros_like(incomplete), list(first.values())
    needed[rows] = incomplete[rows]
    if needed.any():
        widths = [sum(namespace.row_bytes for namespace in of_view) for of_view in namespaces]
        cache.check_space(int(np.dot(needed.sum(axis=0), widths)))
    return stores, missing, needed


def _select_needed(batches: Iterable[EngineBatch], needed: np.ndarray) -> Generator[EngineBatch, None, None]:
    flat = needed.ravel()
    for samples, images in batches:
        chosen = flat[samples]
        yield (samples, images) if chosen.all() else (samples[chosen], images[chosen])


def _fill(
    stores: _Stores, missing: np.ndarray, dataset: Dataset, needed: int, results: Generator[EngineOutput, None, None]
) -> int:
    """Add to each store the rows missing in it; the number of images computed, each view counted."""
    computed = 0
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar("Extracting features", needed, "images"))
        writers = [[stack.enter_context(store.writer()) for store in of_view] for of_view in stores]
        for samples, outputs in stack.enter_context(closing(results)):
            rows, views = np.divmod(samples, len(stores))
            for view in np.unique(views):
                for writer, output, absent in zip(writers[view], outputs, missing[view], strict=True):
                    new = (views == view) & absent[rows]
                    names = [to_printable(dataset.paths[row]) for row in rows[new]]
                    writer.add([dataset.digests[row] for row in rows[new]], output[new], names)
            computed += len(samples)
            advance(len(samples))
        advance(needed - computed)  # the unreadable ones
    return computed
