"""A recipe's space in KerasTuner's own tuners."""

import keras_tuner
import pytest

from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RecipeError
from tlkeras.tuning.objective import RecipeHyperModel

TUNED = """
tuning:
  space:
    head.C: [1.0e-6, 1.0]
"""


@pytest.mark.slow
def test_any_tuner_searches_a_recipe(workplace):
    (workplace / "tuned.yaml").write_text(
        (workplace / "mine.yaml").read_text().replace("test: 0.25,", "test: 0.25, validation: 0.25,") + TUNED
    )
    objective = keras_tuner.Objective("val_loss", "min")
    tuner = keras_tuner.GridSearch(RecipeHyperModel("tuned.yaml"), objective, directory="kt", project_name="photos")
    tuner.search(verbose=0)
    trials = tuner.oracle.get_best_trials(5)
    assert [trial.hyperparameters.values["head.C"] for trial in trials] == [1.0, 1e-6]  # bright and dark are easy
    assert {"val_loss", "val_accuracy", "val_roc_auc", "seconds"} <= set(trials[0].metrics.metrics)
    recipe = tuner.hypermodel.make_recipe(tuner.get_best_hyperparameters()[0])
    assert recipe.head.C == 1.0 and recipe.tuning is None


def test_a_recipe_without_a_space_is_refused(workplace):
    with pytest.raises(RecipeError, match="has no section `tuning`"):
        RecipeHyperModel(load_recipe("mine.yaml"))
