"""The algebra of the heads against numbers worked out by hand and against independent computations."""

import keras
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from tlkeras.heads.calibration import calibrate, measure_loss
from tlkeras.heads.kernel import (
    KernelHead,
    KernelOptions,
    NystroemMap,
    RandomFourierFeatures,
    find_median_gamma,
    measure_kernel,
)
from tlkeras.heads.layers import AttentionPooling, KernelFeatures
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.link_functions import SigmoidLink, SoftmaxLink
from tlkeras.heads.prototypes import CosineHead, LdaHead
from tlkeras.heads.ridge import factorise
from tlkeras.heads.scaling import fit_standardizer
from tlkeras.heads.svm import fit_squared_hinge

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


def test_discriminants_are_those_of_scikit_learn():
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(X, Y)
    head = LdaHead(shrinkage=0.3, standardize=False).fit(X, Y)
    assert np.corrcoef(head.decision_function(X), reference.decision_function(X))[0, 1] > 0.9999


def test_cosine_by_hand():
    """Three directions around the mean: each class answers for its own."""
    rows = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 3.0], [-3.0, -3.0], [-3.0, -3.0]])
    head = CosineHead().fit(rows, [0, 0, 1, 1, 2, 2])
    assert head.predict(rows).tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(head.mean_, [0, 0], atol=1e-12)
    lengths = np.linalg.norm(head.kernel_, axis=0)
    np.testing.assert_allclose(head.kernel_[:, 0] / lengths[0], [1, 0], atol=1e-12)


def test_platt_by_hand():
    """Scores that say nothing: the answer is the share of each class in the smoothed targets, (N + 1) / (N + 2)."""
    codes, scores = np.array([0, 0, 0, 1]), np.zeros((4, 2))
    scale, shift = calibrate(SoftmaxLink(), scores, codes, np.ones(4))
    expected = (3 * (1 / 5) + 1 * (2 / 3)) / 4
    assert SoftmaxLink().predict_domain(scores * scale + shift)[0, 1] == pytest.approx(expected, abs=1e-4)
    columns = codes[:, None]
    scale, shift = calibrate(SigmoidLink(), scores[:, :1], columns, np.ones(4))
    assert SigmoidLink().predict_domain(scores[:, :1] * scale + shift)[0, 0] == pytest.approx(expected, abs=1e-4)


def test_overconfident_scores_are_cooled():
    scores = 50 * np.stack([-X[:, 0], X[:, 0]], axis=1)
    scale, shift = calibrate(SoftmaxLink(), scores, Y, np.ones(40))
    before = measure_loss(SoftmaxLink(), scores, Y, np.ones(40))
    assert measure_loss(SoftmaxLink(), scores * scale + shift, Y, np.ones(40)) < before / 5
    assert measure_loss(SoftmaxLink(), np.zeros((1, 4)), np.array([2]), np.ones(1)) == pytest.approx(np.log(4))


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
def test_waves_come_near_the_kernel(kernel):
    waves = RandomFourierFeatures.draw(6, 20_000, kernel, 0.1, np.random.default_rng(0)).apply(X)
    assert np.abs(waves @ waves.T - measure_kernel(X, X, kernel, 0.1, 3)).max() < 0.05


def test_median_gamma_by_hand():
    """Points 0, 1, 3 on a line: squared distances 1, 4, 9."""
    assert find_median_gamma(np.array([[0.0], [1.0], [3.0]]), "rbf", 0) == pytest.approx(1 / 4)
    assert find_median_gamma(np.array([[0.0], [1.0], [3.0]]), "laplacian", 0) == pytest.approx(1 / 2)


def test_gamma_is_searched_where_held_out_loss_is_least():
    rows = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = (np.hypot(*rows.T) < 0.8).astype(int)
    losses = {}
    for gamma in ("median", "search"):
        head = KernelHead(KernelOptions(gamma=gamma)).fit(rows, y)
        losses[gamma] = min(head.scores_.values())
    assert losses["search"] <= losses["median"] and (head.predict(rows) == y).mean() > 0.95


@pytest.mark.parametrize("kernel", ["rbf", "laplacian", "chi2", "polynomial"])
@pytest.mark.parametrize("solver", ["ridge", "logistic", "svm"])
def test_every_kernel_and_solver_exports(kernel, solver):
    rows = np.abs(X).astype("float32")
    head = KernelHead(KernelOptions(kernel, components=15, degree=2), solver=solver).fit(rows, Y)
    tensor = entry = keras.Input((6,))
    for layer in head.to_layers():
        tensor = layer(tensor)
    predictions = keras.Model(entry, tensor)(rows, training=False)
    np.testing.assert_allclose(predictions, head.predict_proba(rows), atol=1e-3)
    assert head.describe()["exact"] is False and head.describe()["components"] == 15


def test_kernels_refuse_what_they_cannot():
    with pytest.raises(ValueError, match="needs features that are not negative. Received: -"):
        KernelHead(KernelOptions("chi2")).fit(X, Y)
    with pytest.raises(ValueError, match="know rbf and laplacian. Received: 'chi2'"):
        KernelHead(KernelOptions("chi2", "fourier")).fit(np.abs(X), Y)


def test_attention_by_hand():
    """Two positions 0 and 4 of one channel, query log 3 / 4: shares 1/4 and 3/4, found 3."""
    layer = AttentionPooling(1)
    layer.build((None, 1, 2, 1))
    layer.set_weights([np.array([[np.log(3) / 4]])])
    assert float(layer(np.array([[[[0.0], [4.0]]]], "float32"))[0, 0]) == pytest.approx(3)
