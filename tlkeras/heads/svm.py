"""The linear support vector machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from tlkeras.config.schema.heads import AutoStrength
from tlkeras.heads.base import LinearClassifierHead
from tlkeras.heads.folds import LabelledFeatures


@dataclass(eq=False, repr=False)
class LinearSVMHead(LinearClassifierHead):
    """Linear support vector machines with squared hinge loss, one against the rest, calibrated by Platt's sigmoid.

    It minimises |w|^2 / 2 + C sum of weight * max(0, 1 - y f)^2 with an intercept that is not penalised, in the primal
    (Chapelle, Neural Computation 19, 2007), all classes at once. `C` runs upwards over half decades, each fit starting
    from the last, and the one with the least held-out log loss is taken.

    Args:
        C: Weight of the loss as in scikit-learn's LinearSVC, or "auto".

    Attributes:
        strength_: The C that was used.
        scores_: Held-out log loss by C.
    """

    C: AutoStrength = "auto"

    kind = "svm"
    strength_name = "C"
    strengths = np.logspace(-6, 1, 15)
    fallback = 1e-3

    def _solve_path(
        self, rows: LabelledFeatures, strengths: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        signs = 2 * self.link_.indicators(rows.codes, len(self.classes_)) - 1
        antisymmetric = not self.link_.several and signs.shape[1] == 2
        if antisymmetric:  # the second machine of two classes is the first with its sign changed
            signs = signs[:, 1:]
        solution = None
        for C in strengths:
            # only the final fit has to converge
            steps = 1000 if len(strengths) == 1 else 100
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
    start: tuple[np.ndarray, np.ndarray] | None = None,
    steps: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (d, k) and bias (k,) of k machines, one per column of signs.

    Args:
        X: Features (n, d).
        signs: 1 or -1 for each row and machine, (n, k).
        weights: Of the rows, (n,).
        C: Weight of the loss against the penalty.
        start: A kernel and bias to start from.
        steps: Their greatest number.
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
