"""Codebooks of handcrafted features: learned on training images alone, cached like activations."""

import hashlib
import math
import warnings
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from tlkeras.config.image_size import ImageSize, simplify_size
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.features.extraction import decoding_facts, stream_images
from tlkeras.features.handcrafted.descriptors import LOCAL, Codebook, Sift
from tlkeras.features.handcrafted.layer import list_handcrafted, map_images
from tlkeras.progress import progress_bar

_IMAGES, _DESCRIPTORS = 500, 200
_VERSION = 1


def fit_codebooks(model: keras.Model, dataset: Dataset, cache: ActivationCache | None = None, *, seed: int = 0) -> int:
    """Learn the codebooks of a model's handcrafted features from a dataset of training images; the number learned.

    A codebook is cached like an image's activations, by the digests of all images it was learned from. The seed draws
    them (at most 500, 200 descriptors of each) and the centres. A DataError is raised for too few descriptors.
    """
    learned, size = 0, simplify_size(model.input_shape[1:3])
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


def _learn_codebook(descriptor: Sift, dataset: Dataset, size: ImageSize, seed: int) -> np.ndarray:
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


def learn_codebook(descriptors: np.ndarray, encoding: str, words: int, components: int, seed: int) -> Codebook:
    """The codebook of an encoding: principal components, and in these k-means or a mixture of Gaussians.

    Descriptors are of training images alone, float (m, 128); a DataError is raised for fewer than words or components.
    """
    if len(descriptors) < max(words, components):
        received = f"{len(descriptors):,} descriptors for {words} words and {components} components"
        way_out = "Set fewer words and components or detector: dense, or add training images."
        raise DataError("There are too few local descriptors to learn the codebook from.", received, way_out)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a codebook needs no full convergence
        space = PCA(components, svd_solver="full", random_state=seed).fit(descriptors)
        reduced = space.transform(descriptors)
        book = {"mean": space.mean_, "projection": space.components_.T}
        if encoding == "fisher":
            mixture = GaussianMixture(words, covariance_type="diag", reg_covar=1e-5, max_iter=50, random_state=seed)
            mixture.fit(reduced)
            book |= {"centres": mixture.means_, "variances": mixture.covariances_, "shares": mixture.weights_}
        else:
            book["centres"] = KMeans(words, n_init=1, max_iter=50, random_state=seed).fit(reduced).cluster_centers_
    return {name: np.asarray(array, np.float32) for name, array in book.items()}
