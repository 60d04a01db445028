"""Aligners: affine maps after which features of a source and a target domain can be learned from together.

Every aligner is fitted on two matrices, keeps the order of rows and works on new ones. Fitted on the rows that are
then measured it is transductive; fit it on other target rows for figures of images that are yet to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA

from tlkeras.errors import DataError
from tlkeras.heads.base import make_dense

if TYPE_CHECKING:
    import keras

Domain = Literal["source", "target"]

_FLOOR = 1e-10  # of eigenvalues, relative to the largest


class Aligner(Protocol):
    """What every aligner can do."""

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> Aligner:
        """Fit on source features (n, d) and target features (m, d); `ys` are the source's classes, where they count."""
        ...

    def transform(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        """Return aligned features (rows, k), float32, in the order of the rows."""
        ...

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return what a target image's features go through, as layers.

        Raises:
            DataError: The map is not one that layers can carry.
        """
        ...


class AffineAligner:
    """What aligners have in common that map each domain by a matrix and an offset.

    Attributes:
        maps_: By domain, matrix (d, k) and offset (k,), float64.
    """

    maps_: dict[str, tuple[np.ndarray, np.ndarray]]

    def transform(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        """Return X @ matrix + offset of a domain, float32."""
        matrix, offset = self.maps_[domain]
        return (np.asarray(X, np.float64) @ matrix + offset).astype(np.float32)

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return the map of the target domain as a Dense layer."""
        return [make_dense(*self.maps_["target"])]

    def _set(self, domain: str, matrix: np.ndarray, mean: np.ndarray, offset: np.ndarray | float = 0.0) -> None:
        """Let a domain be mapped by (x - mean) @ matrix + offset."""
        self.maps_ = getattr(self, "maps_", {}) | {domain: (matrix, offset - mean @ matrix)}


class Identity(AffineAligner):
    """Leaves features as they are: what is learned on the source alone."""

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> Identity:
        """Look at the shapes."""
        Xs, Xt = check_domains(Xs, Xt)
        for domain in ("source", "target"):
            self._set(domain, np.eye(Xs.shape[1]), np.zeros(Xs.shape[1]))
        return self


class Coral(AffineAligner):
    """Gives the source the mean and covariance of the target: (x - m_s) C_s^-1/2 C_t^1/2 + m_t.

    Covariances are shrunk as Ledoit and Wolf say, so that there are fewer rows than columns without harm; the mean is
    moved too, which the paper leaves to standardising before.

    Args:
        shrinkage: Of both covariances towards a multiple of the unit matrix; "auto" estimates it for each.

    Source: Sun, Feng and Saenko, Return of Frustratingly Easy Domain Adaptation, AAAI 2016.
    """

    def __init__(self, shrinkage: float | Literal["auto"] = "auto"):
        self.shrinkage = shrinkage

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> Coral:
        """Fit on both domains.

        Raises:
            DataError: A domain has fewer than two rows, or all its features are constant.
        """
        Xs, Xt = check_domains(Xs, Xt)
        source, target = (measure_covariance(X, self.shrinkage) for X in (Xs, Xt))
        self._set("source", matrix_power(source, -0.5) @ matrix_power(target, 0.5), Xs.mean(axis=0), Xt.mean(axis=0))
        self._set("target", np.eye(Xt.shape[1]), np.zeros(Xt.shape[1]))
        return self


class GaussianTransport(AffineAligner):
    """Moves the source by the optimal map between Gaussians: (x - m_s) A + m_t,
    A = C_s^-1/2 (C_s^1/2 C_t C_s^1/2)^1/2 C_s^-1/2.

    Like `Coral` it gives the source the target's mean and covariance; of all such linear maps it moves rows least.

    Args:
        shrinkage: As of `Coral`.

    Source: Peyré and Cuturi, Computational Optimal Transport, 2019, remark 2.31; Knott and Smith, 1984.
    """

    def __init__(self, shrinkage: float | Literal["auto"] = "auto"):
        self.shrinkage = shrinkage

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> GaussianTransport:
        """Fit on both domains; errors as of `Coral`."""
        Xs, Xt = check_domains(Xs, Xt)
        source, target = (measure_covariance(X, self.shrinkage) for X in (Xs, Xt))
        root, inverse = matrix_power(source, 0.5), matrix_power(source, -0.5)
        self._set(
            "source", inverse @ matrix_power(root @ target @ root, 0.5) @ inverse, Xs.mean(axis=0), Xt.mean(axis=0)
        )
        self._set("target", np.eye(Xt.shape[1]), np.zeros(Xt.shape[1]))
        return self


class SubspaceAlignment(AffineAligner):
    """Turns the source's principal axes towards the target's: (x - m_s) P_s P_s' P_t, and (x - m_t) P_t.

    With all components it only centres and rotates; so there are `components` at most, and no more than explain
    `variance` of the source.

    Args:
        components: At most so many axes.
        variance: Of the source that they should explain, a share.

    Source: Fernando et al., Unsupervised Visual Domain Adaptation Using Subspace Alignment, ICCV 2013.
    """

    def __init__(self, components: int = 50, variance: float = 0.9):
        self.components = components
        self.variance = variance

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> SubspaceAlignment:
        """Fit on both domains; errors as of `Coral`."""
        Xs, Xt = check_domains(Xs, Xt)
        most = min(self.components, len(Xs) - 1, len(Xt) - 1, Xs.shape[1])
        source, target = (PCA(most, svd_solver="full").fit(X) for X in (Xs, Xt))
        explained = np.cumsum(source.explained_variance_ratio_)
        count = min(int(np.searchsorted(explained, self.variance)) + 1, most)
        Ps, Pt = source.components_[:count].T, target.components_[:count].T
        self._set("source", Ps @ (Ps.T @ Pt), Xs.mean(axis=0))
        self._set("target", Pt, Xt.mean(axis=0))
        return self


class JointPca(AffineAligner):
    """Projects both domains onto the principal axes of both together, each domain centred by its own mean.

    Args:
        components: At most so many axes.

    Source: the joint PCA baseline of Lalou et al., SKADA-Bench, 2024, with the domains' means taken out.
    """

    def __init__(self, components: int = 50):
        self.components = components

    def fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None = None) -> JointPca:
        """Fit on both domains; errors as of `Coral`."""
        Xs, Xt = check_domains(Xs, Xt)
        together = np.concatenate([Xs - Xs.mean(axis=0), Xt - Xt.mean(axis=0)])
        count = min(self.components, len(together) - 2, Xs.shape[1])
        axes = PCA(count, svd_solver="full").fit(together).components_.T
        self._set("source", axes, Xs.mean(axis=0))
        self._set("target", axes, Xt.mean(axis=0))
        return self


def check_domains(Xs: np.ndarray, Xt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both matrices as float64.

    Raises:
        DataError: All problems at once: no matrices of equal width, fewer than two rows, what is not finite, a domain
            in which all features are constant.
    """
    found = {"source": np.asarray(Xs, np.float64), "target": np.asarray(Xt, np.float64)}
    problems = []
    for name, X in found.items():
        if X.ndim != 2 or len(X) < 2:
            problems.append(f"the {name} domain must be a matrix of two rows or more. Received: shape {X.shape}.")
        elif not np.isfinite(X).all():
            problems.append(
                f"the {name} domain must be finite. Received: {int((~np.isfinite(X)).sum())} NaN or infinity."
            )
        elif not np.ptp(X, axis=0).any():
            problems.append(f"the {name} domain must vary. Received: {len(X)} equal rows.")
    if not problems and found["source"].shape[1] != found["target"].shape[1]:
        widths = " and ".join(str(X.shape[1]) for X in found.values())
        problems.append(f"both domains must have the same features. Received: {widths} columns; see `pairs` for those.")
    if problems:
        raise DataError.from_problems("Domains cannot be aligned:", problems)
    return found["source"], found["target"]


def measure_covariance(X: np.ndarray, shrinkage: float | Literal["auto"] = "auto") -> np.ndarray:
    """Return (1 - s) C + s tr(C) / d I of the covariance C (divided by n), float64 [d, d].

    Source: Ledoit and Wolf, A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices, 2004.
    """
    share = ledoit_wolf_shrinkage(X) if shrinkage == "auto" else shrinkage
    C = np.cov(X, rowvar=False, bias=True).reshape(X.shape[1], X.shape[1])
    return (1 - share) * C + share * np.trace(C) / len(C) * np.eye(len(C))


def matrix_power(C: np.ndarray, power: float) -> np.ndarray:
    """Return the power of a symmetric positive matrix; eigenvalues below 1e-10 of the largest count as that."""
    values, vectors = np.linalg.eigh((C + C.T) / 2)
    return (vectors * np.maximum(values, _FLOOR * values[-1]) ** power) @ vectors.T
