"""Aligners: affine maps after which features of a source and a target domain can be learned from together.

Every aligner is fitted on two matrices, keeps the order of rows and works on new ones. Metrics of the target rows of
the fit are transductive; fit on other target rows for metrics of images that are yet to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from tlkeras.errors import DataError
from tlkeras.heads.base import make_dense

if TYPE_CHECKING:
    import keras

Domain = Literal["source", "target"]

_FLOOR = 1e-10  # of eigenvalues, relative to the largest


class Aligner(TransformerMixin, BaseEstimator):
    """A scikit-learn transformer of two domains; subclasses give `_fit`, `_transform` and `to_layers`.

    In a pipeline it learns from the source and is asked about the target: `fit_transform` gives the source's rows as
    they are learned from, `transform` new rows of the target. Without target rows both domains are the same.
    """

    def fit(self, X: np.ndarray, y: np.ndarray | None = None, *, target: np.ndarray | None = None) -> Self:
        """Fit on the source's features (n, d) and the target's (m, d); `y` are the source's classes, where needed.

        Raises:
            DataError: What `check_domains` finds, or a method lacks.
        """
        try:
            X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        except ValueError as error:
            raise DataError("The source's features cannot be aligned.", error) from None
        self._fit(*check_domains(X, X if target is None else target), None if y is None else np.asarray(y))
        return self

    def fit_transform(self, X: np.ndarray, y: np.ndarray | None = None, *, target: np.ndarray | None = None) -> Any:
        """The source's rows, aligned."""
        return self.fit(X, y, target=target).transform(X, "source")

    def transform(self, X: np.ndarray, domain: Domain = "target") -> np.ndarray:
        """Aligned features of a domain (rows, k), float32, in the order of the rows."""
        check_is_fitted(self)
        return self._transform(validate_data(self, X, reset=False, dtype=np.float64), domain).astype(np.float32)

    def to_layers(self) -> list[keras.layers.Layer]:
        """The map of the target domain as layers; DataError if it cannot be expressed so."""
        raise NotImplementedError

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        raise NotImplementedError

    def _transform(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


class AffineAligner(Aligner):
    """Base of aligners that map each domain by a matrix and an offset.

    Attributes:
        maps_: By domain, matrix (d, k) and offset (k,), float64.
    """

    maps_: dict[str, tuple[np.ndarray, np.ndarray]]

    def _transform(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        matrix, offset = self.maps_[domain]
        return X @ matrix + offset

    def to_layers(self) -> list[keras.layers.Layer]:
        """The map of the target domain as a Dense layer."""
        check_is_fitted(self)
        return [make_dense(*self.maps_["target"])]

    def _set_map(self, domain: Domain, matrix: np.ndarray, mean: np.ndarray, offset: np.ndarray | float = 0.0) -> None:
        self.maps_ = {**getattr(self, "maps_", {}), domain: (matrix, offset - mean @ matrix)}

    def _set_identity(self, *domains: Domain, width: int) -> None:
        for domain in domains:
            self._set_map(domain, np.eye(width), np.zeros(width))


class Identity(AffineAligner):
    """Leaves features as they are: learning on the source alone."""

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        self._set_identity("source", "target", width=Xs.shape[1])


@dataclass(eq=False, repr=False)
class Coral(AffineAligner):
    """Gives the source the mean and covariance of the target: (x - m_s) C_s^-1/2 C_t^1/2 + m_t.

    Covariances are shrunk as Ledoit and Wolf say, so that there may be fewer rows than columns; the mean is moved too,
    which the paper leaves to standardising before.

    Args:
        shrinkage: Of both covariances towards a multiple of the unit matrix; "auto" estimates it for each.

    Source: Sun, Feng and Saenko, Return of Frustratingly Easy Domain Adaptation, AAAI 2016.
    """

    shrinkage: float | Literal["auto"] = "auto"

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        source, target = (measure_covariance(X, self.shrinkage) for X in (Xs, Xt))
        self._set_map("source", self._match(source, target), Xs.mean(axis=0), Xt.mean(axis=0))
        self._set_identity("target", width=Xt.shape[1])

    def _match(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The matrix (d, d) that turns the source's covariance into the target's."""
        return matrix_power(source, -0.5) @ matrix_power(target, 0.5)


class GaussianTransport(Coral):
    """Moves the source by the optimal map between Gaussians: (x - m_s) A + m_t,
    A = C_s^-1/2 (C_s^1/2 C_t C_s^1/2)^1/2 C_s^-1/2.

    Like `Coral` it gives the source the target's mean and covariance; of all such linear maps it moves rows least.

    Args:
        shrinkage: As of `Coral`.

    Source: Peyré and Cuturi, Computational Optimal Transport, 2019, remark 2.31; Knott and Smith, 1984.
    """

    def _match(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        root, inverse = matrix_power(source, 0.5), matrix_power(source, -0.5)
        return inverse @ matrix_power(root @ target @ root, 0.5) @ inverse


@dataclass(eq=False, repr=False)
class SubspaceAlignment(AffineAligner):
    """Turns the source's principal axes towards the target's: (x - m_s) P_s P_s' P_t, and (x - m_t) P_t.

    With all components it only centres and rotates; so there are `components` at most, and no more than explain
    `variance` of the source.

    Args:
        components: Maximum number of axes.
        variance: Share of the source's variance to explain.

    Source: Fernando et al., Unsupervised Visual Domain Adaptation Using Subspace Alignment, ICCV 2013.
    """

    components: int = 50
    variance: float = 0.9

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        most = min(self.components, len(Xs) - 1, len(Xt) - 1, Xs.shape[1])
        source, target = (PCA(most, svd_solver="full").fit(X) for X in (Xs, Xt))
        explained = np.cumsum(source.explained_variance_ratio_)
        count = min(int(np.searchsorted(explained, self.variance)) + 1, most)
        Ps, Pt = source.components_[:count].T, target.components_[:count].T
        self._set_map("source", Ps @ (Ps.T @ Pt), Xs.mean(axis=0))
        self._set_map("target", Pt, Xt.mean(axis=0))


@dataclass(eq=False, repr=False)
class JointPca(AffineAligner):
    """Projects both domains onto the principal axes of both together, each domain centred by its own mean.

    Args:
        components: Maximum number of axes.

    Source: the joint PCA baseline of Lalou et al., SKADA-Bench, 2024, with the domains' means taken out.
    """

    components: int = 50

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        together = np.concatenate([Xs - Xs.mean(axis=0), Xt - Xt.mean(axis=0)])
        count = min(self.components, len(together) - 2, Xs.shape[1])
        axes = PCA(count, svd_solver="full").fit(together).components_.T
        self._set_map("source", axes, Xs.mean(axis=0))
        self._set_map("target", axes, Xt.mean(axis=0))


def check_domains(Xs: np.ndarray, Xt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both matrices as float64.

    Raises:
        DataError: All problems at once: no matrices of equal width, fewer than two rows, values that are not finite, a
            domain in which all features are constant.
    """
    domains, problems = {"source": np.asarray(Xs, np.float64), "target": np.asarray(Xt, np.float64)}, []
    for name, X in domains.items():
        if X.ndim != 2 or len(X) < 2:
            problems.append(f"the {name} domain is no matrix of two rows or more. Received: shape {X.shape}.")
        elif not np.isfinite(X).all():
            problems.append(f"the {name} domain has {int((~np.isfinite(X)).sum())} values that are NaN or infinite.")
        elif not np.ptp(X, axis=0).any():
            problems.append(f"the {name} domain does not vary: {len(X)} equal rows.")
    if not problems and domains["source"].shape[1] != domains["target"].shape[1]:
        widths = " and ".join(str(X.shape[1]) for X in domains.values())
        problems.append(f"the domains have different features. Received: {widths} columns.")
    if problems:
        raise DataError.from_problems("Domains cannot be aligned:", problems)
    return domains["source"], domains["target"]


def measure_covariance(X: np.ndarray, shrinkage: float | Literal["auto"] = "auto") -> np.ndarray:
    """Shrunk covariance (1 - s) C + s tr(C) / d I, C divided by n, float64 [d, d].

    Source: Ledoit and Wolf, A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices, 2004.
    """
    share = ledoit_wolf_shrinkage(X) if shrinkage == "auto" else shrinkage
    C = np.cov(X, rowvar=False, bias=True).reshape(X.shape[1], X.shape[1])
    return (1 - share) * C + share * np.trace(C) / len(C) * np.eye(len(C))


def matrix_power(C: np.ndarray, power: float) -> np.ndarray:
    """The power of a symmetric positive matrix; eigenvalues are at least 1e-10 of the largest."""
    values, vectors = np.linalg.eigh((C + C.T) / 2)
    return (vectors * np.maximum(values, _FLOOR * values[-1]) ** power) @ vectors.T
