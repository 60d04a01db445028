"""Every head: fits on a matrix, becomes Keras layers that answer the same, and refuses what it cannot use."""

from functools import cache

import keras
import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from tlkeras.errors import RecipeError
from tlkeras.mapping.deep import DeepHead, Fitting
from tlkeras.mapping.heads import HEADS, join, make_head
from tlkeras.mapping.linear import LinearHead
from tlkeras.mapping.weighting import weigh_examples


def make_data(classes=3, count=240, width=12, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(count) % classes
    X = random.normal(size=(count, width)) + 4 * random.normal(size=(classes, width))[y] * (np.arange(width) < 4)
    return (X * random.uniform(0.1, 50, width) + 7).astype("float32"), y


def make_quick(kind):
    options = {"deep": {"fitting": Fitting(epochs=3, batch_size=16, learning_rate=1e-2)}}
    return make_head(kind, **options.get(kind, {}))


@pytest.fixture(params=sorted(HEADS))
def head(request):
    return make_quick(request.param)


@cache
def fit_shared(kind, classes):
    """The head of `make_quick`, fitted on `make_data`; do not change it."""
    return make_quick(kind).fit(*make_data(classes))


def join_features(fitted, width=12):
    entry = keras.Input((width,))
    return join(keras.Model(entry, keras.layers.Identity()(entry)), fitted, "joined")


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_fits_predicts_and_exports_the_same(kind, classes):
    X, y = make_data(classes)
    fitted = fit_shared(kind, classes)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (len(X), classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == y).mean() > 0.95
    np.testing.assert_allclose(join_features(fitted)(X, training=False), probabilities, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_joined_model_reloads_without_custom_objects(kind, tmp_path):
    X, _ = make_data()
    model = join_features(fit_shared(kind, 3))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again(X, training=False), model(X, training=False), atol=1e-6)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_heads_are_reproducible(kind):
    X, y = make_data()
    again = make_quick(kind).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), fit_shared(kind, 3).predict_proba(X))


def test_weight_zero_is_absence(head):
    """Mislabelled rows without weight change nothing that matters."""
    X, y = make_data()
    wrong, weights = y.copy(), np.ones(len(y))
    wrong[:80], weights[:80] = (y[:80] + 1) % 3, 0.0
    assert (head.fit(X, wrong, weights).predict(X) == y).mean() > 0.9


def test_validation_rows_are_used(head):
    X, y = make_data()
    fitted = head.fit(X[:180], y[:180], validation=(X[180:], y[180:], np.ones(60)))
    assert (fitted.predict(X[180:]) == y[180:]).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (np.where(np.arange(X.size).reshape(X.shape) == 5, np.nan, X), y), "contains NaN"),
        (lambda X, y: (np.where(np.arange(X.size).reshape(X.shape) == 5, np.inf, X), y), "contains infinity"),
        (lambda X, y: (X, np.zeros_like(y)), "A head needs two classes or more. Received: 1 class"),
        (lambda X, y: (X[:0], y[:0]), "0 sample"),
    ],
)
def test_bad_features_are_refused(head, change, message):
    with pytest.raises(ValueError, match=message):
        head.fit(*change(*make_data()))


def test_one_example_per_class_still_fits(head):
    X, y = make_data(count=3)
    assert head.fit(X, y).predict_proba(X).shape == (3, 3)


def test_constant_columns_do_no_harm(head):
    X, y = make_data()
    X[:, 3] = 5.0
    probabilities = head.fit(X, y).predict_proba(X)
    assert np.isfinite(probabilities).all()
    assert (probabilities.argmax(1) == y).mean() > 0.9


def test_unknown_kind_names_the_nearest():
    with pytest.raises(RecipeError, match="Received: 'liner'. Did you mean 'linear'?"):
        make_head("liner")


def test_deep_head_stops_early_and_says_when():
    X, y = make_data()
    random = np.random.default_rng(0).permutation(y)  # nothing to learn
    head = DeepHead(fitting=Fitting(epochs=50, patience=2)).fit(X, random)
    told = head.describe()
    assert told["epochs"] < 50
    assert told["epochs"] == told["best_epoch"] + 2


@pytest.mark.parametrize("batch_norm", [False, True])
def test_deep_head_has_the_layers_asked_for(batch_norm):
    X, y = make_data()
    head = DeepHead(widths=(8, 4), dropout=0.2, batch_norm=batch_norm, fitting=Fitting(epochs=1)).fit(X, y)
    kinds = [type(layer).__name__ for layer in head.to_layers()]
    block = ["Dense", *(["BatchNormalization"] if batch_norm else []), "Activation", "Dropout"]
    assert kinds == ["Normalization", *block, *block, "Dense", "Activation"]
    assert [layer.units for layer in head.to_layers() if isinstance(layer, keras.layers.Dense)] == [8, 4, 3]


def test_logistic_regression_by_hand():
    """One feature at -1 and 1, standardised to itself: the optimum of log(1 + e^-w) + w^2 / (2 C n) for n rows.

    With C = 0.5 and n = 4 the gradient -1 / (1 + e^w) + w / 2 is zero at w = 0.6888.
    """
    X, y = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])
    head = LinearHead(C=0.5).fit(X, y)
    slope = head.kernel_[0, 1] - head.kernel_[0, 0]
    assert -1 / (1 + np.exp(slope)) + slope / 2 == pytest.approx(0, abs=1e-3)
    assert head.bias_ == pytest.approx([0, 0], abs=1e-6)


def test_strength_is_chosen_where_held_out_loss_is_least():
    X, y = make_data()
    noisy = np.where(np.random.default_rng(1).random(len(y)) < 0.3, (y + 1) % 3, y)
    head = LinearHead().fit(X, noisy)
    assert head.scores_[head.C_] == min(head.scores_.values())
    assert len(head.scores_) >= 3


def test_groups_stay_on_one_side_of_a_fold():
    """Twenty identical rows per group: folds across groups would make weak regularisation look right."""
    random = np.random.default_rng(0)
    X = np.repeat(random.normal(size=(30, 40)), 20, axis=0)
    y = np.repeat(np.arange(30) % 2, 20)
    groups = np.repeat(np.arange(30), 20)
    assert LinearHead().fit(X, y, groups=groups).C_ < LinearHead().fit(X, y).C_


def test_weights():
    y = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(weigh_examples(y, None, None), [1, 1, 1, 1])
    np.testing.assert_allclose(weigh_examples(y, np.array([1, 2, 0, 4]), "balanced"), [2 / 3, 4 / 3, 0, 8])
    for bad in ([1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, np.nan]):
        with pytest.raises(ValueError, match="must be finite, none negative, and not all zero"):
            weigh_examples(y, np.array(bad, float), None)
    with pytest.raises(ValueError, match="one value per row"):
        weigh_examples(y, np.ones(3), None)


def test_linear_head_is_a_scikit_learn_estimator():
    check_estimator(LinearHead(C=1.0))
