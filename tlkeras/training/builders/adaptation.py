"""From a recipe to its source and target domains, and the head that leads from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from tlkeras.adaptation.adversarial import AdaptationOptions
from tlkeras.adaptation.domain_head import ADAPTATIONS, DomainAdaptedHead
from tlkeras.config.recipe import Recipe
from tlkeras.data.tables import TARGET, Dataset
from tlkeras.errors import DataError, list_some, suggest
from tlkeras.heads.heads import Head


def keep_domains(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The images of the recipe's domains; all where it has none.

    DataError if there are no images of a domain, or one is both source and target.
    """
    adaptation = recipe.domain_adaptation
    if adaptation is None:
        return dataset
    known = sorted({str(name) for name in dataset.domains} - {""})
    problems = [
        f"there are no images of the domain {name!r}; {', '.join(list_some(known)) or 'data.domain names no column'}."
        f" {suggest(name, known)}"
        for name in (*adaptation.source, *adaptation.target)
        if name not in known
    ]
    problems += [f"{name!r} is both source and target" for name in sorted({*adaptation.source} & {*adaptation.target})]
    if problems:
        raise DataError.from_problems("Domains are values of data.domain:", problems)
    return dataset.take(np.isin(dataset.domains.astype(str), [*adaptation.source, *adaptation.target]))


def is_target(recipe: Recipe, dataset: Dataset) -> np.ndarray:
    """Mask of the images of the target domain, bool (n,)."""
    targets = [] if recipe.domain_adaptation is None else [*recipe.domain_adaptation.target]
    return np.isin(dataset.domains.astype(str), targets)


def split_domains(recipe: Recipe, dataset: Dataset, splits: np.ndarray) -> np.ndarray:
    """Split of each image across domains, str (n,); without a section `domain_adaptation` they stay as they are.

    Target images of the test split are measured if they have a label. All others are `TARGET`: learned from without
    it. Source images validate or train: nothing is measured on them.
    """
    if recipe.domain_adaptation is None:
        return splits
    target = is_target(recipe, dataset)
    labelled = np.any([task.is_labelled(dataset.targets[task.name]) for task in dataset.tasks], axis=0)
    of_source = np.where(splits == "validation", "validation", "train")
    of_target = np.where((splits == "test") & labelled, "test", TARGET)
    return np.where(target, of_target, of_source).astype(object)


def evaluated_splits(recipe: Recipe, dataset: Dataset) -> list[str]:
    """The splits whose predictions are stored: test only across domains, whose validation images are of the source."""
    splits = ("test",) if recipe.domain_adaptation is not None else ("test", "validation")
    return [split for split in splits if len(dataset.rows(split))]


def adapt_heads(
    recipe: Recipe, make: Callable[[], Head], *, on_parts: bool = False
) -> Callable[[], Head | DomainAdaptedHead]:
    """A function that makes the unfitted head, across domains where the recipe has them.

    Args:
        on_parts: Whether it is for parts of the features, each fitted several times: methods that take epochs are
            replaced by `coral`, and how common classes are is not corrected.
    """
    adaptation = recipe.domain_adaptation
    if adaptation is None:
        return make
    if on_parts:
        method = "coral" if adaptation.method in ADAPTATIONS else adaptation.method
        return lambda: DomainAdaptedHead(method, make, adaptation.components, scored=False)
    training = recipe.training.model_dump(include={"epochs", "batch_size", "learning_rate", "seed"})
    class_weight: Literal["balanced"] | None = "balanced" if recipe.head.class_weight == "balanced" else None
    options = AdaptationOptions(weight=adaptation.weight, class_weight=class_weight, **training)
    return lambda: DomainAdaptedHead(adaptation.method, make, adaptation.components, adaptation.correction, options)


def adapts_domains(recipe: Recipe) -> bool:
    """Whether a recipe learns on one domain and predicts on another."""
    return recipe.domain_adaptation is not None
