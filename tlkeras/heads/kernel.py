"""Kernel heads: a linear head behind a map in which inner products are a kernel, exactly or nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import additive_chi2_kernel, pairwise_kernels
from sklearn.utils.validation import check_is_fitted

from tlkeras.heads.base import LabelledFeatures, LinearClassifierHead, VectorHead, finish_layers
from tlkeras.heads.class_weights import ClassWeight
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.ridge import RidgeHead
from tlkeras.heads.scaling import measure_columns
from tlkeras.heads.svm import LinearSVMHead

if TYPE_CHECKING:
    import keras

KernelName = Literal["rbf", "polynomial", "laplacian", "chi2"]

EXACT = 1000
"""Up to so many rows, all of them are landmarks unless a number is asked for: the kernel is then exact."""

_SOLVERS: dict[str, type[LinearClassifierHead]] = {"ridge": RidgeHead, "logistic": LinearHead, "svm": LinearSVMHead}
_SEARCHED = (0.25, 0.5, 1.0, 2.0, 4.0)
_MEASURED = 1000  # rows whose distances give the median
_RANK = 1e-6  # eigenvalues of the landmarks' kernel below this share of the largest are left out


@dataclass(frozen=True)
class KernelOptions:
    """Which kernel, and how its space is reached.

    Args:
        kernel: "rbf", "polynomial", "laplacian" or "chi2".
        approximation: "nystroem" or "fourier".
        components: Landmarks or waves; "auto" is every row up to `EXACT` of them, else `EXACT`.
        gamma: Inverse width: a number; "median" for one over the median distance, as the kernel measures it, of two
            rows; "search" for the best of a quarter to four times that, by held-out log loss.
        degree: Of the polynomial.
    """

    kernel: KernelName = "rbf"
    approximation: Literal["nystroem", "fourier"] = "nystroem"
    components: int | Literal["auto"] = "auto"
    gamma: float | Literal["median", "search"] = "median"
    degree: int = 3


class KernelHead(VectorHead):
    """Ridge regression, logistic regression or a support vector machine in the space of a kernel.

    The Nystroem map (Williams and Seeger, NIPS 2000) is exact where every row is a landmark: then this is kernel ridge
    regression or a kernel machine as textbooks have them. Random Fourier features (Rahimi and Recht, NIPS 2007) know
    rbf and laplacian. Columns are standardised first, but for chi2, whose features must not be negative.

    Args:
        space: Which kernel, and how its space is reached; `KernelSpace()` if None.
        solver: "ridge", "logistic" or "svm".
        folds: Number of folds that choose the strength, and gamma if searched.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        seed: Of landmarks, waves and folds.

    Attributes:
        space_: The space used.
        gamma_: The gamma used.
        exact_: Whether every row is a landmark.
        linear_: The fitted linear head behind the map.
        scores_: Held-out log loss by strength, for the gamma that was used.
    """

    kind = "kernel"

    def __init__(
        self,
        space: KernelOptions | None = None,
        solver: Literal["ridge", "logistic", "svm"] = "ridge",
        folds: int = 5,
        class_weight: ClassWeight = None,
        seed: int = 0,
    ):
        self.space = space
        self.solver = solver
        self.folds = folds
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        self.space_ = self.space or KernelOptions()
        self._check(rows.X)
        self.mean_, self.scale_ = measure_columns(rows.X, rows.weights)
        if self.space_.kernel == "chi2":
            self.mean_, self.scale_ = np.zeros_like(self.mean_), np.ones_like(self.scale_)
        Z = (rows.X - self.mean_) / self.scale_
        best, found = np.inf, False
        for gamma in self._list_gammas(Z):
            mapping = self._make_map(Z, gamma)
            validation = None
            if held is not None:
                held_Z = (held.X - self.mean_) / self.scale_
                validation = (mapping.apply(held_Z), held.codes, held.weights)
            head = _SOLVERS[self.solver](folds=self.folds, standardize=False, seed=self.seed)
            head.fit(mapping.apply(Z), rows.codes, rows.weights, validation=validation, groups=groups)
            loss = min(head.scores_.values(), default=np.inf)
            if loss < best or not found:
                best, found = loss, True
                self.gamma_, self.map_, self.linear_, self.scores_ = gamma, mapping, head, head.scores_
        self.exact_ = self.space_.approximation == "nystroem" and self.map_.size == len(Z)

    def _check(self, X: np.ndarray) -> None:
        if self.space_.kernel == "chi2" and X.min() < 0:
            raise ValueError(f"The chi2 kernel needs features that are not negative. Received: {X.min():.3g}.")
        if self.space_.approximation == "fourier" and self.space_.kernel not in ("rbf", "laplacian"):
            raise ValueError(f"Random Fourier features know rbf and laplacian. Received: {self.space_.kernel!r}.")

    def _list_gammas(self, Z: np.ndarray) -> list[float]:
        if self.space_.gamma not in ("median", "search"):
            return [float(self.space_.gamma)]
        gamma = find_median_gamma(Z, self.space_.kernel, self.seed)
        return [gamma] if self.space_.gamma == "median" else [gamma * factor for factor in _SEARCHED]

    def _make_map(self, Z: np.ndarray, gamma: float) -> NystroemMap | RandomFourierFeatures:
        count = EXACT if self.space_.components == "auto" else self.space_.components
        random = np.random.default_rng(self.seed)
        if self.space_.approximation == "fourier":
            return RandomFourierFeatures.draw(Z.shape[1], count, self.space_.kernel, gamma, random)
        chosen = np.arange(len(Z)) if len(Z) <= count else np.sort(random.permutation(len(Z))[:count])
        return NystroemMap.fit(Z[chosen], self.space_.kernel, gamma, self.space_.degree)

    def _logits(self, X: np.ndarray) -> np.ndarray:
        mapped = self.map_.apply((X - self.mean_) / self.scale_)
        return mapped @ self.linear_.kernel_ + self.linear_.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return standardisation, the kernel map, and the maps to logits and probabilities."""
        import keras

        check_is_fitted(self)
        mean, variance = self.mean_.tolist(), (self.scale_**2).tolist()
        entry = keras.layers.Normalization(mean=mean, variance=variance, name="head_input")
        kernel_map, kernel = self.map_.to_layer(self.linear_.kernel_)
        return [entry, kernel_map, *finish_layers(kernel, self.linear_.bias_, self.link_)]

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        chosen = {name: value for name, value in self.linear_.describe().items() if name != "kind"}
        return {
            "kind": self.kind,
            "kernel": self.space_.kernel,
            "gamma": self.gamma_,
            "components": self.map_.size,
            "exact": self.exact_,
            **chosen,
        }

    def history(self) -> dict[str, list[float]]:
        """Return the held-out log loss by strength, as columns."""
        return self.linear_.history()


class NystroemMap:
    """Features in which inner products are the kernel: exactly between landmarks, nearly elsewhere.

    With the landmarks' kernel K = Q S Q^T it is k(x, landmarks) Q S^(-1/2).

    Attributes:
        landmarks: (m, d).
        whitening: Q S^(-1/2), (m, r).
        size: Number of landmarks m.
    """

    def __init__(self, landmarks: np.ndarray, whitening: np.ndarray, kernel: KernelName, gamma: float, degree: int):
        self.landmarks, self.whitening = landmarks, whitening
        self.kernel, self.gamma, self.degree = kernel, gamma, degree
        self.size = len(landmarks)

    @classmethod
    def fit(cls, landmarks: np.ndarray, kernel: KernelName, gamma: float, degree: int) -> NystroemMap:
        """Return the map of landmarks (m, d)."""
        values = measure_kernel(landmarks, landmarks, kernel, gamma, degree)
        squares, directions = np.linalg.eigh(values.astype(np.float64))
        kept = squares > _RANK * squares[-1]
        whitening = directions[:, kept] / np.sqrt(squares[kept])
        return cls(landmarks, whitening, kernel, gamma, degree)

    def apply(self, Z: np.ndarray) -> np.ndarray:
        """Return features (n, r) of rows (n, d)."""
        return measure_kernel(Z, self.landmarks, self.kernel, self.gamma, self.degree) @ self.whitening

    def to_layer(self, kernel: np.ndarray) -> tuple[keras.layers.Layer, np.ndarray]:
        """Return the layer, and the linear map (m, k) behind it that stands for one of the features, (r, k)."""
        from tlkeras.heads.layers import KernelFeatures

        layer = KernelFeatures(self.kernel, self.size, self.gamma, self.degree, name="head_kernel")
        layer.build((None, self.landmarks.shape[1]))
        layer.set_weights([self.landmarks])
        return layer, self.whitening @ kernel


class RandomFourierFeatures:
    """Random waves in which inner products are nearly the kernel.

    Attributes:
        frequencies: (d, m).
        phases: (m,).
        size: Number of waves m.
    """

    def __init__(self, frequencies: np.ndarray, phases: np.ndarray):
        self.frequencies, self.phases, self.size = frequencies, phases, len(phases)

    @classmethod
    def draw(
        cls, width: int, waves: int, kernel: KernelName, gamma: float, random: np.random.Generator
    ) -> RandomFourierFeatures:
        """Draw frequencies from the kernel's spectrum: a normal one for rbf, Cauchy's for laplacian."""
        if kernel == "rbf":
            frequencies = random.normal(scale=np.sqrt(2 * gamma), size=(width, waves))
        else:
            frequencies = gamma * random.standard_cauchy((width, waves))
        return cls(frequencies.astype(np.float32), random.uniform(0, 2 * np.pi, waves).astype(np.float32))

    def apply(self, Z: np.ndarray) -> np.ndarray:
        """Return features (n, m) of rows (n, d)."""
        return np.sqrt(2 / self.size) * np.cos(Z @ self.frequencies + self.phases)

    def to_layer(self, kernel: np.ndarray) -> tuple[keras.layers.Layer, np.ndarray]:
        """Return the layer, and the linear map behind it."""
        from tlkeras.heads.layers import FourierMap

        layer = FourierMap(self.size, name="head_waves")
        layer.build((None, len(self.frequencies)))
        layer.set_weights([self.frequencies, self.phases])
        return layer, kernel


def measure_kernel(X: np.ndarray, Y: np.ndarray, kernel: KernelName, gamma: float, degree: int) -> np.ndarray:
    """Return the kernel of each row (n, d) with each of others (m, d), as `KernelMap` has it: (n, m)."""
    if kernel == "polynomial":
        return pairwise_kernels(X, Y, metric="poly", gamma=gamma, degree=degree, coef0=1)
    return np.exp(-gamma * measure_distances(X, Y, kernel))


def measure_distances(X: np.ndarray, Y: np.ndarray, kernel: KernelName) -> np.ndarray:
    """Return what a kernel that falls with distance measures: (n, m)."""
    if kernel == "chi2":
        return -additive_chi2_kernel(X, Y)
    return cdist(X, Y, "cityblock" if kernel == "laplacian" else "sqeuclidean")


def find_median_gamma(Z: np.ndarray, kernel: KernelName, seed: int) -> float:
    """Return one over the median distance of two rows; for the polynomial, over the median squared length."""
    some = Z[np.random.default_rng(seed).permutation(len(Z))[:_MEASURED]]
    if kernel == "polynomial":
        typical = float(np.median(np.sum(some**2, axis=1)))
    else:
        distances = measure_distances(some, some, kernel)
        typical = float(np.median(distances[np.triu_indices(len(some), 1)])) if len(some) > 1 else 0.0
    return 1 / typical if typical > 0 else 1.0
