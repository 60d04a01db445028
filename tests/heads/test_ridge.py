"""Ridge regression by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tlkeras.heads.linear import factorise

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)
WEIGHTS = RANDOM.uniform(0.2, 2, 40)


def test_ridge_by_hand():
    """y = 0, 1 at x = -1, 1: slope sum(xy) / (sum x^2 + alpha) = 1 / (2 + alpha), intercept 1/2."""
    kernel, bias = factorise(np.array([[-1.0], [1.0]]), np.array([[0.0], [1.0]]), np.ones(2)).solve(2.0)
    assert kernel == pytest.approx(np.array([[0.25]])) and bias == pytest.approx([0.5])


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_ridge_without_a_fold_is_a_fit_without_it(alpha):
    out = np.array([3, 7, 8, 20])
    rest = np.setdiff1d(np.arange(40), out)
    alone = Ridge(alpha=alpha).fit(X[rest], Y[rest], sample_weight=WEIGHTS[rest])
    factors = factorise(X, Y[:, None].astype(float), WEIGHTS)
    np.testing.assert_allclose(factors.leave_out(out, alpha)[:, 0], alone.predict(X[out]), rtol=1e-8)
    whole = Ridge(alpha=alpha).fit(X, Y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(factors.solve(alpha)[0][:, 0], whole.coef_, rtol=1e-8)
