"""Choice and calibration by held-out rows: every head, against truth and independent references."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tlkeras.config.schema.heads import FitConfig
from tlkeras.heads.deep import MLPHead
from tlkeras.heads.feature_selection import FeatureSelectingHead, measure_f
from tlkeras.heads.folds import LabelledFeatures, list_folds, make_folds
from tlkeras.heads.heads import make_head
from tlkeras.heads.link_functions import SoftmaxLink

KINDS = ("linear", "ridge", "svm", "centroid", "lda", "cosine", "kernel")
SEARCHING = ("linear", "ridge", "svm", "kernel")


def draw_rows(count, seed=0, share=0.1, width=8):
    """Two classes, `share` of them the second, that one column separates by two deviations and another by one."""
    random = np.random.default_rng(seed)
    y = (random.random(count) < share).astype(int)
    X = random.normal(size=(count, width))
    X[:, 0] += 2 * y
    X[:, 1] += y
    return X, y


def draw_colours(classes=15, count=6, width=40, seed=0):
    """Classes far apart in the first 20 columns, with few rows each."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, 20))
    y = np.repeat(np.arange(classes), count)
    X = random.normal(size=(len(y), width))
    X[:, :20] = centres[y] + 0.15 * X[:, :20]
    return X, y, centres


def balance(y):
    return (len(y) / (2 * np.bincount(y)))[y]


def measure_slope(head, X, y, weights):
    """The factor of log odds that fits fresh rows best; 1 for a calibrated head."""
    p = np.clip(head.predict_proba(X)[:, 1].astype(np.float64), 1e-9, 1 - 1e-9)
    return LogisticRegression(C=1e6).fit(np.log(p / (1 - p))[:, None], y, sample_weight=weights).coef_[0, 0]


def test_folds_are_dealt_by_class():
    """Three rows of a class are in three folds, the only row of a class in none."""
    codes = np.array([0] * 10 + [1] * 3 + [2])
    folds = make_folds(codes, 5, 0, None)
    assert len(folds) == 5 and sorted(np.concatenate([out for _, out in folds])) == list(range(13))
    assert all(np.bincount(codes[out], minlength=2)[0] == 2 and (codes[out] == 1).sum() <= 1 for _, out in folds)
    assert make_folds(np.arange(4), 5, 0, None) == []


def test_groups_are_in_one_fold():
    codes, groups = np.arange(60) % 2, np.arange(60) // 6
    for fit, out in make_folds(codes, 5, 0, groups):
        assert not set(groups[fit]) & set(groups[out])


def test_the_penalty_of_a_fold_is_that_of_all_rows_per_unit_of_weight(fit_scaler):
    """Ridge of a fold with its share of alpha by scikit-learn: its scores but for scale and shift."""
    X, y = draw_rows(60, share=0.5)
    weights = np.random.default_rng(1).uniform(0.2, 2, 60)
    rows = LabelledFeatures(X, y, weights)
    part = list_folds(SoftmaxLink(), rows, None, 5, 0)[1]
    head = make_head("ridge").fit(X, y, weights)
    (scores,) = head._score_fold(part, [(30.0,)])
    kept, out = part.fit, part.out
    scaler = fit_scaler(X[kept], weights[kept])
    reference = Ridge(alpha=30 * weights[kept].sum() / weights.sum())
    reference.fit(scaler.transform(X[kept]), y[kept], sample_weight=weights[kept])
    expected = scaler.transform(X[out]) @ reference.coef_
    assert np.corrcoef(scores[:, 1] - scores[:, 0], expected)[0, 1] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["ridge", "svm", "lda"])
def test_strongly_regularised_scores_are_calibrated(kind):
    """Held-out scores of a fold with a fifth less weight are as large as those of the fit on all rows."""
    fresh, truth = draw_rows(20_000, seed=9)
    slopes, means = [], []
    for seed in range(3):
        head = make_head(kind, **{"ridge": {"alpha": 1e6}, "svm": {"C": 1e-6}}.get(kind, {}))
        head.fit(*draw_rows(2000, seed))
        slopes.append(measure_slope(head, fresh, truth, np.ones(len(truth))))
        means.append(head.predict_proba(fresh)[:, 1].mean())
    assert np.mean(slopes) == pytest.approx(1, abs=0.1)
    assert np.mean(means) == pytest.approx(truth.mean(), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_classes_are_so_in_validation_rows_too(kind):
    X, y = draw_rows(600)
    held_X, held_y = draw_rows(600, seed=5)
    fresh, truth = draw_rows(5000, seed=9)
    reference = LogisticRegression(class_weight="balanced").fit(X, y)
    wanted = balanced_accuracy_score(truth, reference.predict(fresh))
    for validation in (None, (held_X, held_y, np.ones(600))):
        head = make_head(kind, class_weight="balanced").fit(X, y, validation=validation)
        assert balanced_accuracy_score(truth, head.predict(fresh)) == pytest.approx(wanted, abs=0.02)
    named = make_head(kind, class_weight=dict(enumerate(len(y) / (2 * np.bincount(y))))).fit(X, y)
    plain = make_head(kind, class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(named.predict_proba(fresh), plain.predict_proba(fresh), atol=1e-6)


def test_balanced_classes_have_equal_weight_beside_weights_of_rows():
    """Weights of rows that already balance the classes leave nothing to balance."""
    X, y = draw_rows(400)
    weighed = make_head("linear", C=0.1, class_weight="balanced").fit(X, y, np.where(y == 1, 3.0, 1.0))
    plain = make_head("linear", C=0.1, class_weight="balanced").fit(X, y)
    reference = LogisticRegression(C=0.1, class_weight="balanced")
    scaler = StandardScaler().fit(X, sample_weight=balance(y))
    reference.fit(scaler.transform(X), y)
    expected = reference.predict_proba(scaler.transform(X))
    np.testing.assert_allclose(plain.predict_proba(X), expected, atol=2e-3)
    # the sum of the weights is larger, and with it the loss beside the penalty
    np.testing.assert_allclose(weighed.predict_proba(X), expected, atol=2e-2)


@pytest.mark.parametrize("kind", SEARCHING)
def test_few_images_of_many_classes(kind):
    """Held-out loss rises before it falls: the whole path is measured."""
    X, y, centres = draw_colours()
    fresh, truth, _ = draw_colours(count=20)
    random = np.random.default_rng(3)
    fresh = random.normal(size=fresh.shape)
    fresh[:, :20] = centres[truth] + 0.15 * fresh[:, :20]
    reference = LogisticRegression(C=100, max_iter=2000).fit(StandardScaler().fit(X).transform(X), y)
    wanted = reference.score(StandardScaler().fit(X).transform(fresh), truth)
    head = make_head(kind).fit(X, y)
    assert wanted > 0.95 and head.score(fresh, truth) > wanted - 0.02
    assert len(head.scores_) in (15, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_noise_promise_nothing(kind):
    random = np.random.default_rng(0)
    X, y = random.normal(size=(120, 1000)), np.arange(120) % 2
    fresh, truth = random.normal(size=(1000, 1000)), np.arange(1000) % 2
    head = FeatureSelectingHead(make_head(kind), "f_classif", keep=0.02).fit(X, y)
    assert log_loss(truth, head.predict_proba(fresh)) < np.log(2) + 0.06
    if kind in SEARCHING:
        assert min(head.scores_.values()) > np.log(2) - 0.06


@pytest.mark.parametrize("kind", ["ridge", "svm", "linear"])
@pytest.mark.parametrize(("load", "method"), [(load_iris, "head2toe"), (load_breast_cancer, "f_classif")])
def test_a_selecting_head_is_near_the_head_alone(kind, load, method):
    X, y = load(return_X_y=True)
    alone = cross_val_score(make_head(kind), X, y, cv=3).mean()
    selecting = cross_val_score(FeatureSelectingHead(make_head(kind), method, keep=0.5), X, y, cv=3).mean()
    assert selecting > alone - 0.04


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 5])
def test_few_rows_of_a_class_are_not_less_sure_than_they_must(kind, count):
    """Ten classes: log loss near that of the best that a scale alone can do."""
    X, y, centres = draw_colours(10, count)
    random = np.random.default_rng(3)
    truth = np.repeat(np.arange(10), 50)
    fresh = random.normal(size=(500, 40))
    fresh[:, :20] = centres[truth] + 0.15 * fresh[:, :20]
    probabilities = make_head(kind).fit(X, y).predict_proba(fresh)
    assert (probabilities.argmax(axis=1) == truth).mean() > 0.8
    assert log_loss(truth, probabilities / probabilities.sum(axis=1, keepdims=True)) < {2: 1.6, 5: 0.6}[count]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_weight_are_absent(kind):
    """Also where they are a whole fold, or all rows of a group."""
    X, y = draw_rows(120, share=0.4)
    groups = np.arange(120) // 20
    weights = np.where(groups == 2, 0.0, 1.0)
    wild = np.where(weights[:, None] > 0, X, 1e3)
    head = make_head(kind).fit(wild, y, weights, groups=groups)
    kept = make_head(kind).fit(X[weights > 0], y[weights > 0], groups=groups[weights > 0])
    np.testing.assert_allclose(head.predict_proba(X), kept.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("kind", SEARCHING)
@pytest.mark.parametrize("selecting", [False, True])
def test_groups_are_kept_apart_in_the_choice(kind, selecting):
    """Thirty groups of 20 nearly equal rows whose class is drawn by lot: nothing can be learned."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    X = np.repeat(random.normal(size=(30, 40)), 20, axis=0) + 0.01 * random.normal(size=(600, 40))
    y = np.repeat(np.arange(30) % 2, 20)
    head = make_head(kind)
    head = FeatureSelectingHead(head, "l2", keep=0.5) if selecting else head
    head.fit(X, y, groups=groups)
    assert min(head.scores_.values()) > 0.6
    fresh = random.normal(size=(1000, 40))
    assert log_loss(np.arange(1000) % 2, head.predict_proba(fresh)) < 0.85


def test_a_deep_head_stops_by_whole_groups():
    groups = np.repeat(np.arange(30), 20)
    X, y = groups[:, None].astype(np.float32), np.repeat(np.arange(30) % 2, 20)
    rows = LabelledFeatures(X, y, np.ones(600), groups)
    head = MLPHead(fitting=FitConfig(epochs=1)).fit(rows.X, rows.codes)
    train, held = head._hold_out(rows)
    assert len(held.X) >= 40 and not set(train.X[:, 0]) & set(held.X[:, 0])


@pytest.mark.parametrize("rows", [60, 300])
def test_shrinkage_is_estimated_in_all_columns(rows):
    """As by scikit-learn, columns divided by their deviation within classes; fewer rows than columns, too."""
    random = np.random.default_rng(0)
    y = np.arange(rows) % 3
    X = random.normal(size=(rows, 10)) @ random.normal(size=(10, 100)) + random.normal(size=(rows, 100)) + y[:, None]
    head = make_head("lda").fit(X, y)
    squares = np.sum((X - np.array([X[y == label].mean(axis=0) for label in range(3)])[y]) ** 2, axis=0)
    Z = X / np.sqrt((squares + 3 * np.median(squares / (rows - 3))) / rows)  # three more rows, one of each class
    Z -= Z.mean(axis=0)
    within = Z - np.array([Z[y == label].mean(axis=0) for label in range(3)])[y]
    share = ledoit_wolf_shrinkage(within, assume_centered=True)
    assert 0 < share < 1 and head.shrinkage_ == pytest.approx(share, abs=1e-6)
    covariance = (1 - share) * within.T @ within + share * np.sum(within**2) / 100 * np.eye(100)
    covariance /= rows - 3
    means = np.array([Z[y == label].mean(axis=0) for label in range(3)])
    scores = Z @ np.linalg.solve(covariance, means.T)
    scores -= 0.5 * np.sum(means.T * np.linalg.solve(covariance, means.T), axis=0)
    scores -= scores.mean(axis=1, keepdims=True)
    logits = head.decision_function(X)
    logits = logits - logits.mean(axis=1, keepdims=True)
    centred = scores - scores.mean(axis=0), logits - logits.mean(axis=0)
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.99999


def test_f_values_are_those_of_scikit_learn():
    X, y = draw_rows(80, share=0.4)
    np.testing.assert_allclose(measure_f(X, y, np.ones(80)), f_classif(X, y)[0], rtol=1e-8)
    X[:, 3] = np.where(np.arange(80) < 20, y, 0.0)  # it separates classes in rows of weight 0 alone
    weights = np.where(np.arange(80) < 20, 0.0, 1.0)
    assert measure_f(X, y, weights)[3] == 0
    twice = np.where(np.arange(80) % 2, 2, 1)
    repeated, _ = f_classif(X.repeat(twice, axis=0), y.repeat(twice))
    np.testing.assert_allclose(measure_f(X, y, twice.astype(float)) / repeated, 78 / 118, rtol=1e-8)


def test_the_choice_is_that_of_cross_validation_by_hand(fit_scaler):
    """Logistic regression of each strength on each fold by scikit-learn: the same losses."""
    X, y = draw_rows(90, share=0.4)
    weights = np.random.default_rng(1).uniform(0.2, 2, 90)
    head = make_head("linear").fit(X, y, weights)
    rows = LabelledFeatures(X, y, weights)
    for C in {head.strength_, 1e-3}:
        predicted = np.zeros((90, 2))
        for part in list_folds(SoftmaxLink(), rows, None, 5, 0):
            scaler = fit_scaler(X[part.fit], weights[part.fit])
            model = LogisticRegression(C=C * weights.sum() / weights[part.fit].sum(), tol=1e-8, max_iter=1000)
            model.fit(scaler.transform(X[part.fit]), y[part.fit], sample_weight=weights[part.fit])
            predicted[part.out] = model.predict_proba(scaler.transform(X[part.out]))
        loss = log_loss(y, predicted, sample_weight=weights)
        assert loss == pytest.approx(head.scores_[min(head.scores_, key=lambda one: abs(one - C))], abs=1e-4)
    assert head.scores_[head.strength_] == min(head.scores_.values())


@pytest.mark.parametrize(
    "kind", [kind if kind == "ridge" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_selecting_heads_are_scikit_learn_estimators(kind):
    folds = "scores are calibrated on held-out folds, into which a row of weight 2 falls once and two rows fall apart"
    expected = {} if kind == "linear" else {"check_sample_weight_equivalence_on_dense_data": folds}
    head = make_head(kind, **({"C": 1.0} if kind in ("linear", "svm") else {}))
    check_estimator(FeatureSelectingHead(head, "f_classif", keep=0.9), expected_failed_checks=expected)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("kind", ["linear", "ridge", "svm", "lda", "centroid", "cosine", "kernel"])
def test_validation_rows_of_an_unknown_class_are_refused(kind, class_weight):
    """One between the known ones would be taken for its neighbour."""
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.repeat([0, 2], 10)
    with pytest.raises(ValueError, match=r"classes that no training row has. Received: \[1\], beside \[0, 2\]"):
        make_head(kind, class_weight=class_weight).fit(X, y, validation=(X[:4], np.array([0, 1, 2, 0]), np.ones(4)))
