"""Discriminants against scikit-learn, and cosines by hand."""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

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
