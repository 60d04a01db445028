"""Heads on rows with several labels, and the links that make them."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tlkeras.config.schema.heads import FEATURE_MAP_HEADS, SINGLE_LABEL_HEADS, FitConfig
from tlkeras.heads.deep import KerasHead, MLPHead
from tlkeras.heads.heads import HEADS, attach_heads, make_head
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.link_functions import SigmoidLink, SoftmaxLink, infer_link


def make_labelled(count=240, width=8, seed=0):
    """Three labels that depend on a column each, one of them rare."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(count, width)).astype("float32")
    y = (X[:, :3] + 0.3 * random.normal(size=(count, 3)) > [0, 0.5, 1.2]).astype(np.int8)
    return X * random.uniform(0.1, 50, width).astype("float32") + 7, y


def make_quick(kind):
    trained = issubclass(HEADS[kind], KerasHead)
    return make_head(kind, **({"fitting": FitConfig(epochs=20, batch_size=16, learning_rate=2e-2)} if trained else {}))


def shape_for(kind, X):
    return X if HEADS[kind].input_kind == "vector" else X.reshape(len(X), 2, 2, 2)


LABELLING = sorted(kind for kind, head in HEADS.items() if head.supports_multilabel)


@pytest.mark.parametrize(
    "kind",
    [kind if HEADS[kind].input_kind == "vector" else pytest.param(kind, marks=pytest.mark.slow) for kind in LABELLING],
)
def test_heads_fit_predict_and_export_labels(kind):
    X, y = make_labelled()
    X = shape_for(kind, X)
    fitted = make_quick(kind).fit(X[:180], y[:180], validation=(X[180:], y[180:], np.ones(60)))
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == y.shape and fitted.classes_.tolist() == [0, 1, 2]
    assert (fitted.predict(X) == y).mean() > (0.9 if HEADS[kind].input_kind == "vector" else 0.75)  # a made-up map
    np.testing.assert_array_equal(fitted.predict(X), probabilities >= 0.5)
    entry = keras.Input(X.shape[1:])
    model = attach_heads(keras.Model(entry, keras.layers.Identity()(entry)), fitted, "joined")
    np.testing.assert_allclose(model(X, training=False), probabilities, atol=1e-4)
    assert [layer.name for layer in model.layers[-2:]] == ["logits", "probabilities"]


def test_the_recipe_knows_which_heads_support_labels_and_which_take_maps():
    assert set(SINGLE_LABEL_HEADS) == set(HEADS) - set(LABELLING)
    assert set(FEATURE_MAP_HEADS) == {kind for kind, head in HEADS.items() if head.input_kind == "map"}


@pytest.mark.parametrize("kind", sorted(set(HEADS) - set(LABELLING)))
def test_other_heads_refuse_several_labels(kind):
    with pytest.raises(ValueError, match=f"A {kind} head separates classes: a row cannot have several labels"):
        make_quick(kind).fit(*make_labelled())


@pytest.mark.parametrize("kind", LABELLING)
def test_a_constant_label_is_refused(kind):
    X, y = make_labelled()
    y[:, 1] = 1
    with pytest.raises(ValueError, match=r"rows with and without each label. Received: all alike in \[1\]"):
        make_quick(kind).fit(shape_for(kind, X), y)


def test_each_label_is_a_logistic_regression_of_its_own(fit_scaler):
    X, y = make_labelled()
    head = LinearHead(C=0.3, class_weight="balanced").fit(X, y)
    scores = head.decision_function(X)
    Z = fit_scaler(X).transform(X)
    for label in range(3):
        weights = len(y) / 2 / np.bincount(y[:, label])[y[:, label]]
        # standardised alike but for the weights, which change what is penalised very little
        alone = LogisticRegression(C=0.3, tol=1e-6, max_iter=5000).fit(Z, y[:, label], sample_weight=weights)
        assert np.corrcoef(scores[:, label], alone.decision_function(Z))[0, 1] > 0.999


def test_plain_labels_are_what_scikit_learn_fits(fit_scaler):
    X, y = make_labelled()
    Z = fit_scaler(X).transform(X)
    scores = LinearHead(C=0.3).fit(X, y).decision_function(X)
    for label in range(3):
        alone = LogisticRegression(C=0.3, tol=1e-6, max_iter=5000).fit(Z, y[:, label])
        np.testing.assert_allclose(scores[:, label], alone.decision_function(Z), atol=5e-3)


def test_strength_is_chosen_over_all_labels():
    X, y = make_labelled()
    groups = np.arange(240) // 4
    for given in ({}, {"groups": groups}):
        head = LinearHead().fit(X, y, **given)
        assert head.scores_[head.strength_] == min(head.scores_.values()) and len(head.scores_) >= 3


def test_deep_head_has_no_class_weight_for_labels():
    with pytest.raises(ValueError, match="several labels has no weight of its class. Received: balanced"):
        MLPHead(class_weight="balanced").fit(*make_labelled())


def test_the_form_of_the_targets_chooses_the_link():
    for one in ([0, 1, 1], np.zeros((3, 1)), ["a", "b"]):
        assert isinstance(infer_link(one), SoftmaxLink)
    assert isinstance(infer_link(np.zeros((3, 2))), SigmoidLink)


def test_rows_are_held_out_by_their_rarest_label():
    codes = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]])
    # label 1 twice, label 0 for two more, none for two; label 2 is the rarest of a single row, which counts as none
    assert SigmoidLink().group_rows(codes).tolist() == [1, 1, 0, 0, 2, 2, 2]


def test_sigmoids_by_hand():
    logits = np.array([[0.0, np.log(3.0)]])
    np.testing.assert_allclose(SigmoidLink().probabilities(logits), [[0.5, 0.75]])
    np.testing.assert_allclose(SoftmaxLink().probabilities(logits), [[0.25, 0.75]])
