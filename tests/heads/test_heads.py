"""Every head: fits on a matrix, becomes Keras layers with the same predictions, and refuses what it cannot use."""

from functools import cache

import keras
import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.utils.estimator_checks import check_estimator

import tlkeras
from tlkeras.config.schema.features import FeatureSelectionConfig
from tlkeras.config.schema.heads import FitConfig, HeadConfig
from tlkeras.errors import RecipeError
from tlkeras.heads.base import VectorHead
from tlkeras.heads.deep import KerasHead, MLPHead
from tlkeras.heads.feature_selection import FeatureSelectingHead
from tlkeras.heads.folds import compute_sample_weights
from tlkeras.heads.heads import HEADS, attach_heads, make_head
from tlkeras.heads.linear import LinearHead


def make_data(classes=3, count=240, width=12, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(count) % classes
    X = random.normal(size=(count, width)) + 4 * random.normal(size=(classes, width))[y] * (np.arange(width) < 4)
    return (X * random.uniform(0.1, 50, width) + 7).astype("float32"), y


def shape_for(kind, X):
    """Rows as a head takes them: vectors, or maps of 2 x 3 positions."""
    return X if HEADS[kind].input_kind == "vector" else X.reshape(len(X), 2, 3, -1)


def make_quick(kind, **options):
    if issubclass(HEADS[kind], KerasHead):
        options |= {"fitting": FitConfig(epochs=8, batch_size=16, learning_rate=1e-2)}
    if kind == "transformer":
        options |= {"width": 16, "blocks": 1}
    return make_head(kind, **options)


@pytest.fixture(params=sorted(HEADS))
def kind(request):
    return request.param


@pytest.fixture(
    params=[
        pytest.param(kind, marks=pytest.mark.slow) if issubclass(head, KerasHead) else kind
        for kind, head in HEADS.items()
    ]
)
def refitted(request):
    """A kind; those that Keras trains, which take seconds to compile, in the long ring only."""
    return request.param


@cache
def fit_shared(kind, classes):
    """The head of `make_quick`, fitted on `make_data`; do not change it."""
    X, y = make_data(classes)
    return make_quick(kind).fit(shape_for(kind, X), y)


def join_features(fitted, shape=(12,)):
    entry = keras.Input(shape)
    return attach_heads(keras.Model(entry, keras.layers.Identity()(entry)), fitted, "joined")


def test_the_registry_knows_every_kind_by_its_word():
    assert list(HEADS) == [head.kind for head in HEADS.values()] and len(HEADS) >= 11


def test_the_recipe_has_the_options_of_each_head_with_equal_defaults(kind):
    """Both are written down, as scikit-learn needs parameters and a recipe is read without scikit-learn."""
    config = TypeAdapter(HeadConfig).validate_python({"kind": kind}).model_dump(exclude={"kind"})
    config["class_weight"] = None if config["class_weight"] == "none" else config["class_weight"]
    parameters = make_head(kind).get_params(deep=False)
    assert {name: parameters.pop(name) for name in config} == config
    assert set(parameters) <= {"standardize", "seed", "fitting"}


def test_the_recipe_has_the_options_of_feature_selection_with_equal_defaults():
    parameters = FeatureSelectingHead(LinearHead()).get_params(deep=False)
    config = FeatureSelectionConfig().model_dump()
    assert {name: parameters.pop(name) for name in config} == config
    assert set(parameters) == {"head", "folds", "seed"}


@pytest.mark.parametrize("classes", [2, 3])
def test_fits_predicts_and_exports_the_same(kind, classes, request):
    if classes == 2 and issubclass(HEADS[kind], KerasHead) and not request.config.getoption("--run-slow"):
        pytest.skip("long ring: two classes of heads that Keras trains need --run-slow")
    X, y = make_data(classes)
    X, fitted = shape_for(kind, X), fit_shared(kind, classes)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (len(X), classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # what attends to positions by their content alone cannot tell which value of the vector stood where
    assert (probabilities.argmax(axis=1) == y).mean() > (0.7 if kind == "attention" else 0.95)
    joined = join_features(fitted, X.shape[1:])
    np.testing.assert_allclose(joined(X, training=False), probabilities, atol=2e-4)
    assert [layer.name for layer in joined.layers[-2:]] == ["logits", "probabilities"]


def test_joined_model_reloads_without_custom_objects(kind, tmp_path):
    X = shape_for(kind, make_data()[0])
    model = join_features(fit_shared(kind, 3), X.shape[1:])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again(X, training=False), model(X, training=False), atol=1e-6)


def test_heads_are_reproducible(refitted):
    X, y = make_data()
    X = shape_for(refitted, X)
    again = make_quick(refitted).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), fit_shared(refitted, 3).predict_proba(X))


def test_heads_summarize_what_they_chose(kind):
    result = fit_shared(kind, 3).summarize()
    assert result.kind == kind and all(isinstance(value, (str, int, float, bool)) for value in result.chosen.values())
    assert result.to_dict() == {"kind": kind, **result.chosen}
    columns = fit_shared(kind, 3).history()
    assert len({len(column) for column in columns.values()}) <= 1


def test_weight_zero_is_absence(refitted):
    """Mislabelled rows without weight change nothing that matters."""
    X, y = make_data()
    X, wrong, weights = shape_for(refitted, X), y.copy(), np.ones(len(y))
    wrong[:80], weights[:80] = (y[:80] + 1) % 3, 0.0
    assert (make_quick(refitted).fit(X, wrong, weights).predict(X) == y).mean() > 0.9


def test_validation_rows_are_used(refitted):
    X, y = make_data()
    X = shape_for(refitted, X)
    fitted = make_quick(refitted).fit(X[:180], y[:180], validation=(X[180:], y[180:], np.ones(60)))
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
def test_bad_features_are_refused(kind, change, message):
    X, y = make_data()
    with pytest.raises(ValueError, match=message):
        make_quick(kind).fit(*change(shape_for(kind, X), y))


def test_one_example_per_class_still_fits(refitted):
    X, y = make_data(count=3)
    X = shape_for(refitted, X)
    probabilities = make_quick(refitted).fit(X, y).predict_proba(X)
    assert probabilities.shape == (3, 3) and np.isfinite(probabilities).all()


def test_constant_columns_do_no_harm(refitted):
    X, y = make_data()
    X[:, 3] = 5.0
    X = shape_for(refitted, X)
    probabilities = make_quick(refitted).fit(X, y).predict_proba(X)
    assert np.isfinite(probabilities).all()
    assert (probabilities.argmax(1) == y).mean() > 0.9


@pytest.mark.parametrize("kind", [kind for kind, head in sorted(HEADS.items()) if not issubclass(head, KerasHead)])
def test_more_columns_than_rows_and_classes_that_a_fold_lacks(kind):
    """Two rows of one class: a fold can hold both."""
    X, y = make_data(count=60, width=80)
    y[y == 2] = 0
    y[:2] = 2
    groups = np.where(y == 2, 99, np.arange(60) // 2)
    fitted = make_quick(kind).fit(X, y, groups=groups)
    assert np.isfinite(fitted.predict_proba(X)).all() and (fitted.predict(X) == y).mean() > 0.9


def test_heads_refuse_features_of_another_shape(kind):
    X, y = make_data()
    wrong = X if HEADS[kind].input_kind == "map" else X.reshape(len(X), 2, 3, 2)
    with pytest.raises(ValueError, match=r"takes maps \(n, height, width, channels\)|expected <= 2|dim 4"):
        make_quick(kind).fit(wrong, y)


def test_probabilities_of_held_out_rows_are_calibrated(refitted):
    """Classes that overlap: of predictions with probability 0.8 about 80 of 100 are correct."""
    X, y = make_data(classes=2, count=600)
    X = shape_for(refitted, X)
    y = np.where(np.random.default_rng(2).random(600) < 0.2, 1 - y, y)
    fitted = make_quick(refitted).fit(X[:300], y[:300])
    confidence = fitted.predict_proba(X[300:]).max(axis=1)
    correct = fitted.predict(X[300:]) == y[300:]
    assert abs(confidence.mean() - correct.mean()) < 0.1


def test_unknown_kind_names_the_nearest():
    with pytest.raises(RecipeError, match=r"Unknown head 'liner'. Did you mean 'linear'\?"):
        make_head("liner")


def test_deep_head_stops_early():
    X, y = make_data()
    random = np.random.default_rng(0).permutation(y)  # nothing to learn
    head = MLPHead(fitting=FitConfig(epochs=50, patience=2)).fit(X, random)
    chosen = head.summarize().chosen
    assert chosen["epochs"] < 50
    assert chosen["epochs"] == chosen["best_epoch"] + 2


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        ("none", None),
        pytest.param("batch", "BatchNormalization", marks=pytest.mark.slow),
        ("layer", "LayerNormalization"),
    ],
)
def test_deep_head_has_the_layers_of_its_options(norm, layer):
    X, y = make_data()
    head = MLPHead(widths=(8, 4), dropout=0.2, norm=norm, fitting=FitConfig(epochs=1)).fit(X, y)
    kinds = [type(layer).__name__ for layer in head.to_layers()]
    block = ["Dense", *([layer] if layer else []), "Activation", "Dropout"]
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
    assert head.scores_[head.strength_] == min(head.scores_.values())
    assert len(head.scores_) >= 3


def test_groups_stay_on_one_split_of_a_fold():
    """Twenty identical rows per group: folds across groups would make weak regularisation look right."""
    random = np.random.default_rng(0)
    X = np.repeat(random.normal(size=(30, 40)), 20, axis=0)
    y = np.repeat(np.arange(30) % 2, 20)
    groups = np.repeat(np.arange(30), 20)
    assert LinearHead().fit(X, y, groups=groups).strength_ < LinearHead().fit(X, y).strength_


def test_weights():
    y = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(compute_sample_weights(y, None, None), [1, 1, 1, 1])
    np.testing.assert_allclose(compute_sample_weights(y, np.array([1, 2, 0, 4]), "balanced"), [7 / 6, 7 / 3, 0, 3.5])
    for bad in ([1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, np.nan]):
        with pytest.raises(ValueError, match="negative, not finite, or all zero"):
            compute_sample_weights(y, np.array(bad, float), None)
    with pytest.raises(ValueError, match="not one value per row"):
        compute_sample_weights(y, np.ones(3), None)


@pytest.mark.slow
def test_a_residual_block_adds_its_input():
    X, y = make_data()
    head = MLPHead(widths=(12, 5), residual=True, norm="layer", fitting=FitConfig(epochs=1)).fit(X, y)
    _, first, second, *_ = head.to_layers()
    block = dict.fromkeys(layer.name for layer in first.layers)
    assert "head_around_1" not in block and "head_around_2" in {layer.name for layer in second.layers}
    rows = keras.ops.convert_to_tensor(X[:4])
    inside = rows
    for name in ("head_dense_1", "head_norm_1", "head_relu_1"):
        inside = first.get_layer(name)(inside)
    np.testing.assert_allclose(first(rows), rows + inside, rtol=1e-5)


SKILLED = [kind for kind, head in sorted(HEADS.items()) if not issubclass(head, KerasHead)]


@pytest.mark.parametrize(
    "kind", [kind if kind == "ridge" else pytest.param(kind, marks=pytest.mark.slow) for kind in SKILLED]
)
def test_heads_are_scikit_learn_estimators(kind):
    folds = "scores are calibrated on held-out folds, into which a row of weight 2 falls once and two rows fall apart"
    calibrated = issubclass(HEADS[kind], VectorHead) and kind != "linear"
    expected = {"check_sample_weight_equivalence_on_dense_data": folds} if calibrated else {}
    head = make_head(kind, **({"C": 1.0} if kind in ("linear", "svm") else {}))
    check_estimator(head, expected_failed_checks=expected)


@pytest.mark.parametrize("kind", SKILLED)
def test_a_weight_of_two_is_a_row_twice(kind):
    """With validation rows instead of folds, and with a given strength, as the chosen one depends on the count.

    Nearly: of how many rows a mean is known, two rows say more than one of weight two.
    """
    (X, y), weights = make_data(), np.arange(240) % 3 + 1
    held = make_data(seed=1)
    options = {
        "linear": {"C": 1.0},
        "svm": {"C": 1.0},
        "lda": {"shrinkage": 0.5},
        "kernel": {"gamma": 0.1},
    }.get(kind, {})
    validation = (*held, np.ones(240))
    weighed = make_head(kind, **options).fit(X, y, weights.astype(float), validation=validation)
    repeated = make_head(kind, **options).fit(X.repeat(weights, axis=0), y.repeat(weights), validation=validation)
    np.testing.assert_allclose(weighed.predict_proba(held[0]), repeated.predict_proba(held[0]), atol=1e-3)


RUNS = {
    "kernel": {"kind": "kernel", "kernel": "laplacian", "solver": "logistic"},
    "attention": pytest.param({"kind": "attention", "queries": 2}, marks=pytest.mark.slow),
    "svm": pytest.param({"kind": "svm"}, marks=pytest.mark.slow),
    "cosine": pytest.param({"kind": "cosine"}, marks=pytest.mark.slow),
    "recurrent": pytest.param({"kind": "recurrent", "units": 8, "projection": 4}, marks=pytest.mark.slow),
    "transformer": pytest.param({"kind": "transformer", "width": 8, "blocks": 1}, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("head", RUNS.values(), ids=RUNS)
def test_a_head_is_trained_and_exported(head, workplace):
    result = tlkeras.evaluate(
        tlkeras.train("mine.yaml", set={"head": head, "training.epochs": 20, "training.learning_rate": 0.03})
    )
    assert result.metrics["accuracy"].value > 0.9
    predictions = tlkeras.predict(result.path, ["photos/day"]).predictions
    assert sum(image.label == "day" for image in predictions) >= 0.9 * len(predictions)
    assert tlkeras.export(result.path, workplace / "models").difference < 1e-3


def test_options_of_another_kind_are_refused(workplace):
    with pytest.raises(RecipeError, match="for the kernels rbf and laplacian only. Received: 'chi2'"):
        tlkeras.check("mine.yaml", {"head": {"kind": "kernel", "kernel": "chi2", "approximation": "fourier"}})
    with pytest.raises(RecipeError, match="unknown key 'head.alpha'"):
        tlkeras.check("mine.yaml", {"head": {"kind": "svm", "alpha": 1}})
    with pytest.raises(RecipeError, match="head.shrinkage: take 'auto' or a number from 0 to 1. Received: 2"):
        tlkeras.check("mine.yaml", {"head": {"kind": "lda", "shrinkage": 2}})
    with pytest.raises(RecipeError, match="head.kind lda does not support several labels"):
        tlkeras.check("mine.yaml", {"head": {"kind": "lda"}, "data.separator": "|"})
