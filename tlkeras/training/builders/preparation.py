"""From a recipe to an experiment: everything that can fail before work starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tlkeras.config.recipe import Recipe
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import TlkerasError
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.training.builders.data import check_recipe_data_service, read_dataset, split_dataset
from tlkeras.training.builders.experiment import Experiment
from tlkeras.training.builders.features import build_feature_extractor
from tlkeras.training.builders.schedule import check_schedule, plan_finetuning


def prepare(recipe: Recipe) -> Experiment:
    """The experiment of a recipe, its image files not read yet and its fine-tuning not planned.

    Raises:
        TlkerasError: What is wrong with the source, the splits, the backbone or the stages, all of it at once.
    """
    problems: list[TlkerasError] = []
    dataset: Dataset | None = None
    with _collect(problems):
        dataset = split_dataset(recipe, read_dataset(recipe))
    with _collect(problems):
        extractor = build_feature_extractor(recipe)
        check_schedule(recipe, extractor)
        if dataset is not None:
            check_recipe_data_service(recipe, dataset)
    if len(problems) > 1:
        raise type(problems[0]).from_problems("Several problems were found:", [str(error) for error in problems])
    if problems or dataset is None:
        raise problems[0]
    return Experiment(recipe, dataset, extractor)


def validate(experiment: Experiment) -> Experiment:
    """The experiment on those of its images whose files can be read, split again, and planned.

    Raises:
        DataError: A class has lost all its images.
        RecipeError: The stages do not suit the data.
    """
    return plan(experiment.recipe, validate_images(experiment.dataset), experiment.extractor)


def plan(recipe: Recipe, dataset: Dataset, extractor: FeatureExtractor) -> Experiment:
    """The experiment of a recipe on validated images, which are split here; its fine-tuning is planned here, once.

    Raises:
        DataError: A class has nothing to learn from, or there is nothing to measure on.
        RecipeError: The stages do not suit the data.
    """
    divided = split_dataset(recipe, dataset)
    return Experiment(recipe, divided, extractor, plan_finetuning(recipe, extractor, divided))


@contextlib.contextmanager
def _collect(problems: list[TlkerasError]) -> Iterator[None]:
    try:
        yield
    except TlkerasError as error:
        problems.append(error)
