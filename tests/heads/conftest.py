"""Columns as heads standardise them, by scikit-learn."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler


@pytest.fixture
def fit_scaler():
    """A scaler whose deviations are those of scikit-learn's, and of one more row that deviates as the median does."""

    def fit(X, weights=None):
        scaler = StandardScaler().fit(X, sample_weight=weights)
        rows = len(X) if weights is None else max(weights.sum(), len(X))
        scaler.scale_ = np.sqrt((rows * scaler.var_ + np.median(scaler.var_)) / (rows + 1))
        return scaler

    return fit
