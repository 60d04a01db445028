"""Discriminants against scikit-learn, and cosines by hand."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tlkeras.heads.folds import LabelledFeatures
from tlkeras.heads.heads import make_head
from tlkeras.heads.prototypes import CosineHead, LdaHead

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)


def test_discriminants_are_those_of_scikit_learn():
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(X, Y)
    head = LdaHead(shrinkage=0.3, standardize=False).fit(X, Y)
    assert np.corrcoef(head.decision_function(X), reference.decision_function(X))[0, 1] > 0.9999


def test_cosine_by_hand():
    """Three directions around the mean: each row is nearest to its own class."""
    rows = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 3.0], [-3.0, -3.0], [-3.0, -3.0]])
    head = CosineHead().fit(rows, [0, 0, 1, 1, 2, 2])
    assert head.predict(rows).tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(head.mean_, [0, 0], atol=1e-12)
    lengths = np.linalg.norm(head.kernel_, axis=0)
    np.testing.assert_allclose(head.kernel_[:, 0] / lengths[0], [1, 0], atol=1e-12)


@pytest.mark.parametrize("kind", ["centroid", "lda"])
def test_means_of_few_rows_are_not_farther_away(kind):
    """Without any difference between classes they are equally far, of 40 rows and of 4 (else 6 apart, 50 / 4 / 2)."""
    biases = []
    y, weights = np.repeat([0, 1, 2], [40, 4, 40]), np.ones(84)
    for seed in range(60):
        rows = LabelledFeatures(np.random.default_rng(seed).normal(size=(84, 50)), y, weights)
        head = make_head(kind).fit(rows.X, y)
        ((_, bias),) = head._solve_path(rows._replace(X=head._fit_frame(rows).apply(rows.X)), [np.nan])
        biases.append(bias - bias.mean())
    np.testing.assert_allclose(np.mean(biases, axis=0), 0, atol=1)


@pytest.mark.parametrize("kind", ["centroid", "lda", "linear"])
def test_weights_that_are_shares_are_no_fewer_rows(kind):
    """A hundredth of every weight changes nothing; it would have left no degree of freedom within the classes."""
    options = {"linear": {"C": "auto"}}.get(kind, {})
    plain, shares = (make_head(kind, **options).fit(X, Y, np.full(40, weight)) for weight in (1.0, 0.01))
    if kind != "linear":
        np.testing.assert_allclose(shares.decision_function(X), plain.decision_function(X), atol=1e-3)
    assert np.mean(shares.predict(X) == plain.predict(X)) > 0.9
