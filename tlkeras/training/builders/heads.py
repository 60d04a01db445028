"""From a recipe to its heads, fitted on features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tlkeras.adaptation.adversarial import AdaptationOptions
from tlkeras.adaptation.domain_head import ADAPTATIONS, DomainAdaptedHead
from tlkeras.config.recipe import Recipe
from tlkeras.data.tables import TARGET, Dataset
from tlkeras.data.tasks import Task
from tlkeras.features.extraction import average_positions
from tlkeras.heads.base import LabelledRows
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.feature_selection import FeatureSelectingHead
from tlkeras.heads.heads import HEADS, Head, make_head
from tlkeras.heads.linear import LinearHead, RidgeRegressionHead


def make_recipe_head(recipe: Recipe) -> Head:
    """The unfitted head, behind the selection of features if there is one."""
    options, selection, seed = recipe.head.model_dump(), recipe.features.selection, recipe.training.seed
    options["class_weight"] = _choose_class_weight(recipe)
    trained = issubclass(HEADS[recipe.head.kind], KerasHead)
    head = make_head(**options, fitting=recipe.training) if trained else make_head(**options, seed=seed)
    return head if selection is None else FeatureSelectingHead(head, **selection.model_dump(), seed=seed)


def make_linear_head(recipe: Recipe, C: float | None) -> LinearHead:
    """An unfitted linear head with the recipe's class weights and inverse strength of regularization, else 0.01."""
    return LinearHead(C=C or 0.01, class_weight=_choose_class_weight(recipe))


def _choose_class_weight(recipe: Recipe) -> Literal["balanced"] | None:
    return "balanced" if recipe.head.class_weight == "balanced" else None


def adapt_heads(
    recipe: Recipe, make: Callable[[], Head], *, on_parts: bool = False
) -> Callable[[], Head | DomainAdaptedHead]:
    """A function that makes the unfitted head, across domains where the recipe has them.

    On parts of the features, each fitted several times, `coral` replaces methods that take epochs, and how common
    classes are is not corrected.
    """
    adaptation = recipe.domain_adaptation
    if adaptation is None:
        return make
    if on_parts:
        method = "coral" if adaptation.method in ADAPTATIONS else adaptation.method
        return lambda: DomainAdaptedHead(method, make, adaptation.components, scored=False)
    training = recipe.training.model_dump(include={"epochs", "batch_size", "learning_rate", "seed"})
    options = AdaptationOptions(weight=adaptation.weight, class_weight=_choose_class_weight(recipe), **training)
    return lambda: DomainAdaptedHead(adaptation.method, make, adaptation.components, adaptation.correction, options)


def adapts_domains(recipe: Recipe) -> bool:
    """Whether a recipe learns on one domain and predicts on another."""
    return recipe.domain_adaptation is not None


def training_seed(recipe: Recipe) -> int:
    """The seed of all that is drawn while heads and networks are trained."""
    return recipe.training.seed


@dataclass(frozen=True)
class SplitFeatures:
    """The features of one split."""

    rows: np.ndarray  # positions in the dataset, int64 [n]; those of several views of an image are equal
    X: np.ndarray  # features, float [n, d], or maps [n, h, w, c]

    def as_vectors(self) -> SplitFeatures:
        """The split with maps averaged over their positions."""
        return SplitFeatures(self.rows, average_positions(self.X))

    def take(self, dataset: Dataset, task: Task) -> tuple[np.ndarray, LabelledRows]:
        """Positions of the images whose target is known, and their features, targets and weights."""
        known = task.is_labelled(dataset.targets[task.name][self.rows])
        rows = self.rows[known]
        X = self.X if known.all() else self.X[known]
        return rows, (X, dataset.targets[task.name][rows], dataset.weights[rows])


def fit_heads(make: Callable[[], Any], dataset: Dataset, parts: Mapping[str, SplitFeatures]) -> dict[str, Head]:
    """A fitted head per task: on frozen features nothing is shared, so that each is fitted alone."""
    return {
        task.name: _fit(make() if task.has_classes else RidgeRegressionHead(), dataset, task, parts)
        for task in dataset.tasks
    }


def _fit(head: Any, dataset: Dataset, task: Task, parts: Mapping[str, SplitFeatures]) -> Head:
    rows, train = parts["train"].take(dataset, task)
    held = None
    if "validation" in parts:
        held_rows, held = parts["validation"].take(dataset, task)
        held_groups = find_groups(dataset, held_rows)
        held = held if held_groups is None else (*held, held_groups)
    target = parts.get(TARGET)
    return head.fit(
        *train,
        validation=held if held is not None and len(held[0]) else None,
        groups=find_groups(dataset, rows),
        **({"target": target.X} if target is not None and len(target.rows) else {}),
    )


def find_groups(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Group of each row: the source's, else the image that it is a view of; None where every row stands alone."""
    groups = dataset.groups[rows]
    if (groups != "").any():
        return groups
    return rows if len(np.unique(rows)) < len(rows) else None
