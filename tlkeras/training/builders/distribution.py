"""From a recipe to the devices that it trains on."""

from __future__ import annotations

import os
from collections.abc import Mapping

import tensorflow as tf

from tlkeras.config.recipe import Recipe, fingerprint
from tlkeras.errors import RecipeError
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy, make_mirrored, make_multi_worker
from tlkeras.finetuning.rendezvous import TIMEOUT_SECONDS, read_cluster, rendezvous
from tlkeras.runs.directory import describe_environment

_VERSIONS = ("tlkeras", "tensorflow", "keras", "numpy")


def make_strategy(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Strategy:
    """The devices of a training; of several processes each waits here until all are there.

    It must come before anything is computed: TensorFlow allows a cluster only then.

    Raises:
        TlkerasError: TF_CONFIG is missing or invalid.
        RunError: A process did not connect, or it has another recipe or other versions.
    """
    name = recipe.training.strategy
    accumulates = recipe.finetuning is not None and recipe.finetuning.gradient_accumulation_steps > 1
    if recipe.finetuning is None or name == "none":
        return ONE_DEVICE
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
