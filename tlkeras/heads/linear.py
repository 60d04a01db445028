"""Linear heads: logistic regression, ridge regression in closed form, of a number too, support vector machines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tlkeras.config.schema.heads import AutoStrength
from tlkeras.heads.base import HeadResult, LinearClassifierHead, make_dense
from tlkeras.heads.class_means import (
    ClassClouds,
    average_classes,
    count_all_rows,
    count_rows,
    deflate,
    measure_freedom,
    measure_likeness,
)
from tlkeras.heads.folds import (
    LabelledFeatures,
    LabelledRows,
    compute_class_factors,
    compute_sample_weights,
    group_kfold,
)
from tlkeras.heads.held_out import Hyperparameters
from tlkeras.heads.link_functions import LinearMap
from tlkeras.heads.scaling import measure_columns

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)
STRENGTHS = np.logspace(-6, 2, 17)


@dataclass(eq=False, repr=False)
class LinearHead(LinearClassifierHead):
    """Logistic regression, multinomial or one per label, for which `class_weight` is of the yes and no of each.

    Args:
        C: Inverse strength of the L2 penalty as in scikit-learn, one for all labels; "auto": the half decade with the
            least held-out log loss, each fit starting from the last, weaker C.
    """

    C: AutoStrength = "auto"

    kind = "linear"
    strength_name = "C"
    strengths = STRENGTHS
    fallback = 0.01
    _one_thread = False
    _calibrated = False

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        self._factors = None
        if not self.link_.several:
            return super()._weigh(y, sample_weight)
        weights = compute_sample_weights(y, sample_weight, None)
        factors = [compute_class_factors(column, weights, self.class_weight) for column in np.asarray(y).T]
        self._factors = np.array(factors)  # by label, of its no and yes
        return weights

    def _class_factors(self, y: np.ndarray, sample_weight: np.ndarray | None, held_y: np.ndarray) -> np.ndarray | float:
        return 1.0 if self.link_.several else super()._class_factors(y, sample_weight, held_y)

    def _loss_weights(self, rows: LabelledFeatures) -> np.ndarray:
        if self._factors is None:
            return rows.weights
        return rows.weights[:, None] * self._factors[np.arange(len(self._factors)), rows.codes.astype(int)]

    def _column_weights(self, rows: LabelledFeatures) -> np.ndarray:
        weights = self._loss_weights(rows)
        return weights.mean(axis=1) if weights.ndim == 2 else weights

    def _fall_back(self, candidates: list[Hyperparameters]) -> Hyperparameters:
        if len(candidates) > 1:
            logger.warning("Each class has a single example: C cannot be chosen and is %g.", self.fallback)
        return super()._fall_back(candidates)

    def _solve_path(self, rows: LabelledFeatures, strengths: Sequence[float]) -> Iterator[LinearMap]:
        codes = self.link_.subproblems(rows.codes)
        weights = self._loss_weights(rows)
        by_problem = [weights] if weights.ndim == 1 else list(weights.T)
        paths = [_follow_path(rows.X, *problem, strengths) for problem in zip(codes, by_problem, strict=True)]
        for solutions in zip(*paths, strict=True):
            yield self.link_.merge_coefficients(list(solutions))


def _follow_path(X: np.ndarray, y: np.ndarray, weights: np.ndarray, strengths: Sequence[float]) -> Iterator[LinearMap]:
    """Coefficients and intercepts for rising C, each fit starting from the last; exact where there is only one."""
    if (y == y[0]).all():  # a label that a fold has or lacks throughout
        certain = np.log(len(y) + 1.0) * (1 if y[0] else -1)
        yield from [(np.zeros((1, X.shape[1])), np.array([certain]))] * len(strengths)
        return
    one = len(strengths) == 1
    model = LogisticRegression(max_iter=2000 if one else 500, tol=1e-5 if one else 1e-4, warm_start=True)
    for C in strengths:
        with warnings.catch_warnings():
            if not one:  # only the final fit has to converge
                warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=C).fit(X, y, sample_weight=weights)
        yield model.coef_.copy(), model.intercept_.copy()


@dataclass(eq=False, repr=False)
class RidgeHead(LinearClassifierHead):
    """Least squares on the indicators of classes with an L2 penalty, and discriminants of its fitted values.

    The intercept is not penalised. Of several labels, and below three rows a class, scores are the fitted values.

    Args:
        alpha: Strength of the penalty as in scikit-learn's Ridge; "auto": the half decade with the least held-out log
            loss. One eigendecomposition of a fold serves all strengths.
    """

    alpha: AutoStrength = "auto"

    _by_means = False  # of classes; else scores are the fitted values themselves
    kind = "ridge"
    strength_name = "alpha"
    strengths = np.logspace(7, -1, 17)
    fallback = 1e3

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        # for all folds alike; of fewer rows a fold would have no variance within classes
        self._by_means = not self.link_.several and len(rows.X) >= 3 * len(self.classes_)
        return super()._list_candidates(rows)

    def _solve_path(self, rows: LabelledFeatures, strengths: Sequence[float]) -> Iterator[LinearMap]:
        if self._by_means:
            yield from _discriminate(rows, len(self.classes_), strengths)
            return
        targets = self.link_.indicators(rows.codes, len(self.classes_))
        factors = factorise(rows.X, targets, rows.weights)
        for alpha in strengths:
            kernel, bias = factors.solve(alpha)
            # the shares of classes differ between folds by more than strongly penalised scores do: calibration
            # gives the intercept
            yield kernel, bias - factors.offset


def _discriminate(rows: LabelledFeatures, classes: int, strengths: Sequence[float]) -> Iterator[LinearMap]:
    """Scores of classes for each strength, by the directions of ridge regression on their indicators.

    Of two classes they are the same but for the scale. Of more, least squares would hide a class between others, and
    score rare ones low: the fitted values are discriminated once more, by which class means are compared in the metric
    of the covariance within classes and the penalty (Hastie, Buja and Tibshirani, Annals of Statistics 23, 1995).
    """
    likeness = measure_likeness(rows)
    counts, known = count_rows(rows, classes, likeness), count_all_rows(rows, likeness**2)
    means = average_classes(rows, classes).astype(np.float64)
    within = rows.X - means[rows.codes]
    squares, directions = np.linalg.eigh((within * rows.weights[:, None]).T @ within)
    squares, turned = np.maximum(squares, 0), directions.T @ means.T
    freedom, total = measure_freedom(rows, counts), rows.weights.sum()
    for alpha in strengths:
        left = float(np.sum(squares / (squares + alpha)))
        kernel = directions @ (turned / (squares + alpha)[:, None])
        level = total * (deflate(left, freedom * known) if freedom else 1)
        clouds = ClassClouds(means, level * kernel, counts, left / freedom if freedom else 0.0)
        yield clouds.predict(clouds.estimate_signal())


class RidgeFactors(NamedTuple):
    """Weighted ridge regression by the eigendecomposition of the centred, weighted Gram matrix."""

    mean: np.ndarray  # weighted, of the features, (d,)
    offset: np.ndarray  # weighted mean of the targets, (k,)
    directions: np.ndarray  # eigenvectors, (d, r)
    squares: np.ndarray  # eigenvalues, (r,)
    rotated: np.ndarray  # centred rows along the directions, (n, r)
    targets: np.ndarray  # centred, (n, k)
    weights: np.ndarray  # of the rows, (n,)

    def solve(self, alpha: float) -> LinearMap:
        """Kernel (d, k) and bias (k,) for a strength."""
        kernel = self.directions @ self._shrink(alpha)
        return kernel, self.offset - self.mean @ kernel

    def leave_out(self, out: np.ndarray, alpha: float) -> np.ndarray:
        """Exact predictions for rows `out` of a fit without them, (len(out), k).

        With H the matrix that turns targets into fitted values, residuals of left-out rows F are
        (I - H_FF)^-1 times their residuals in the fit on all rows: the Sherman-Morrison-Woodbury identity, for one row
        the PRESS statistic (Allen, Technometrics 16, 1974).
        """
        rows, weights = self.rotated[out], self.weights[out]
        residuals = self.targets[out] - rows @ self._shrink(alpha)
        hat = ((rows / (self.squares + alpha)) @ rows.T + 1 / self.weights.sum()) * weights
        left = np.linalg.solve(np.eye(len(out)) - hat, residuals)
        return self.targets[out] + self.offset - left

    def _shrink(self, alpha: float) -> np.ndarray:
        return (self.rotated.T @ (self.weights[:, None] * self.targets)) / (self.squares + alpha)[:, None]


def factorise(X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> RidgeFactors:
    """The factorisation of the regression of targets (n, k) on features (n, d), for every strength."""
    mean = np.average(X, axis=0, weights=weights)
    offset = np.average(targets, axis=0, weights=weights)
    centred = (X - mean).astype(np.float64)
    squares, directions = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    squares = np.maximum(squares, 0)
    return RidgeFactors(mean, offset, directions, squares, centred @ directions, targets - offset, weights)


@dataclass(eq=False)
class RidgeRegressionHead:
    """Ridge regression on standardised columns, of a standardised number.

    The strength of the penalty is that with the least squared error on rows that were left out, exactly and for all
    strengths from one eigendecomposition; groups are left out as a whole.

    Args:
        folds: Number of folds; fewer where there are fewer rows or groups.
        seed: Seed of the folds.

    Attributes:
        alpha_: The strength that was chosen.
        scale_, offset_: Weighted deviation and mean of the numbers that it was fitted on.
    """

    folds: int = 5
    seed: int = 0

    kind = "regression"
    input_kind: ClassVar[Literal["vector", "map"]] = "vector"
    supports_multilabel = False
    classes_ = np.zeros(1, np.int64)

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: LabelledRows | None = None,
        groups: np.ndarray | None = None,
    ) -> RidgeRegressionHead:
        """Fit on features (n, d) and numbers (n,); validation rows are ignored."""
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        weights = weights / weights.mean()
        self.offset_ = float(np.average(y, weights=weights))
        self.scale_ = float(np.sqrt(np.average((y - self.offset_) ** 2, weights=weights))) or 1.0
        self._mean, self._deviation = measure_columns(np.asarray(X, np.float64), weights)
        factors = factorise((X - self._mean) / self._deviation, (y[:, None] - self.offset_) / self.scale_, weights)
        self.alpha_ = self._choose(factors, weights, groups)
        self._kernel, self._bias = factors.solve(self.alpha_)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Predicted numbers, (n, 1); the name is that of all heads."""
        standard = ((X - self._mean) / self._deviation) @ self._kernel + self._bias
        return standard * self.scale_ + self.offset_

    def to_layers(self) -> list[keras.layers.Layer]:
        """The fitted layers: features to the standardised number, and that to the number."""
        import keras

        kernel = self._kernel / self._deviation[:, None]
        dense = make_dense(kernel, self._bias - self._mean @ kernel, "logits")
        return [dense, keras.layers.Rescaling(self.scale_, self.offset_, name="value")]

    def summarize(self) -> HeadResult:
        return HeadResult(self.kind, {"alpha": self.alpha_})

    def history(self) -> dict[str, list[float]]:
        """Squared error on left-out rows by strength, as columns."""
        return {"alpha": RidgeHead.strengths.tolist(), "squared_error": self._errors}

    def _choose(self, factors: RidgeFactors, weights: np.ndarray, groups: np.ndarray | None) -> float:
        groups = np.arange(len(weights)) if groups is None else np.asarray(groups)
        folds = min(self.folds, len(np.unique(groups)))
        if folds < 2:
            self._errors = [float("nan")] * len(RidgeHead.strengths)
            return RidgeHead.fallback
        parts = group_kfold(np.zeros(len(weights), np.int64), groups, folds, self.seed)
        outs = [np.flatnonzero(parts == part) for part in range(folds)]
        shares = [1 - weights[out].sum() / weights.sum() for out in outs]  # the same penalty per unit of weight

        def measure(out: np.ndarray, alpha: float) -> float:
            left = factors.targets[out] + factors.offset - factors.leave_out(out, alpha)
            return float(weights[out] @ left[:, 0] ** 2)

        pairs = [(out, share) for out, share in zip(outs, shares, strict=True) if share > 0]
        self._errors = [sum(measure(out, alpha * share) for out, share in pairs) for alpha in RidgeHead.strengths]
        return float(RidgeHead.strengths[int(np.argmin(self._errors))])


@dataclass(eq=False, repr=False)
class LinearSVMHead(LinearClassifierHead):
    """Linear support vector machines with squared hinge loss, one against the rest, calibrated by Platt's sigmoid.

    It minimises |w|^2 / 2 + C sum of weight * max(0, 1 - y f)^2 with an intercept that is not penalised, in the primal
    (Chapelle, Neural Computation 19, 2007), all classes at once.

    Args:
        C: Weight of the loss as in scikit-learn's LinearSVC; "auto": the half decade with the least held-out log loss,
            each fit starting from the last, weaker C.
    """

    C: AutoStrength = "auto"

    kind = "svm"
    strength_name = "C"
    _one_against_rest = True
    strengths = np.logspace(-6, 1, 15)
    fallback = 1e-3

    def _solve_path(self, rows: LabelledFeatures, strengths: Sequence[float]) -> Iterator[LinearMap]:
        signs = 2 * self.link_.indicators(rows.codes, len(self.classes_)) - 1
        antisymmetric = not self.link_.several and signs.shape[1] == 2
        if antisymmetric:  # the second machine of two classes is the first with its sign changed
            signs = signs[:, 1:]
        solution, steps = None, 1000 if len(strengths) == 1 else 100  # only the final fit has to converge
        for C in strengths:
            solution = fit_squared_hinge(rows.X, signs, rows.weights, C, solution, steps)
            kernel, _ = solution
            if antisymmetric:
                kernel = np.hstack([-kernel, kernel])
            # calibration gives the intercept: those of folds differ as the shares of classes do
            yield kernel, np.zeros(kernel.shape[1])


def fit_squared_hinge(
    X: np.ndarray,
    signs: np.ndarray,
    weights: np.ndarray,
    C: float,
    start: LinearMap | None = None,
    steps: int = 1000,
) -> LinearMap:
    """The k machines of features (n, d) with weights (n,), one per column of signs, 1 or -1, (n, k).

    They are found from `start` in `steps` steps at most; C weighs the loss against the penalty.
    """
    (_, d), k = X.shape, signs.shape[1]
    costs = (C * weights)[:, None]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[: d * k].reshape(d, k), flat[d * k :]
        shortfall = np.maximum(0, 1 - signs * (X @ kernel.astype(X.dtype) + bias))
        gradient = -2 * costs * signs * shortfall
        loss = 0.5 * np.sum(kernel**2) + np.sum(costs * shortfall**2)
        return float(loss), np.concatenate([(kernel + X.T @ gradient.astype(X.dtype)).ravel(), gradient.sum(axis=0)])

    flat = np.zeros((d + 1) * k) if start is None else np.concatenate([start[0].ravel(), start[1]])
    # the loss is at most its value at zero, the sum of all costs, which sets the scale of the gradient
    found = minimize(
        objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": steps, "ftol": 1e-9, "gtol": 1e-6}
    )
    return found.x[: d * k].reshape(d, k), found.x[d * k :]
