"""Parameters and scores of heads as scikit-learn's tools reach them."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV

from tlkeras.config.schema.heads import FitConfig
from tlkeras.heads.deep import MLPHead
from tlkeras.heads.heads import make_head

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def test_the_options_of_kernels_are_parameters():
    grid = {"gamma": [100.0, 0.3], "kernel": ["rbf", "laplacian"], "solver": ["ridge"], "components": [40]}
    search = GridSearchCV(make_head("kernel"), grid, cv=2).fit(X, Y)
    assert search.best_params_["gamma"] == 0.3 and search.best_estimator_.gamma_ == 0.3
    assert search.best_score_ > 0.9


def test_the_options_of_a_fit_are_parameters_and_heads_do_not_share_them():
    one, other = MLPHead(), MLPHead()
    assert one.get_params()["fitting__learning_rate"] == 1e-3
    assert "fitting__learning_rate" not in one.get_params(deep=False)
    one.set_params(fitting__learning_rate=np.float64(0.1), fitting__epochs=np.int64(3), dropout=0.1)
    assert (one.fitting.learning_rate, one.fitting.epochs, one.dropout) == (0.1, 3, 0.1)
    assert other.fitting == FitConfig() and clone(one).fitting == one.fitting
    with pytest.raises(ValueError, match=r"learning_rate"):
        one.set_params(fitting__learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"learnig_rate"):
        one.set_params(fitting__learnig_rate=0.1)
    with pytest.raises(ValueError, match=r"Invalid parameter 'dropuot'"):
        one.set_params(dropuot=0.1)


@pytest.mark.slow
def test_a_grid_over_learning_rates():
    search = GridSearchCV(MLPHead((8,), fitting=FitConfig(epochs=8)), {"fitting__learning_rate": [1e-8, 0.05]}, cv=2)
    assert search.fit(X, Y).best_params_ == {"fitting__learning_rate": 0.05}


def test_decision_functions_of_heads_that_keras_trains():
    """They are logits: the probabilities follow, and the scorers of scikit-learn use them."""
    for count in (2, 3):
        rows = count > Y
        head = MLPHead((4,), fitting=FitConfig(epochs=2)).fit(X[rows], Y[rows])
        logits, p = head.decision_function(X[rows]), head.predict_proba(X[rows])
        assert logits.shape == ((100,) if count == 2 else (150, 3))
        if count == 2:
            np.testing.assert_allclose(1 / (1 + np.exp(-logits)), p[:, 1], atol=1e-5)
            assert get_scorer("roc_auc")(head, X[rows], Y[rows]) >= 0
        else:
            exponentials = np.exp(logits)
            np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), p, atol=1e-5)
