"""Transfer component analysis: directions in which two domains are alike while their rows differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import euclidean_distances
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import normalize
from sklearn.utils import Tags

from tlkeras.adaptation.alignment import Aligner, Domain
from tlkeras.errors import DataError
from tlkeras.heads.base import make_dense

if TYPE_CHECKING:
    import keras

TcaKernel = Literal["linear", "rbf"]

DENSE = 500
"""Columns up to which the eigenproblem is solved whole; beyond, Lanczos steps find the leading components."""

NYSTROEM = 5000
"""Rows up to which the kernel between all rows is computed; beyond, it is approximated."""

_NOTHING = 1e-10  # of an eigenvalue, relative to the largest


@dataclass(eq=False, repr=False)
class TransferComponentAnalysis(Aligner):
    """Transfer component analysis: kernel PCA that penalises the difference of the domains' means.

    Maximises W'KHKW against tr(W'KLKW) + mu tr(W'W): the wanted W are the leading solutions of
    K H K w = l (K L K + mu I) w, with K the kernel of all rows, H the centring matrix, and L = e e', e being 1 / n_s
    for source rows and -1 / n_t for target rows. Components have mean 0 and variance 1 over both domains.

    L has rank one, so that (K L K + mu I)^-1/2 is known in closed form and Lanczos steps need no factorisation. Above
    `NYSTROEM` rows the kernel is K ~ F F' with F of 500 columns, and the ridge lies on weights of these.

    Args:
        components: Maximum number of components.
        mu: Ridge, relative to ||K e||^2: 1 aligns mildly, 0.01 strongly.
        kernel: "linear" on rows of length 1, or "rbf" with the median of squared distances as its scale.
        landmarks: Columns of F.
        seed: Of the choice of rows for F.

    Source: Pan, Tsang, Kwok and Yang, Domain Adaptation via Transfer Component Analysis, IEEE TNN 2011.
    """

    components: int = 30
    mu: float = 0.1
    kernel: TcaKernel = "linear"
    landmarks: int = 500
    seed: int = 0

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        self._prepare(np.concatenate([Xs, Xt]))
        self._solve(_contrast(np.ones(len(Xs)), np.ones(len(Xt)))[:, None])

    def _transform(self, X: np.ndarray, domain: Domain) -> np.ndarray:
        return self._expand(X) @ self.weights_ - self.mean_

    def to_layers(self) -> list[keras.layers.Layer]:
        """Scaling of rows to length 1, and the map; DataError if the kernel is not linear."""
        import keras

        if self.kernel != "linear":
            raise DataError(f"A {self.kernel} kernel cannot be expressed as layers.", way_out="Use kernel='linear'.")
        matrix = self.weights_ if self._basis is None else self._basis.T @ self.weights_
        return [keras.layers.UnitNormalization(name="unit"), make_dense(matrix, -self.mean_)]

    def _prepare(self, X: np.ndarray) -> None:
        """Choose the scale of the kernel and its landmarks."""
        self._landmarks: Nystroem | None = None
        self._basis: np.ndarray | None = None
        if self.kernel == "rbf":
            sample = X[np.linspace(0, len(X) - 1, min(len(X), 2000)).astype(int)]
            distances = euclidean_distances(sample, squared=True)
            self.gamma_ = 1.0 / np.median(distances[np.triu_indices(len(sample), 1)])
        if len(X) <= NYSTROEM:
            self._basis = normalize(X) if self.kernel == "linear" else X
        elif self.kernel == "rbf":
            count = min(self.landmarks, len(X))
            self._landmarks = Nystroem(gamma=self.gamma_, n_components=count, random_state=self.seed).fit(X)
        self._features = self._expand(X)

    def _expand(self, X: np.ndarray) -> np.ndarray:
        """Columns that the weights map: kernels with the rows of the fit, or an approximation of the kernel."""
        if self.kernel == "linear":
            X = normalize(X)
        if self._landmarks is not None:
            return self._landmarks.transform(X)
        if self._basis is None:
            return X
        return X @ self._basis.T if self.kernel == "linear" else rbf_kernel(X, self._basis, self.gamma_)

    def _solve(self, contrasts: np.ndarray) -> None:
        F = self._features  # symmetric where it is the kernel itself
        spread = F.T @ contrasts
        mu = self.mu * max(float((spread**2).sum()), _NOTHING * float((F**2).mean()))
        centred = F - F.mean(axis=0)
        count = min(self.components, min(F.shape) - 1)
        solve = solve_whole if F.shape[1] <= DENSE else solve_leading
        values, weights = solve(centred, spread, mu, count)
        if not values[0] > 0:
            raise DataError("All rows are equal, so there are no components.")
        kept = values > _NOTHING * values[0]
        projected = centred @ weights[:, kept]
        scale = projected.std(axis=0)
        largest = projected[np.abs(projected).argmax(axis=0), np.arange(projected.shape[1])]
        self.weights_ = weights[:, kept] * (np.sign(largest) / scale)
        self.mean_ = F.mean(axis=0) @ self.weights_
        self.eigenvalues_ = values[kept]


@dataclass(eq=False, repr=False)
class JointDistributionAdaptation(TransferComponentAnalysis):
    """Joint distribution adaptation, balanced: TCA that also brings the classes' means together.

    Classes of the target are predicted by a logistic regression on the source's components; they and the components
    are found in turns. The contrasts between the domains have weight 1 - balance, those between their classes balance.

    Args:
        components, mu, kernel, landmarks, seed: As of `TransferComponentAnalysis`.
        balance: 0 is TCA, 0.5 the paper's JDA, 1 uses contrasts between classes alone.
        rounds: Maximum number of turns.

    Source: Long et al., Transfer Feature Learning with Joint Distribution Adaptation, ICCV 2013; Wang et al., Balanced
    Distribution Adaptation for Transfer Learning, ICDM 2017.
    """

    balance: float = 0.5
    rounds: int = 10

    def _fit(self, Xs: np.ndarray, Xt: np.ndarray, ys: np.ndarray | None) -> None:
        if ys is None:
            rule = "JointDistributionAdaptation requires y to be passed, but the target y is None."
            raise DataError(rule, way_out="Pass the source's classes.")
        if len(np.unique(ys)) < 2:
            raise DataError("Joint distribution adaptation needs two of the source's classes or more.", "one")
        self._prepare(np.concatenate([Xs, Xt]))
        whole = _contrast(np.ones(len(Xs)), np.ones(len(Xt)))
        self._solve(whole[:, None])
        predictions: np.ndarray | None = None
        for _ in range(self.rounds):
            Z = self._features @ self.weights_ - self.mean_
            predicted = LogisticRegression(max_iter=500).fit(Z[: len(Xs)], ys).predict(Z[len(Xs) :])
            if predictions is not None and (predicted == predictions).all():
                break
            predictions = predicted
            each = [_contrast(ys == name, predicted == name) for name in np.unique(ys) if (predicted == name).any()]
            columns = [np.sqrt(1 - self.balance) * whole, *(np.sqrt(self.balance) * column for column in each)]
            self._solve(np.stack(columns, axis=1))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def solve_whole(centred: np.ndarray, spread: np.ndarray, mu: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest l and their w, (m,) and (m, count), of C'C w = l (S S' + mu I) w.

    C is the centred (n, m), S the spread (m, r).
    """
    m = centred.shape[1]
    values, vectors = eigh(centred.T @ centred, spread @ spread.T + mu * np.eye(m), subset_by_index=[m - count, m - 1])
    return values[::-1], vectors[:, ::-1]


def solve_leading(centred: np.ndarray, spread: np.ndarray, mu: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The result of `solve_whole` without a matrix (m, m), in two products with C per step.

    With S = U s V', (S S' + mu I)^-1/2 = mu^-1/2 (I - U (1 - sqrt(mu / (mu + s^2))) U').
    """
    U, s, _ = np.linalg.svd(spread, full_matrices=False)
    shrunk = 1 - np.sqrt(mu / (mu + s**2))

    def root(v: np.ndarray) -> np.ndarray:
        v = v.reshape(len(U), -1)
        return (v - U @ (shrunk[:, None] * (U.T @ v))) / np.sqrt(mu)

    def multiply(v: np.ndarray) -> np.ndarray:
        return root(centred.T @ (centred @ root(v))).reshape(v.shape)

    m = centred.shape[1]
    operator = LinearOperator((m, m), matvec=multiply, matmat=multiply, dtype=np.float64)
    values, vectors = eigsh(operator, count, which="LA", v0=np.random.default_rng(0).normal(size=m))
    order = np.argsort(values)[::-1]
    return values[order], root(vectors[:, order])


def _contrast(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The difference of the means of some rows, by masks of them, as weights of all rows."""
    return np.concatenate([source / source.sum(), target / -target.sum()])
