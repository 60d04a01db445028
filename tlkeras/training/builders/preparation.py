"""From a recipe to its devices and its experiment: everything that can fail before work starts."""

import logging
import os
from collections.abc import Mapping

import tensorflow as tf

from tlkeras.config.recipe import Recipe, fingerprint
from tlkeras.data.depth import describe_depth
from tlkeras.data.inspection import validate_images
from tlkeras.data.splits import classes_missing_from_test
from tlkeras.data.tables import Dataset
from tlkeras.errors import RecipeError, TlkerasError
from tlkeras.features.extraction import FeatureExtractor
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy, make_mirrored, make_multi_worker
from tlkeras.finetuning.rendezvous import TIMEOUT_SECONDS, read_cluster, rendezvous
from tlkeras.runs.directory import describe_environment
from tlkeras.training.builders.data import check_recipe_data_service, read_dataset, split_dataset
from tlkeras.training.builders.experiment import Experiment, check_schedule, collecting, plan_finetuning
from tlkeras.training.builders.features import build_feature_extractor

logger = logging.getLogger(__name__)

_VERSIONS = ("tlkeras", "tensorflow", "keras", "numpy")


def make_strategy(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Strategy:
    """The devices of a training; of several processes each waits here until all are there.

    It must come before anything is computed: TensorFlow allows a cluster only then. TlkerasError if TF_CONFIG is
    missing or invalid; RunError if a process did not connect, or has another recipe or other versions.
    """
    name = recipe.training.strategy
    if recipe.finetuning is None or name == "none":
        return ONE_DEVICE
    accumulates = recipe.finetuning.gradient_accumulation_steps > 1
    if name == "auto":
        several = len(tf.config.list_physical_devices("GPU")) > 1 and not accumulates
        return make_mirrored() if several else ONE_DEVICE
    if accumulates:
        raise RecipeError(
            "Several devices cannot accumulate gradients.",
            f"training.strategy {name} with finetuning.gradient_accumulation_steps above 1",
            "Set it to 1: several devices take larger batches.",
        )
    if name == "mirrored":
        return make_mirrored()
    cluster = read_cluster(environment)
    versions = describe_environment()["versions"]
    facts = {"recipe": fingerprint(recipe), **{name: versions.get(name) for name in _VERSIONS}}
    rendezvous(cluster, facts, float(environment.get("TLKERAS_WAIT", TIMEOUT_SECONDS)))
    return make_multi_worker(len(cluster), cluster.index)


def prepare(recipe: Recipe) -> Experiment:
    """The experiment of a recipe, its image files not read yet and its fine-tuning not planned.

    A TlkerasError tells all that is wrong with the source, the splits, the backbone or the stages at once.
    """
    problems: list[TlkerasError] = []
    dataset: Dataset | None = None
    with collecting(problems):
        dataset = split_dataset(recipe, read_dataset(recipe))
    with collecting(problems):
        extractor = build_feature_extractor(recipe)
        check_schedule(recipe, extractor)
        if dataset is not None:
            check_recipe_data_service(recipe, dataset)
    if len(problems) > 1:
        raise type(problems[0]).from_problems("Several problems were found:", [str(error) for error in problems])
    if problems or dataset is None:
        raise problems[0]
    for note in (*dataset.notes, *classes_missing_from_test(dataset)):
        logger.warning("%s", note)
    return Experiment(recipe, dataset, extractor)


def validate(experiment: Experiment) -> Experiment:
    """The experiment on those of its images whose files can be read, planned as in `plan`."""
    planned = plan(experiment.recipe, validate_images(experiment.dataset), experiment.extractor)
    if told := describe_depth(planned.dataset):
        logger.warning("%s", told)
    return planned


def plan(recipe: Recipe, dataset: Dataset, extractor: FeatureExtractor) -> Experiment:
    """The experiment of a recipe on validated images, which are split here; its fine-tuning is planned here, once.

    DataError if a class has nothing to learn from, or there is nothing to measure on; RecipeError if the stages do not
    suit the data.
    """
    divided = split_dataset(recipe, dataset)
    return Experiment(recipe, divided, extractor, plan_finetuning(recipe, extractor, divided))
