"""One run: from a recipe to a directory that holds all that later stages need; its images packed."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.config.frames import Frame
from tlkeras.config.recipe import Recipe, fingerprint, load_recipe, recipe_to_yaml
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.data.sources.tfrecords import PackResult, write_tfrecords
from tlkeras.data.splits import check_splits
from tlkeras.features.extraction import Activations
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import Strategy
from tlkeras.heads.heads import attach_heads
from tlkeras.lazy_tensorflow import take_import_seconds
from tlkeras.plotting.charts import plot_history
from tlkeras.runs.directory import RUNS, Run, create_run, find_resumable_run, record_failure
from tlkeras.runs.predictions import save_predictions, write_fusion, write_images, write_probes
from tlkeras.training import builders, frozen
from tlkeras.training.builders.experiment import Experiment
from tlkeras.training.finetune import CHECKPOINTS, FineTuningResult, fine_tune
from tlkeras.training.frozen import FittedHeads, TaskProbabilities
from tlkeras.training.image_data import resolve


def pack(
    recipe: str | Path | Recipe | Frame,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    shard_mb: int = 128,
) -> PackResult:
    """The images of a recipe or a source written to few large TFRecord files, with a manifest of them.

    A source is a folder of classes, a manifest, "tfds:NAME" or a packaged set; overrides are values by dotted key, and
    `shard_mb` is the approximate size of a file in megabytes.
    DataError if the folder `out` exists, or no image can be read; ResourceError if it cannot be written.
    """
    resolved, _ = load_recipe_or_source(recipe, overrides)
    return write_tfrecords(builders.read_source(resolved), out, shard_mb * 2**20)


def train(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    name: str | None = None,
    quick: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    runs: str | Path = RUNS,
) -> Run:
    """The finished run of a recipe on images, in a new directory.

    A TlkerasError tells what is in the way; what can be known before the first batch (unreadable source, unknown
    column, too few images, missing weights) is raised before the directory is made.

    Args:
        data: Images: what `load_data` takes or returns. Alone, it may be a recipe that names its images: the name of a
            shipped one, the path of a YAML file, or a `Recipe`.
        recipe: The recipe for the images, by default `linear_probe`.
        set: Values by dotted key in place of the recipe's, such as `{"data.seed": 1}`.
        name: What the run is named after, with a number; by default the recipe, or the images where they are given.
        quick: Shrink the run to seconds; its figures then mean nothing.
        callbacks: Called during fine-tuning as Keras' `fit` would call them; a head on frozen features has no epochs.
        runs: Folder of the run directories.
    """
    resolved = load_recipe(resolve(data, recipe, {**(set or {}), **({"name": name} if name else {})}), quick=quick)
    return _train(resolved, lambda: create_run(Path(runs), resolved.name), callbacks)


def resume(
    run: str | Path | Run = "latest", *, callbacks: Sequence[keras.callbacks.Callback] = (), runs: str | Path = RUNS
) -> Run:
    """The finished run that went on, from its newest checkpoint, where an interrupted, killed or failed one stopped.

    On the same machine it ends with the same bits as a run that was never stopped. RunError if there is no such run, it
    has finished, or another process is writing it; a TlkerasError tells what else is in the way.
    """
    stopped = find_resumable_run(run, Path(runs))
    return _train(load_recipe(stopped.require("recipe.yaml")), lambda: stopped, callbacks)


def _train(recipe: Recipe, place: Callable[[], Run], callbacks: Sequence[keras.callbacks.Callback]) -> Run:
    """The finished run of a recipe, in the directory that `place` gives once nothing is in the way."""
    start = time.perf_counter()
    if callbacks:
        builders.check_takes_callbacks(recipe)
    strategy = builders.make_strategy(recipe)
    experiment = builders.prepare(recipe)
    # a worker writes into a folder that nobody keeps
    run = place() if strategy.is_chief else create_run(Path(tempfile.mkdtemp(prefix="tlkeras-worker-")), recipe.name)
    built = round(time.perf_counter() - start, 3)
    run.phases |= {"load libraries": round(take_import_seconds(), 3), "build backbone": built}
    with run.locked():
        if (run.path / "recipe.yaml").exists():
            run.resume()
        else:
            run.write_text("recipe.yaml", recipe_to_yaml(recipe))
        with record_failure(run):
            _run_training(experiment, run, strategy, callbacks)
    return run


def _run_training(
    experiment: Experiment, run: Run, strategy: Strategy, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    with run.phase("check images"):
        whole = builders.validate(experiment)
    with run.phase("extract features"):
        features = frozen.extract(whole)
    readable = whole.take(features.kept)  # files whose pixels turned out to be damaged have no features
    check_splits(readable.dataset)
    with features, run.phase("fit head"):
        fitted = frozen.fit(readable, features)
    tuned = fine_tune(readable, run, fitted.heads, strategy, callbacks) if whole.plan is not None else None
    if tuned is None:
        model = attach_heads(readable.extractor.pooled, fitted.heads, readable.recipe.name)
        model = builders.add_test_time_views(readable, model)
    else:
        model = tuned.model
    predictions = _predict(readable, run, model, fitted, tuned)
    with run.phase("write run"):
        write_images(run, whole.dataset, [*whole.dataset.rejected, *features.rejected])
        _write_model(run, readable, model, predictions)
        _write_fit(run, readable, features, fitted, tuned)
    if not strategy.is_chief:
        run.update_manifest(worker=strategy.worker)
    run.finish()
    Checkpoints(run.path / CHECKPOINTS).clear()


def _predict(
    experiment: Experiment, run: Run, model: keras.Model, fitted: FittedHeads, tuned: FineTuningResult | None
) -> dict[str, TaskProbabilities]:
    """Predictions of the evaluated splits: from the heads where these are all of the model, else from the model."""
    if tuned is None and not builders.averages_views(experiment.recipe):
        return fitted.predictions
    dataset = experiment.dataset
    with run.phase("measure"):
        return {
            split: builders.predict_images(experiment.recipe, dataset.take(dataset.rows(split)), model)[0]
            for split in fitted.predictions
        }


def _write_model(
    run: Run, experiment: Experiment, model: keras.Model, predictions: Mapping[str, TaskProbabilities]
) -> None:
    recipe, dataset = experiment.recipe, experiment.dataset
    with run.replacing("model.keras") as aside:
        model.save(aside)
    save_predictions(run, dataset, predictions)
    used = np.unique(dataset.split).tolist()
    names = ("train", "validation", "test", *(name for name in used if name == builders.TARGET))
    run.update_manifest(
        recipe=fingerprint(recipe),
        source=dataset.source,
        image=builders.preprocessing_config(recipe, dataset),
        examples={name: len(dataset.rows(name)) for name in names},
        parameters=model.count_params(),
        data=dict(dataset.facts),
    )


def _write_fit(
    run: Run, experiment: Experiment, features: Activations, fitted: FittedHeads, tuned: FineTuningResult | None
) -> None:
    """Write the history of the fit, what it is compared with, and what it chose."""
    tasks = experiment.dataset.tasks
    if fitted.probe is not None:
        write_probes(run, tasks, fitted.probe)
    if fitted.fused is not None:
        write_fusion(run, tasks, fitted.fused)
    first = next(iter(fitted.heads.values()))
    rows = [] if tuned is None else tuned.history
    history = {name: [row[name] for row in rows] for name in rows[0]} if rows else first.history()
    run.write_table("history.csv", list(history), zip(*history.values(), strict=True))
    heads = {name: head.summarize().to_dict() for name, head in fitted.heads.items()}
    counts = {"engine": features.engine, "computed": features.computed, "reused": features.reused}
    found = {**counts, "handcrafted": builders.list_handcrafted_kinds(experiment.recipe)}
    facts: dict[str, Any] = {"features": found, "head": next(iter(heads.values())), "heads": heads}
    if tuned is not None:
        with run.replacing("history.png") as aside:
            plot_history([{**row, "best": row["epoch"] == tuned.best_epoch} for row in tuned.history], aside)
        facts["finetuning"] = tuned.facts
    run.update_manifest(**facts)
