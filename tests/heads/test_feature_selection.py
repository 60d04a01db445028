"""Selection: scores against independent computations, columns found, nothing leaked, one exported model."""

import keras
import numpy as np
import pytest
from scipy.optimize import minimize

import tlkeras
from tlkeras.heads.feature_selection import FeatureSelectingHead, fit_group_lasso, score_columns, shrink_rows
from tlkeras.heads.folds import cross_val_predict
from tlkeras.heads.heads import attach_heads, make_head
from tlkeras.heads.link_functions import infer_link

METHODS = ("head2toe", "f_classif", "l2")


def make_data(count=200, width=40, seed=0):
    """Columns 3 and 7 separate the classes, the others are noise."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % 2
    X = random.normal(size=(count, width))
    X[:, [3, 7]] += 1.5 * (2 * y[:, None] - 1)
    return X, y


def test_rows_are_shortened_by_hand():
    """(3, 4) has length 5: shortened by 1 it is (2.4, 3.2); (0.3, 0.4) goes to zero."""
    np.testing.assert_allclose(shrink_rows(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0), [[2.4, 3.2], [0, 0]])


def test_group_lasso_is_the_minimum_that_another_method_finds():
    X, y = make_data(60, 8)
    X = X[:, [2, 3, 4, 7]]
    X = (X - X.mean(0)) / X.std(0)
    targets = np.eye(2)[y]
    kernel, bias = fit_group_lasso(X, targets, np.ones(60), penalty=0.05)

    def lose(flat):
        W, b = flat[:8].reshape(4, 2), flat[8:]
        logits = X @ W + b
        losses = np.logaddexp(*logits.T) - logits[np.arange(60), y]
        return losses.mean() + 0.05 * np.sqrt(np.sum(W**2, axis=1) + 1e-14).sum()

    best = min(
        minimize(lose, start, method="Nelder-Mead", options={"maxiter": 40_000, "maxfev": 40_000}).fun
        for start in (np.zeros(10), np.r_[kernel.ravel(), bias])
    )
    assert lose(np.r_[kernel.ravel(), bias]) <= best + 1e-5
    assert (np.linalg.norm(kernel, axis=1) == 0).any()  # a column of noise is out


@pytest.mark.parametrize("method", METHODS)
def test_columns_that_separate_classes_score_highest(method):
    X, y = make_data()
    scores = score_columns(infer_link(y), X, y, np.ones(len(y)), method)
    assert set(np.argsort(-scores)[:2]) == {3, 7}
    labels = np.stack([y, 1 - y], axis=1)
    scores = score_columns(infer_link(labels), X, labels, np.ones(len(y)), method)
    assert set(np.argsort(-scores)[:2]) == {3, 7}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "ridge", "kernel"])
def test_a_selecting_head_exports(method, kind, tmp_path):
    X, y = make_data()
    head = FeatureSelectingHead(make_head(kind), method, keep=0.05).fit(X, y)
    assert head.chosen_.tolist() == [3, 7] and head.summarize().chosen["columns"] == 2
    entry = keras.Input((40,))
    model = attach_heads(keras.Model(entry, keras.layers.Identity()(entry)), head, "joined")
    np.testing.assert_allclose(model(X.astype("float32")), head.predict_proba(X), atol=5e-4)


def test_selection_sees_no_held_out_row():
    """Among thousands of columns of noise some fit any labels: selected inside the folds, they predict nothing."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 3000)), np.arange(60) % 2

    def make():
        return FeatureSelectingHead(make_head("ridge"), "f_classif", keep=0.005)

    predictions = cross_val_predict(make, X, y)
    assert (predictions.argmax(axis=1) == y).mean() < 0.7
    confidence = make().fit(X, y).predict_proba(X).max(axis=1)
    assert confidence.mean() < 0.95  # and the strength was chosen without them as well


@pytest.mark.slow
@pytest.mark.parametrize("method", ["f_classif", "head2toe"])
def test_a_run_selects_and_exports(workplace, method):
    selection = {"method": method, "keep": 0.5}
    result = tlkeras.evaluate(
        tlkeras.train("mine.yaml", set={"features": {"taps": [0, -1], "selection": selection}, "head.C": 1.0})
    )
    assert result.head["selection"] == method and result.metrics["accuracy"].value > 0.9
    assert tlkeras.export(result.path, workplace / "models").difference < 1e-3
