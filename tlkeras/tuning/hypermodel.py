"""A recipe's search space for programs that use KerasTuner themselves."""

from typing import Any

import keras
import keras_tuner

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.trials import apply_values
from tlkeras.tuning.objective import TrialRunner
from tlkeras.tuning.oracles import name_figures
from tlkeras.tuning.space import check_space, declare, read_values


class RecipeHyperModel(keras_tuner.HyperModel):
    """Trials of a recipe for any tuner of KerasTuner, which share frozen features that are computed once.

    A trial is measured on the validation split and gives `val_loss`, `val_accuracy`, `val_roc_auc` and `seconds`; the
    test split is neither read nor measured. `fit` trains the whole trial: heads that Keras does not train, and stages
    of fine-tuning, are more than the one model that `build` could return. So the tuner keeps no models; train the best
    recipe instead. Errors of the space as `check_space`. docs/tuning.md has an example.
    """

    def __init__(self, recipe: Recipe | str):
        super().__init__()
        self.recipe = load_recipe(recipe)
        self._tuning = check_space(self.recipe)
        self._runner = TrialRunner()

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A model without weights, because KerasTuner needs one; the space is declared in `hp`."""
        declare(self._tuning, hp)
        return keras.Sequential([keras.Input((1,)), keras.layers.Identity()])

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **options: Any) -> dict[str, float]:
        """Loss, accuracy and ROC AUC on the validation split, and seconds; TlkerasError if the trial cannot be run."""
        return name_figures(self._runner.score(self.make_recipe(hp)))

    def make_recipe(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """The recipe of a trial, ready to train; RecipeError if the values do not go together."""
        return apply_values(self.recipe, read_values(self._tuning, hp.values))
