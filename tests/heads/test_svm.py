"""The squared hinge loss by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from tlkeras.heads.linear import fit_squared_hinge

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)
WEIGHTS = RANDOM.uniform(0.2, 2, 40)


def test_squared_hinge_by_hand():
    """One feature at -1 and 1: w^2 / 2 + 2 C (1 - w)^2 has its minimum at w = 4 C / (1 + 4 C)."""
    kernel, bias = fit_squared_hinge(np.array([[-1.0], [1.0]]), np.array([[-1.0], [1.0]]), np.ones(2), 0.5)
    assert kernel[0, 0] == pytest.approx(2 / 3, abs=1e-5) and bias == pytest.approx([0], abs=1e-5)


def test_squared_hinge_is_what_scikit_learn_minimises():
    signs = (2 * Y - 1)[:, None]
    kernel, bias = fit_squared_hinge(X, signs, WEIGHTS, 0.3)
    # liblinear penalises the intercept: a large scaling makes that negligible
    reference = LinearSVC(C=0.3, dual=False, tol=1e-10, intercept_scaling=1e3, max_iter=10_000)
    reference.fit(X, Y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(kernel[:, 0], reference.coef_[0], atol=2e-3)
    assert bias[0] == pytest.approx(reference.intercept_[0], abs=2e-3)
