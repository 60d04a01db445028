"""Codebooks of handcrafted features: learned on training images alone, cached like activations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial

import keras
import numpy as np

from tlkeras.data.tables import Dataset
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.features.extraction import decoding_facts, stream_images
from tlkeras.features.handcrafted.descriptors import Sift
from tlkeras.features.handcrafted.encodings import LOCAL, learn_codebook
from tlkeras.features.handcrafted.layer import list_handcrafted, map_images
from tlkeras.progress import progress_bar

_IMAGES, _DESCRIPTORS = 500, 200
_VERSION = 1


def fit_codebooks(model: keras.Model, dataset: Dataset, cache: ActivationCache | None = None, *, seed: int = 0) -> int:
    """Learn the codebooks of a model's handcrafted features from training images; the number learned.

    A codebook is cached like an image's activations, by the digests of all images it was learned from. The dataset
    holds training images and no others. The seed draws them (at most 500, 200 descriptors of each) and the centres.

    Raises:
        DataError: There are too few descriptors.
        ResourceError: The cache cannot be written.
    """
    learned = 0
    size = model.input_shape[1]
    for layer in list_handcrafted(model):
        descriptor = layer.algorithm
        if not isinstance(descriptor, Sift):
            continue
        facts = {"codebook": layer.descriptor, "seed": seed, "version": _VERSION, **decoding_facts(dataset, size)}
        *ends, length = np.cumsum([math.prod(shape) for shape in descriptor.shapes.values()]).tolist()
        key = hashlib.sha256("".join(sorted(set(dataset.digests))).encode()).hexdigest()
        learn = partial(_learn_codebook, descriptor, dataset, size, seed)
        row, is_new = _find_or_learn(cache, Namespace(facts, (length,), "float32"), key, learn)
        learned += is_new
        parts = zip(np.split(row, ends), descriptor.shapes.values(), strict=True)
        layer.set_weights([part.reshape(shape) for part, shape in parts])
    return learned


def _find_or_learn(
    cache: ActivationCache | None, namespace: Namespace, key: str, learn: Callable[[], np.ndarray]
) -> tuple[np.ndarray, bool]:
    if cache is None:
        return learn(), True
    with cache.open(namespace) as store:
        ids = store.locate([key])
        if ids[0] >= 0:
            return store.gather(ids)[0], False
        cache.check_space(namespace.row_bytes)
        row = learn()
        with store.writer() as writer:
            writer.add([key], row[None])
        return row, True


def _learn_codebook(descriptor: Sift, dataset: Dataset, size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    order = np.argsort(np.asarray(dataset.digests, dtype=str), kind="stable")  # independent of their order
    rows = np.sort(order[random.permutation(len(order))[:_IMAGES]])
    found: list[np.ndarray] = []
    with progress_bar("Learning codebook", len(rows), "images") as advance:
        for _, batch in stream_images(dataset, rows, size):
            found += map_images(descriptor.find_local, batch)
            advance(len(batch))
    sampled = [local[random.permutation(len(local))[:_DESCRIPTORS]] for local in found]
    gathered = np.concatenate([np.empty((0, LOCAL), np.float32), *sampled])
    book = learn_codebook(gathered, descriptor.encoding, descriptor.words, descriptor.components, seed)
    return np.concatenate([book[name].ravel() for name in descriptor.shapes])
