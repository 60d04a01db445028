"""From the many local descriptors of an image to one vector: codebooks, bag of words, VLAD, Fisher vectors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from tlkeras.errors import DataError

ENCODINGS = ("vlad", "fisher", "words")

Codebook = Mapping[str, np.ndarray]
"""`mean` (128,), `projection` (128, c), `centres` (k, c); of Fisher vectors `variances` (k, c) and `shares` (k,)."""

LOCAL = 128
"""Length of a SIFT descriptor."""

_TINY = 1e-12


def shape_codebook(encoding: str, words: int, components: int) -> dict[str, tuple[int, ...]]:
    mixture = {"variances": (words, components), "shares": (words,)} if encoding == "fisher" else {}
    return {"mean": (LOCAL,), "projection": (LOCAL, components), "centres": (words, components), **mixture}


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


def encode(descriptors: np.ndarray, book: Codebook, encoding: str) -> np.ndarray:
    """The descriptors (m, 128) of an image as one vector of length one; zeros where there are none.

    Its length is k for "words", k c for "vlad", 2 k c for "fisher".
    """
    words, components = book["centres"].shape
    if not len(descriptors):
        return np.zeros({"words": words, "vlad": words * components, "fisher": 2 * words * components}[encoding])
    reduced = (descriptors - book["mean"]) @ book["projection"]
    if encoding == "fisher":
        return encode_fisher(reduced, book["centres"], book["variances"], book["shares"])
    return (encode_vlad if encoding == "vlad" else bag_of_words)(reduced, book["centres"])


def bag_of_words(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The square roots of the shares of rows (m, c) nearest to each centre (k, c): (k,).

    A bag of words (Csurka et al., 2004); roots make the scalar product of two of them Hellinger's affinity.
    """
    return np.sqrt(np.bincount(_find_nearest(X, centres), minlength=len(centres)) / len(X))


def encode_vlad(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The sum of the differences of rows (m, c) from their nearest centre, centre after centre: (k c,).

    Jegou et al., CVPR 2010, with the sum of each centre normalised to length one before the whole vector is
    (Arandjelovic and Zisserman, "All about VLAD", CVPR 2013).
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
