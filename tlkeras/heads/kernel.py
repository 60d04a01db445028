"""Kernel heads: a linear head behind a map in which inner products are a kernel, exactly or nearly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import additive_chi2_kernel, euclidean_distances, pairwise_kernels
from sklearn.utils.validation import check_is_fitted

from tlkeras.config.schema.heads import (
    AutoComponents,
    AutoGamma,
    KernelApproximation,
    KernelName,
    KernelSolver,
    check_approximation,
)
from tlkeras.heads.base import HeadResult, LinearClassifierHead, VectorHead, finish_layers
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.held_out import Hyperparameters
from tlkeras.heads.linear import LinearHead, LinearSVMHead, RidgeHead
from tlkeras.heads.scaling import measure_columns

if TYPE_CHECKING:
    import keras

EXACT = 1000
"""Up to so many rows, all of them are landmarks unless a number is given: the kernel is then exact."""

_SOLVERS: dict[str, type[LinearClassifierHead]] = {"ridge": RidgeHead, "logistic": LinearHead, "svm": LinearSVMHead}
_SEARCHED = (0.25, 0.5, 1.0, 2.0, 4.0)
_MEASURED = 1000  # rows whose distances give the median
_RANK = 1e-6  # eigenvalues of the landmarks' kernel below this share of the largest are left out


@dataclass(eq=False, repr=False)
class KernelHead(VectorHead):
    """Ridge regression, logistic regression or a support vector machine in the space of a kernel.

    The Nystroem map (Williams and Seeger, NIPS 2000) is exact where every row is a landmark: then this is kernel ridge
    regression or a kernel machine as textbooks have them. Random Fourier features (Rahimi and Recht, NIPS 2007) exist
    for rbf and laplacian. Columns are standardised first, but for chi2, whose features must not be negative.

    Args:
        components: Number of landmarks or frequencies; "auto" is every row up to `EXACT` of them, else `EXACT`.
        gamma: Inverse width: a number; "median" for one over the median distance, as the kernel measures it, of two
            rows; "search" for the best of a quarter to four times that, by held-out log loss.

    Attributes:
        gamma_: The gamma that was used.
        exact_: Whether every row is a landmark.
        linear_: The fitted linear head behind the map.
        scores_: Held-out log loss by strength, for the gamma that was used.
    """

    kernel: KernelName = "rbf"
    approximation: KernelApproximation = "nystroem"
    components: AutoComponents = "auto"
    gamma: AutoGamma = "median"
    degree: int = 3
    solver: KernelSolver = "ridge"

    kind = "kernel"

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        check_approximation(self.approximation, self.kernel)
        if self.kernel == "chi2" and rows.X.min() < 0:
            raise ValueError(f"The chi2 kernel needs features that are not negative. Received: {rows.X.min():.3g}.")
        mean, scale = self._measure_columns(rows)
        self._gammas = self._list_gammas((rows.X - mean) / scale)
        strengths = self._make_solver()._list_candidates(rows)
        return [(gamma, *strength) for gamma in self._gammas for strength in strengths]

    def _fall_back(self, candidates: list[Hyperparameters]) -> Hyperparameters:
        gamma = self._gammas[len(self._gammas) // 2]
        return (gamma, *self._make_solver()._fall_back([one[1:] for one in candidates if one[0] == gamma]))

    def _score_fold(self, part: Fold, candidates: list[Hyperparameters]) -> list[np.ndarray]:
        rows, held = part.fit_rows(), part.held_rows().X
        mean, scale = self._measure_columns(rows)
        Z, held_Z = (rows.X - mean) / scale, (held - mean) / scale
        solver, scores = self._make_solver(), []
        for gamma in self._gammas:
            mapping = self._make_map(Z, gamma)
            strengths = [strength for of, strength in candidates if of == gamma]
            mapped = rows._replace(X=mapping.apply(Z))
            scores += solver.score_path(mapped, mapping.apply(held_Z), strengths, part.weight_share)
        return scores

    def _fit_candidate(self, rows: LabelledFeatures, candidate: Hyperparameters) -> None:
        self.gamma_, strength = candidate
        self.mean_, self.scale_ = self._measure_columns(rows)
        Z = (rows.X - self.mean_) / self.scale_
        self.map_ = self._make_map(Z, self.gamma_)
        self.exact_ = self.approximation == "nystroem" and self.map_.size == len(Z)
        self.linear_ = self._make_solver()
        self.linear_._fit_candidate(rows._replace(X=self.map_.apply(Z)), (strength,))

    def _keep_losses(self, chosen: Hyperparameters, losses: Mapping[Hyperparameters, float]) -> None:
        self.scores_ = {strength: loss for (gamma, strength), loss in losses.items() if gamma == chosen[0]}
        self.linear_.scores_ = self.scores_

    def _scale(self, scale: np.ndarray, shift: np.ndarray) -> None:
        self.linear_._scale(scale, shift)

    @property
    def _calibrated(self) -> bool:  # type: ignore[override]
        return _SOLVERS[self.solver]._calibrated

    @property
    def _one_against_rest(self) -> bool:  # type: ignore[override]
        return _SOLVERS[self.solver]._one_against_rest

    def _make_solver(self) -> LinearClassifierHead:
        """The head behind the map; ridge scores by fitted values, as in-sample every row has a direction of its own."""
        head = _SOLVERS[self.solver](standardize=False)
        head.link_, head.classes_, head.scores_, head._factors = self.link_, self.classes_, {}, None
        return head

    def _measure_columns(self, rows: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
        mean, scale = measure_columns(rows.X, rows.weights)
        return (np.zeros_like(mean), np.ones_like(scale)) if self.kernel == "chi2" else (mean, scale)

    def _list_gammas(self, Z: np.ndarray) -> list[float]:
        if self.gamma not in ("median", "search"):
            return [float(self.gamma)]
        gamma = find_median_gamma(Z, self.kernel, self.seed)
        return [gamma] if self.gamma == "median" else [gamma * factor for factor in _SEARCHED]

    def _make_map(self, Z: np.ndarray, gamma: float) -> NystroemMap | RandomFourierFeatures:
        count = EXACT if self.components == "auto" else self.components
        random = np.random.default_rng(self.seed)
        if self.approximation == "fourier":
            return RandomFourierFeatures.draw(Z.shape[1], count, self.kernel, gamma, random)
        chosen = np.arange(len(Z)) if len(Z) <= count else np.sort(random.permutation(len(Z))[:count])
        return NystroemMap.fit(Z[chosen], self.kernel, gamma, self.degree)

    def _logits(self, X: np.ndarray) -> np.ndarray:
        mapped = self.map_.apply((X - self.mean_) / self.scale_)
        return mapped @ self.linear_.kernel_ + self.linear_.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        import keras

        check_is_fitted(self)
        mean, variance = self.mean_.tolist(), (self.scale_**2).tolist()
        entry = keras.layers.Normalization(mean=mean, variance=variance, name="head_input")
        kernel_map, kernel = self.map_.to_layer(self.linear_.kernel_)
        return [entry, kernel_map, *finish_layers(kernel, self.linear_.bias_, self.link_)]

    def summarize(self) -> HeadResult:
        chosen = {"kernel": self.kernel, "gamma": self.gamma_, "components": self.map_.size, "exact": self.exact_}
        return HeadResult(self.kind, {**chosen, **self.linear_.summarize().chosen})

    def history(self) -> dict[str, list[float]]:
        return self.linear_.history()


class NystroemMap:
    """Features in which inner products are the kernel: exactly between landmarks, nearly elsewhere.

    With the kernel K = Q S Q^T of m landmarks it is k(x, landmarks) Q S^(-1/2); the whitening is Q S^(-1/2), (m, r).
    """

    def __init__(self, landmarks: np.ndarray, whitening: np.ndarray, kernel: KernelName, gamma: float, degree: int):
        self.landmarks, self.whitening = landmarks, whitening
        self.kernel, self.gamma, self.degree = kernel, gamma, degree
        self.size = len(landmarks)

    @classmethod
    def fit(cls, landmarks: np.ndarray, kernel: KernelName, gamma: float, degree: int) -> NystroemMap:
        """The map of landmarks (m, d)."""
        values = measure_kernel(landmarks, landmarks, kernel, gamma, degree)
        squares, directions = np.linalg.eigh(values.astype(np.float64))
        kept = squares > _RANK * squares[-1]
        whitening = directions[:, kept] / np.sqrt(squares[kept])
        return cls(landmarks, whitening, kernel, gamma, degree)

    def apply(self, Z: np.ndarray) -> np.ndarray:
        """Features (n, r) of rows (n, d)."""
        return measure_kernel(Z, self.landmarks, self.kernel, self.gamma, self.degree) @ self.whitening

    def to_layer(self, kernel: np.ndarray) -> tuple[keras.layers.Layer, np.ndarray]:
        """The layer, and the linear map (m, k) behind it that replaces `kernel`, one of the features, (r, k)."""
        from tlkeras.heads.layers import KernelFeatures

        layer = KernelFeatures(self.kernel, self.size, self.gamma, self.degree, name="head_kernel")
        layer.build((None, self.landmarks.shape[1]))
        layer.set_weights([self.landmarks])
        return layer, self.whitening @ kernel


class RandomFourierFeatures:
    """Cosines of m random frequencies (d, m) and phases (m,), in which inner products are nearly the kernel."""

    def __init__(self, frequencies: np.ndarray, phases: np.ndarray):
        self.frequencies, self.phases, self.size = frequencies, phases, len(phases)

    @classmethod
    def draw(
        cls, width: int, count: int, kernel: KernelName, gamma: float, random: np.random.Generator
    ) -> RandomFourierFeatures:
        """Draw frequencies from the kernel's spectrum: a normal one for rbf, Cauchy's for laplacian."""
        if kernel == "rbf":
            frequencies = random.normal(scale=np.sqrt(2 * gamma), size=(width, count))
        else:
            frequencies = gamma * random.standard_cauchy((width, count))
        return cls(frequencies.astype(np.float32), random.uniform(0, 2 * np.pi, count).astype(np.float32))

    def apply(self, Z: np.ndarray) -> np.ndarray:
        """Features (n, m) of rows (n, d)."""
        return np.sqrt(2 / self.size) * np.cos(Z @ self.frequencies + self.phases)

    def to_layer(self, kernel: np.ndarray) -> tuple[keras.layers.Layer, np.ndarray]:
        """The layer, and the linear map behind it."""
        from tlkeras.heads.layers import FourierMap

        layer = FourierMap(self.size, name="head_waves")
        layer.build((None, len(self.frequencies)))
        layer.set_weights([self.frequencies, self.phases])
        return layer, kernel


def measure_kernel(X: np.ndarray, Y: np.ndarray, kernel: KernelName, gamma: float, degree: int) -> np.ndarray:
    """The kernel of each row (n, d) with each of others (m, d), as in `KernelFeatures`: (n, m)."""
    if kernel == "polynomial":
        return pairwise_kernels(X, Y, metric="poly", gamma=gamma, degree=degree, coef0=1)
    return np.exp(-gamma * measure_distances(X, Y, kernel))


def measure_distances(X: np.ndarray, Y: np.ndarray, kernel: KernelName) -> np.ndarray:
    """Distances that a kernel falls with: (n, m)."""
    if kernel == "chi2":
        return -additive_chi2_kernel(X, Y)
    if kernel == "laplacian":
        return cdist(X, Y, "cityblock")
    return euclidean_distances(X.astype(np.float64, copy=False), Y.astype(np.float64, copy=False), squared=True)


def find_median_gamma(Z: np.ndarray, kernel: KernelName, seed: int) -> float:
    """One over the median distance of two rows; for the polynomial, over the median squared length."""
    some = Z[np.random.default_rng(seed).permutation(len(Z))[:_MEASURED]]
    if kernel == "polynomial":
        typical = float(np.median(np.sum(some**2, axis=1)))
    else:
        distances = measure_distances(some, some, kernel)
        typical = float(np.median(distances[np.triu_indices(len(some), 1)])) if len(some) > 1 else 0.0
    return 1 / typical if typical > 0 else 1.0
