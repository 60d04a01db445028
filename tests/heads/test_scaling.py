"""Standardisation of columns."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from tlkeras.heads.linear import LinearHead
from tlkeras.heads.scaling import fit_standardizer


def test_fewer_rows_than_columns_lose_nothing():
    """The rotated problem has the solution of the whole one."""
    wide = np.random.default_rng(1).normal(size=(30, 90)) * np.linspace(1, 5, 90)
    y = np.arange(30) % 2
    frame = fit_standardizer(wide, np.ones(30))
    assert frame.apply(wide).shape == (30, 29)
    Z = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    whole = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(Z, y)
    np.testing.assert_allclose(
        LinearHead(C=0.1).fit(wide, y).decision_function(wide), whole.decision_function(Z), atol=1e-3
    )
