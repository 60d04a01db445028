"""Kernels by hand, their maps against scikit-learn, and kernel heads as layers."""

import keras
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from tlkeras.heads.kernel import KernelHead, NystroemMap, RandomFourierFeatures, find_median_gamma, measure_kernel
from tlkeras.heads.layers import KernelFeatures

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] + RANDOM.normal(size=40) > 0).astype(int)


def test_kernels_by_hand():
    """x = (1, 2), l = (3, 1): squared distance 5, city-block 3, chi-squared 4/4 + 1/3, product 5."""
    x, point = np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]])
    expected = {
        "rbf": np.exp(-0.5 * 5),
        "laplacian": np.exp(-0.5 * 3),
        "chi2": np.exp(-0.5 * (1 + 1 / 3)),
        "polynomial": (0.5 * 5 + 1) ** 2,
    }
    for kernel, value in expected.items():
        assert measure_kernel(x, point, kernel, 0.5, 2)[0, 0] == pytest.approx(value)
        layer = KernelFeatures(kernel, 1, 0.5, 2)
        layer.build((None, 2))
        layer.set_weights([point])
        assert float(layer(x.astype("float32"))[0, 0]) == pytest.approx(value, rel=1e-5)


def test_all_rows_as_landmarks_are_kernel_ridge_regression():
    """Centred features differ from scikit-learn's by the intercept; without it, inner products are the kernel."""
    mapping = NystroemMap.fit(X, "rbf", 0.2, 3)
    features = mapping.apply(X)
    np.testing.assert_allclose(features @ features.T, measure_kernel(X, X, "rbf", 0.2, 3), atol=1e-4)
    ridge = Ridge(alpha=0.7, fit_intercept=False).fit(features, Y)
    kernel_ridge = KernelRidge(alpha=0.7, kernel="rbf", gamma=0.2).fit(X, Y)
    fresh = RANDOM.normal(size=(10, 6))
    np.testing.assert_allclose(ridge.predict(mapping.apply(fresh)), kernel_ridge.predict(fresh), atol=1e-3)


@pytest.mark.parametrize("kernel", ["rbf", "laplacian"])
def test_fourier_features_come_near_the_kernel(kernel):
    features = RandomFourierFeatures.draw(6, 20_000, kernel, 0.1, np.random.default_rng(0)).apply(X)
    assert np.abs(features @ features.T - measure_kernel(X, X, kernel, 0.1, 3)).max() < 0.05


def test_median_gamma_by_hand():
    """Points 0, 1, 3 on a line: squared distances 1, 4, 9."""
    assert find_median_gamma(np.array([[0.0], [1.0], [3.0]]), "rbf", 0) == pytest.approx(1 / 4)
    assert find_median_gamma(np.array([[0.0], [1.0], [3.0]]), "laplacian", 0) == pytest.approx(1 / 2)


def test_gamma_is_searched_where_held_out_loss_is_least():
    rows = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = (np.hypot(*rows.T) < 0.8).astype(int)
    losses = {}
    for gamma in ("median", "search"):
        head = KernelHead(gamma=gamma).fit(rows, y)
        losses[gamma] = min(head.scores_.values())
    assert losses["search"] <= losses["median"] and (head.predict(rows) == y).mean() > 0.95


@pytest.mark.parametrize("kernel", ["rbf", "laplacian", "chi2", "polynomial"])
@pytest.mark.parametrize("solver", ["ridge", "logistic", "svm"])
def test_every_kernel_and_solver_exports(kernel, solver):
    rows = np.abs(X).astype("float32")
    head = KernelHead(kernel, components=15, degree=2, solver=solver).fit(rows, Y)
    tensor = entry = keras.Input((6,))
    for layer in head.to_layers():
        tensor = layer(tensor)
    predictions = keras.Model(entry, tensor)(rows, training=False)
    np.testing.assert_allclose(predictions, head.predict_proba(rows), atol=1e-3)
    assert head.exact_ is False and head.summarize().chosen["components"] == 15


def test_kernels_refuse_what_they_cannot():
    with pytest.raises(ValueError, match="needs features that are not negative. Received: -"):
        KernelHead("chi2").fit(X, Y)
    with pytest.raises(ValueError, match="for the kernels rbf and laplacian only. Received: 'chi2'"):
        KernelHead("chi2", "fourier").fit(np.abs(X), Y)
