"""The second half of a run that fine-tunes: from fitted heads to a network trained stage by stage."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tlkeras.features.extraction import SOURCE_LOGITS
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import BatchSource, DataSplit
from tlkeras.finetuning.network import IMAGES, Network
from tlkeras.finetuning.trainer import HistoryRow, Trainer
from tlkeras.heads.heads import Head
from tlkeras.runs.directory import Run
from tlkeras.training import builders
from tlkeras.training.builders.experiment import Experiment, require_plan

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FineTuningResult:
    """A network that was fine-tuned."""

    model: keras.Model  # from images uint8 [n, h, w, 3] to probabilities, by task where there are several
    history: list[HistoryRow]  # a row per epoch
    best_epoch: int | None  # whose weights were kept, from 1; 0 for the start, None where nothing was measured
    facts: Mapping[str, Any]  # for the manifest: stages, views, parameters, devices, digest of the weights, reasons


def fine_tune(
    experiment: Experiment,
    run: Run,
    heads: Mapping[str, Head],
    strategy: Strategy = ONE_DEVICE,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> FineTuningResult:
    """The network after all stages of the plan, from the run's newest checkpoint if there is one.

    It starts from heads, by task, that were fitted on frozen features (LP-FT, Kumar et al., 2022).
    """
    network = builders.make_network(experiment, heads)
    with open_trainer(experiment, network, run.phase, strategy) as trainer:
        with run.phase("fine-tune"):
            listeners = [*builders.make_callbacks(experiment.recipe, run.path), *callbacks]
            history = trainer.run(Checkpoints(run.path / CHECKPOINTS), listeners)
        strategy.gather(trainer.network, network)
    plan = require_plan(experiment)
    trained = network.list_trainable(plan.schedule.stages)
    network.release()
    facts = {
        "stages": [stage.__dict__ for stage in plan.caching.stages],
        "views": plan.caching.views,
        "trained_parameters": sum(math.prod(variable.shape) for variable in trained),
        "baseline": trainer.baseline,
        "best_epoch": trainer.best_epoch,
        "precision": trainer.settings.precision,
        "workers": strategy.workers,
        "devices": strategy.devices,
        "weights": hashlib.sha256(b"".join(np.array(weight).tobytes() for weight in network.model.weights)).hexdigest(),
        "reasons": [list(decision) for decision in plan.decisions],
    }
    model = builders.add_test_time_views(experiment, network.model)
    return FineTuningResult(model, history, trainer.best_epoch, facts)


@contextmanager
def open_trainer(
    experiment: Experiment,
    network: Network,
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    strategy: Strategy = ONE_DEVICE,
) -> Iterator[Trainer]:
    """The trainer of a network from `make_network`, ready to run; activations that the cache lacks are computed.

    The experiment has its plan; `phase` measures the extraction.
    """
    with ExitStack() as stack:
        with phase("extract activations"):
            train = _open_split(experiment, stack, training=True)
            validated = len(experiment.dataset.rows("validation")) > 0
            held_out = _open_split(experiment, stack, training=False) if validated else None
        replicated = strategy.replicate(network)
        yield builders.make_trainer(experiment, replicated, (train, held_out), strategy)


def _open_split(experiment: Experiment, stack: ExitStack, *, training: bool) -> DataSplit:
    """The training images, those of a target domain too, or the validation images, read at each cut of the plan."""
    dataset, plan = experiment.dataset, require_plan(experiment).caching
    names = ("train", builders.TARGET) if training else ("validation",)
    part = experiment.take(np.concatenate([dataset.rows(name) for name in names]))
    sources: dict[str, BatchSource] = {IMAGES: builders.make_image_source(part, augmented=training)}
    taps = builders.list_kept(experiment) if training else plan.kept
    if taps:
        views = builders.training_views(experiment) if training else builders.PLAIN_VIEWS
        features = stack.enter_context(builders.extract_features(part, taps, views))
        of_tap = dict(zip(taps, zip(*features.views, strict=True), strict=True))
        recorded = of_tap.pop(SOURCE_LOGITS, None)
        for cut, of_views in of_tap.items():
            sources[cut] = builders.make_activation_source(part, of_views, recorded)
    factors = None if training else builders.find_class_factors(experiment)
    return builders.make_split(part, sources, training=training, class_factors=factors)
