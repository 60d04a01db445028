"""The linear support vector machine."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import minimize

from tlkeras.heads.base import CalibratedLinearHead, LabelledFeatures
from tlkeras.heads.class_weights import ClassWeight


class LinearSVMHead(CalibratedLinearHead):
    """Linear support vector machines with squared hinge loss, one against the rest, calibrated by Platt's sigmoid.

    It minimises |w|^2 / 2 + C sum of weight * max(0, 1 - y f)^2 with an intercept that is not penalised, in the primal
    (Chapelle, Neural Computation 19, 2007), all classes at once. `C` runs upwards over half decades, each fit starting
    from the last, until the held-out log loss has risen twice.

    Args:
        C: Weight of the loss as in scikit-learn's LinearSVC, or "auto".
        folds: Number of folds that choose C and calibrate; fewer where a class has fewer examples.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        standardize: Scale each column by its own deviation; else all by one.
        seed: Seed of the folds.

    Attributes:
        strength_: The C that was used.
        scores_: Held-out log loss by C.
    """

    kind = "svm"
    strength_name = "C"
    strengths = np.logspace(-6, 1, 15)
    fallback = 1e-3

    def __init__(
        self,
        C: float | Literal["auto"] = "auto",
        folds: int = 5,
        class_weight: ClassWeight = None,
        standardize: bool = True,
        seed: int = 0,
    ):
        self.C = C
        self.folds = folds
        self.class_weight = class_weight
        self.standardize = standardize
        self.seed = seed

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        signs = 2 * self.link_.indicate(rows.codes, len(self.classes_)) - 1
        mirrored = not self.link_.several and signs.shape[1] == 2
        if mirrored:  # the second machine of two classes is the first with its sign changed
            signs, start = signs[:, 1:], start and (start[0][:, 1:], start[1][1:])
        kernel, bias = fit_squared_hinge(rows.X, signs, rows.weights, strength, start)
        if mirrored:
            kernel, bias = np.hstack([-kernel, kernel]), np.concatenate([-bias, bias])
        return kernel, bias


def fit_squared_hinge(
    X: np.ndarray, signs: np.ndarray, weights: np.ndarray, C: float, start: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel (d, k) and bias (k,) of k machines for signs (n, k) of 1 and -1.

    Args:
        X: Features (n, d).
        signs: What each machine is to say of each row.
        weights: Of the rows, (n,).
        C: Weight of the loss against the penalty.
        start: A kernel and bias to start from.
    """
    (_, d), k = X.shape, signs.shape[1]
    costs = (C * weights)[:, None]

    def lose(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[: d * k].reshape(d, k), flat[d * k :]
        short = np.maximum(0, 1 - signs * (X @ kernel.astype(X.dtype) + bias))
        slope = -2 * costs * signs * short
        loss = 0.5 * np.sum(kernel**2) + np.sum(costs * short**2)
        return float(loss), np.concatenate([(kernel + X.T @ slope.astype(X.dtype)).ravel(), slope.sum(axis=0)])

    flat = np.zeros((d + 1) * k) if start is None else np.concatenate([start[0].ravel(), start[1]])
    # the loss is at most its value at zero, the sum of all costs, which sets the scale of the gradient
    done = minimize(lose, flat, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-9, "gtol": 1e-6})
    return done.x[: d * k].reshape(d, k), done.x[d * k :]
