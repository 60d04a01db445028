"""Aligners: formulas by hand, against SKADA and POT where these are right, and what is refused."""

import keras
import numpy as np
import pytest
import sklearn
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import check_estimator

from tlkeras.adaptation.alignment import (
    Coral,
    GaussianTransport,
    Identity,
    JointPca,
    SubspaceAlignment,
    matrix_power,
    measure_covariance,
)
from tlkeras.adaptation.tca import JointDistributionAdaptation, TransferComponentAnalysis, solve_leading, solve_whole
from tlkeras.errors import DataError

ALIGNERS = {
    "identity": Identity,
    "coral": Coral,
    "transport": GaussianTransport,
    "subspace": SubspaceAlignment,
    "joint_pca": JointPca,
    "tca": TransferComponentAnalysis,
    "tca_rbf": lambda: TransferComponentAnalysis(kernel="rbf"),
    "jda": JointDistributionAdaptation,
}


def draw_domains(seed=0, source=60, target=45, width=8):
    """Two classes per domain; the target is moved, stretched and turned."""
    random = np.random.default_rng(seed)
    ys, yt = random.integers(0, 2, source), random.integers(0, 2, target)
    turn = np.linalg.qr(random.normal(size=(width, width)))[0]
    Xs = random.normal(size=(source, width)) + 2.0 * ys[:, None] * np.eye(width)[0]
    Xt = (random.normal(size=(target, width)) + 2.0 * yt[:, None] * np.eye(width)[0]) @ turn * 1.5 + 3.0
    return Xs, ys, Xt, yt


@pytest.fixture(params=ALIGNERS)
def fitted(request):
    Xs, ys, Xt, _ = draw_domains()
    return ALIGNERS[request.param]().fit(Xs, ys, target=Xt), Xs, Xt


def test_new_rows_are_mapped_as_the_rows_of_the_fit(fitted):
    aligner, Xs, Xt = fitted
    for domain, X in (("source", Xs), ("target", Xt)):
        whole = aligner.transform(X, domain)
        assert whole.dtype == np.float32 and len(whole) == len(X)
        np.testing.assert_allclose(aligner.transform(X[7:9], domain), whole[7:9], atol=1e-4)


@pytest.mark.parametrize("name", ALIGNERS)
def test_the_order_of_rows_changes_nothing(name):
    Xs, ys, Xt, _ = draw_domains()
    order = np.random.default_rng(1).permutation(len(Xs))
    plain = ALIGNERS[name]().fit(Xs, ys, target=Xt).transform(Xs, "source")
    other = ALIGNERS[name]().fit(Xs[order], ys[order], target=Xt[::-1]).transform(Xs, "source")
    np.testing.assert_allclose(np.abs(other), np.abs(plain), atol=1e-3)  # an axis may point either way


@pytest.mark.parametrize("name", [name for name in ALIGNERS if name != "tca_rbf"])
def test_linear_aligners_become_layers(name):
    Xs, ys, Xt, _ = draw_domains()
    aligner = ALIGNERS[name]().fit(Xs, ys, target=Xt)
    model = keras.Sequential([keras.Input((Xt.shape[1],)), *aligner.to_layers()])
    np.testing.assert_allclose(model(Xt.astype(np.float32)), aligner.transform(Xt, "target"), atol=1e-3)


def test_an_rbf_kernel_is_no_layer():
    Xs, _, Xt, _ = draw_domains()
    with pytest.raises(DataError, match="A rbf kernel cannot be expressed as layers"):
        TransferComponentAnalysis(kernel="rbf").fit(Xs, target=Xt).to_layers()


@pytest.mark.parametrize("aligner", [Coral(0.0), GaussianTransport(0.0)])
def test_the_source_gets_the_targets_moments(aligner):
    Xs, _, Xt, _ = draw_domains()
    moved = aligner.fit(Xs, target=Xt).transform(Xs, "source").astype(np.float64)
    np.testing.assert_allclose(moved.mean(axis=0), Xt.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(Xt.T) * (59 / 60) / (44 / 45) * (60 / 59) * (44 / 45), rtol=0.05)
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.cov(Xt.T, bias=True), atol=1e-4)


def test_moments_by_hand():
    """Variances 1 and 4 along two axes, means 0 and (5, 0): the map is 2 x + (5, 0)."""
    Xs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    for aligner in (Coral(0.0), GaussianTransport(0.0)):
        moved = aligner.fit(Xs, target=2 * Xs + [5.0, 0.0]).transform([[1.0, 3.0]], "source")
        np.testing.assert_allclose(moved, [[7.0, 6.0]], atol=1e-5)


def test_transport_moves_less_than_coral():
    Xs, _, Xt, _ = draw_domains()
    moved = [
        np.square(aligner.fit(Xs, target=Xt).transform(Xs, "source") - Xs).sum()
        for aligner in (GaussianTransport(0.0), Coral(0.0))
    ]
    assert moved[0] <= moved[1] + 1e-6


def test_roots_of_a_matrix():
    C = np.array([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 1 and 3
    root = (np.sqrt(3) + 1) / 2, (np.sqrt(3) - 1) / 2
    np.testing.assert_allclose(matrix_power(C, 0.5), [[root[0], root[1]], [root[1], root[0]]])
    np.testing.assert_allclose(measure_covariance(np.array([[0.0, 2.0], [2.0, 0.0]]), 0.5), [[1.0, -0.5], [-0.5, 1.0]])


def test_subspaces_are_turned_towards_each_other():
    """The source's axis (1, 0, 0) is turned into the target's (cos, sin, 0): coordinates shrink by the cosine."""
    line, angle = np.linspace(-1, 1, 9)[:, None], 0.3
    Xs, Xt = line * [1.0, 0, 0], line * [np.cos(angle), np.sin(angle), 0]
    aligner = SubspaceAlignment(components=1).fit(Xs, target=Xt)
    source, target = aligner.transform(Xs, "source"), aligner.transform(Xt, "target")
    np.testing.assert_allclose(np.abs(target[:, 0]), np.abs(line[:, 0]), atol=1e-6)
    np.testing.assert_allclose(source, target * np.cos(angle), atol=1e-6)


@pytest.mark.parametrize("mu", [0.01, 0.1, 10.0])
def test_the_fast_path_solves_the_generalised_problem(mu):
    """Against scipy's dense solver, on the kernel of the paper, in residuals, eigenvalues and subspace."""
    Xs, _, Xt, _ = draw_domains(width=20)
    X = normalize(np.concatenate([Xs, Xt]))
    K, n, m = X @ X.T, len(X), 6
    H = np.eye(n) - 1 / n
    e = np.concatenate([np.full(len(Xs), 1 / len(Xs)), np.full(len(Xt), -1 / len(Xt))])
    ridge = mu * np.square(K @ e).sum()
    A, B = K @ np.outer(e, e) @ K + ridge * np.eye(n), K @ H @ K
    expected, vectors = eigh(B, A, subset_by_index=[n - m, n - 1])
    for solve in (solve_whole, solve_leading):
        values, found = solve(H @ K, (K @ e)[:, None], ridge, m)
        np.testing.assert_allclose(values, expected[::-1], rtol=1e-8)
        np.testing.assert_allclose(B @ found, A @ found * values, atol=1e-7 * values[0] * np.linalg.norm(A))
        cosines = np.linalg.svd(np.linalg.qr(found)[0].T @ np.linalg.qr(vectors)[0], compute_uv=False)
        assert cosines.min() > 1 - 1e-8
    aligned = TransferComponentAnalysis(m, mu).fit(Xs, target=Xt)
    np.testing.assert_allclose(aligned.eigenvalues_, expected[::-1], rtol=1e-6)


def test_components_have_unit_variance_and_less_difference_of_means():
    Xs, _, Xt, _ = draw_domains()
    gaps = {}
    for mu in (1e6, 1e-4):
        aligner = TransferComponentAnalysis(5, mu).fit(Xs, target=Xt)
        Z = np.concatenate([aligner.transform(Xs, "source"), aligner.transform(Xt, "target")])
        np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(Z.std(axis=0), 1, atol=1e-4)
        gaps[mu] = np.linalg.norm(Z[: len(Xs)].mean(axis=0) - Z[len(Xs) :].mean(axis=0))
    assert gaps[1e-4] < 0.05 * gaps[1e6]


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_many_rows_are_aligned_by_approximation(kernel, monkeypatch):
    Xs, _, Xt, _ = draw_domains(source=300, target=260)
    exact = TransferComponentAnalysis(4, kernel=kernel).fit(Xs, target=Xt).transform(Xt, "target")
    monkeypatch.setattr("tlkeras.adaptation.tca.NYSTROEM", 100)
    near = TransferComponentAnalysis(4, mu=0.1, kernel=kernel, landmarks=200).fit(Xs, target=Xt)
    Z = near.transform(Xt, "target")
    assert near.weights_.shape[0] == (8 if kernel == "linear" else 200)
    cosines = np.linalg.svd(np.linalg.qr(Z - Z.mean(0))[0].T @ np.linalg.qr(exact - exact.mean(0))[0], compute_uv=False)
    assert cosines[:2].min() > 0.95  # the ridge lies on other weights, so that it is near and not equal


def test_classes_brought_together_help_where_both_domains_have_them():
    Xs, ys, Xt, yt = draw_domains(source=200, target=160)
    gaps = []
    for aligner in (TransferComponentAnalysis(5), JointDistributionAdaptation(5)):
        Zs, Zt = aligner.fit(Xs, ys, target=Xt).transform(Xs, "source"), aligner.transform(Xt, "target")
        gaps.append(sum(np.linalg.norm(Zs[ys == c].mean(0) - Zt[yt == c].mean(0)) for c in (0, 1)))
    assert gaps[1] < gaps[0] + 0.5


def test_balance_zero_is_transfer_component_analysis():
    Xs, ys, Xt, _ = draw_domains()
    both = [
        aligner.fit(Xs, ys, target=Xt).transform(Xt, "target")
        for aligner in (TransferComponentAnalysis(4), JointDistributionAdaptation(4, balance=0.0))
    ]
    np.testing.assert_allclose(*both, atol=1e-4)


def test_a_class_missing_in_the_target_does_no_harm():
    Xs, ys, Xt, _ = draw_domains()
    ys[:5] = 2
    assert np.isfinite(JointDistributionAdaptation(4).fit(Xs, ys, target=Xt).transform(Xt, "target")).all()


@pytest.mark.parametrize("name", ALIGNERS)
def test_fewer_rows_than_columns(name):
    Xs, ys, Xt, _ = draw_domains(source=12, target=9, width=40)
    aligner = ALIGNERS[name]().fit(Xs, ys, target=Xt)
    assert all(np.isfinite(aligner.transform(X, domain)).all() for domain, X in (("source", Xs), ("target", Xt)))


@pytest.mark.parametrize("name", ALIGNERS)
def test_what_cannot_be_aligned_is_refused(name):
    Xs, ys, Xt, _ = draw_domains()
    for wrong, sentence in (
        (np.zeros((0, 8)), "two rows or more"),
        (np.ones((9, 8)), "target domain does not vary"),
        (Xt[:, :5], "8 and 5 columns"),
        (np.where(Xt > 3, np.nan, Xt), "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=sentence):
            ALIGNERS[name]().fit(Xs, ys, target=wrong)
    constant = Xs.copy()
    constant[:, 3] = 1.0
    assert np.isfinite(ALIGNERS[name]().fit(constant, ys, target=Xt).transform(constant, "source")).all()


def test_joint_distributions_need_classes():
    Xs, _, Xt, _ = draw_domains()
    with pytest.raises(DataError, match="source's classes"):
        JointDistributionAdaptation().fit(Xs, target=Xt)


@pytest.fixture(scope="module")
def domains():
    random = np.random.default_rng(0)
    Xs, Xt = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) + 3, random.normal(size=(200, 6)) - 1
    return Xs, Xt @ random.normal(size=(6, 6))


@pytest.fixture
def skada():
    """SKADA, whose import switches scikit-learn's metadata routing on for the process: here for one test alone."""
    with sklearn.config_context(enable_metadata_routing=True):
        yield pytest.importorskip("skada")


def adapt(adapter, Xs, Xt):
    """Both domains adapted by SKADA, which takes them in one matrix, without the target's labels."""
    y = np.concatenate([np.arange(len(Xs)) % 2, np.full(len(Xt), -1)])
    domain = np.concatenate([np.full(len(Xs), 1), np.full(len(Xt), -2)])
    made = np.asarray(adapter.fit_transform(np.concatenate([Xs, Xt]), y, sample_domain=domain))
    return made[: len(Xs)], made[len(Xs) :]


def test_coral_is_skadas_but_for_the_targets_mean(domains, skada):
    Xs, Xt = domains
    theirs = adapt(skada.CORALAdapter(reg=0.0), Xs, Xt)[0]  # both domains centred
    ours = Coral(shrinkage=0.0).fit(Xs, target=Xt).transform(Xs, "source")
    np.testing.assert_allclose(ours - Xt.mean(axis=0), theirs, atol=1e-6)


def test_subspace_alignment_is_skadas_up_to_signs_and_means(domains, skada):
    ours = SubspaceAlignment(3, variance=1.0).fit(domains[0], target=domains[1])
    theirs = adapt(skada.SubspaceAlignmentAdapter(n_components=3), *domains)
    for name, X, other in zip(("source", "target"), domains, theirs, strict=True):
        np.testing.assert_allclose(pdist(ours.transform(X, name)), pdist(other), rtol=1e-5)


def test_gaussian_transport_is_pots(domains):
    Xs, Xt = domains
    transport = pytest.importorskip("ot.da")
    theirs = transport.LinearTransport(reg=1e-12).fit(Xs=Xs, Xt=Xt).transform(Xs=Xs)
    ours = GaussianTransport(shrinkage=0.0).fit(Xs, target=Xt).transform(Xs, "source")
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ALIGNERS)
def test_aligners_are_scikit_learn_transformers(name):
    aligner = ALIGNERS[name]()
    alone = "rows of a single feature all have length 1 and are equal"
    linear = isinstance(aligner, TransferComponentAnalysis) and aligner.kernel == "linear"
    check_estimator(aligner, expected_failed_checks={"check_fit2d_1feature": alone} if linear else {})


@pytest.mark.parametrize("name", ALIGNERS)
def test_a_pipeline_learns_from_the_source_and_answers_for_the_target(name):
    Xs, ys, Xt, _ = draw_domains()
    aligner = clone(ALIGNERS[name]())
    pipeline = make_pipeline(aligner, LogisticRegression())
    pipeline.fit(Xs, ys, **{f"{type(aligner).__name__.lower()}__target": Xt})
    by_hand = LogisticRegression().fit(aligner.transform(Xs, "source"), ys)
    np.testing.assert_array_equal(pipeline.predict(Xt), by_hand.predict(aligner.transform(Xt, "target")))
