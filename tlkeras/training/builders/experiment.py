"""A recipe with all that it is carried out on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.data.tables import Dataset
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.training.builders.schedule import FineTuningPlan, require_finetuning


@dataclass(frozen=True)
class Experiment:
    """A recipe, its images, its frozen network and its fine-tuning: what every step of a run works on.

    Attributes:
        recipe: What is to be done.
        dataset: The images, with the split of each.
        extractor: The frozen network, weights loaded.
        plan: How the backbone is fine-tuned; None where it stays frozen, and before the images are validated.
    """

    recipe: Recipe
    dataset: Dataset
    extractor: FeatureExtractor
    plan: FineTuningPlan | None = None

    def take(self, rows: np.ndarray) -> Experiment:
        """The experiment on some of its images: positions int64 [n], in that order, or a mask bool [n]."""
        return replace(self, dataset=self.dataset.take(rows))


def require_plan(experiment: Experiment) -> FineTuningPlan:
    """The plan of an experiment that fine-tunes.

    Raises:
        RecipeError: The recipe has no section `finetuning`.
    """
    if experiment.plan is None:
        require_finetuning(experiment.recipe)
        raise ValueError("The experiment was not planned.")
    return experiment.plan
