"""Heads in whole runs: from a word of the recipe to a served model that answers alike."""

import pytest

import tlkeras
from tlkeras.errors import RecipeError

WAYS = {
    "kernel": {"kind": "kernel", "kernel": "laplacian", "solver": "logistic"},
    "attention": pytest.param({"kind": "attention", "queries": 2}, marks=pytest.mark.slow),
    "svm": pytest.param({"kind": "svm"}, marks=pytest.mark.slow),
    "cosine": pytest.param({"kind": "cosine"}, marks=pytest.mark.slow),
    "recurrent": pytest.param({"kind": "recurrent", "units": 8, "projection": 4}, marks=pytest.mark.slow),
    "transformer": pytest.param({"kind": "transformer", "width": 8, "blocks": 1}, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("mapping", WAYS.values(), ids=WAYS)
def test_a_head_is_trained_asked_and_exported(mapping, workplace):
    result = tlkeras.evaluate(
        tlkeras.train("mine.yaml", {"head": mapping, "training.epochs": 20, "training.learning_rate": 0.03})
    )
    assert result["metrics"]["accuracy"]["value"] > 0.9
    predictions = tlkeras.predict(result["path"], ["photos/day"])["predictions"]
    assert sum(row["label"] == "day" for row in predictions) >= 0.9 * len(predictions)
    assert tlkeras.export(result["path"], workplace / "models")["difference"] < 1e-3


def test_options_of_another_kind_are_refused(workplace):
    with pytest.raises(RecipeError, match="fourier knows the kernels rbf and laplacian. Received: 'chi2'"):
        tlkeras.check("mine.yaml", {"head": {"kind": "kernel", "kernel": "chi2", "approximation": "fourier"}})
    with pytest.raises(RecipeError, match="unknown key 'head.alpha'"):
        tlkeras.check("mine.yaml", {"head": {"kind": "svm", "alpha": 1}})
    with pytest.raises(RecipeError, match="head.shrinkage.*'auto' or a number from 0 to 1. Received: 2"):
        tlkeras.check("mine.yaml", {"head": {"kind": "lda", "shrinkage": 2}})
    with pytest.raises(RecipeError, match="head.kind lda tells classes apart and cannot answer for each label"):
        tlkeras.check("mine.yaml", {"head": {"kind": "lda"}, "data.separator": "|"})
