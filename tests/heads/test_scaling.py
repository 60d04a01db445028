"""Standardisation of columns."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tlkeras.heads.heads import make_head
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.scaling import fit_standardizer


def test_fewer_rows_than_columns_lose_nothing(fit_scaler):
    """The rotated problem has the solution of the whole one."""
    wide = np.random.default_rng(1).normal(size=(30, 90)) * np.linspace(1, 5, 90)
    y = np.arange(30) % 2
    frame = fit_standardizer(wide, np.ones(30))
    assert frame.apply(wide).shape == (30, 29)
    Z = fit_scaler(wide).transform(wide)
    whole = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(Z, y)
    np.testing.assert_allclose(
        LinearHead(C=0.1).fit(wide, y).decision_function(wide), whole.decision_function(Z), atol=1e-3
    )


def test_one_more_row_deviates_as_the_median_column_does():
    """Deviations 1, 2 and 1e-6 of two rows: with a third row of 1 in each, sqrt(3/3), sqrt(9/3) and sqrt(1/3)."""
    X = np.array([[1, 2, 1e-6], [-1, -2, -1e-6]])
    frame = fit_standardizer(X, np.ones(2))
    np.testing.assert_allclose(frame.scale, np.sqrt([1, 3, 1 / 3]), rtol=1e-6)
    constant = fit_standardizer(np.hstack([X, np.full((2, 1), 5.0)]), np.ones(2))
    np.testing.assert_allclose(constant.scale, [*frame.scale, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["linear", "ridge", "svm", "lda", "centroid", "kernel", pytest.param("deep", marks=pytest.mark.slow)]
)
def test_a_feature_that_was_silent_does_not_decide(kind):
    """Four columns of 24 are next to silent in 20 images, and wake in others: the rest still separates the classes, and
    log loss is what held-out rows promised. A kernel is unsure of what is far from all landmarks.
    """
    random = np.random.default_rng(0)
    y = np.arange(420) % 2
    X = random.normal(size=(420, 24))
    X[:, :20] += 1.5 * y[:, None]
    X[:20, 20:] *= 1e-5
    head = make_head(kind).fit(X[:20], y[:20])
    assert np.mean(head.predict(X[20:]) == y[20:]) > 0.95
    promised = min(head.scores_.values(), default=0.3)
    assert log_loss(y[20:], head.predict_proba(X[20:])) < promised + (0.3 if kind == "kernel" else 0.1)
