"""Jobs on many images: features and predictions, written down so that any worker can compute a part of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkeras.backbones.weights import fingerprint
from tlkeras.config.recipe import Recipe
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.data import decoding
from tlkeras.data.pipeline import count_cores
from tlkeras.data.sources.folders import iter_image_files
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.errors import RecipeError, RunError, TlkerasError, suggest
from tlkeras.features.engines import make_engine
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.jobs.job import Job, check_facts, open_job, plan_job
from tlkeras.inference.jobs.processes import run_processes
from tlkeras.inference.jobs.ray_engine import check_engine, run_ray
from tlkeras.inference.jobs.rows import feature_table, prediction_table
from tlkeras.inference.jobs.worker import ShardProcessor, process_shards
from tlkeras.inference.predict import expand_paths, load_model
from tlkeras.inference.predict_to_file import name_columns
from tlkeras.progress import progress_bar
from tlkeras.runs.directory import RUNS, Run, describe_environment, open_run
from tlkeras.runs.predictions import read_tasks
from tlkeras.training import builders

SHARD_SIZE = 10_000
_CORES = 8  # of a worker: beyond that a process' own work on batches and shards holds the cores up
_VERSIONS = ("tlkeras", "tensorflow", "keras", "openvino")


@dataclass(frozen=True)
class ExecutionOptions:
    """Who does a job.

    Attributes:
        engine: "local": processes of this machine; "ray": actors of a Ray cluster.
        workers: How many; None: one for every eight cores of this machine.
        shard_size: Images in a shard: what one worker does at a time, and what a death can cost.
        verify: Read all parts that are there and compare their checksums; damaged ones are done again.
    """

    engine: str = "local"
    workers: int | None = None
    shard_size: int = SHARD_SIZE
    verify: bool = False

    def count(self) -> int:
        """Return the number of workers."""
        return self.workers or max(1, count_cores() // _CORES)


def extract_features(
    recipe: str | Path | Recipe, out: str | Path, overrides: Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """The features of all images of a source, whatever their labels and splits, as Parquet files.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set. Of these the features
            of `linear_probe` are computed.
        out: The job's folder; one that holds the same job, unfinished, is resumed.
        overrides: Values by dotted key.
        options: Of `ExecutionOptions`.

    Returns:
        Counts and what failed, see `run_job`.

    Raises:
        TlkerasError: What is in the way.
    """
    resolved, _ = load_recipe_or_source(recipe, overrides)
    execution = ExecutionOptions(**options)
    check_engine(execution.engine)
    if any(one.kind == "sift" for one in resolved.features.handcrafted):
        raise RecipeError(
            "Features of images without splits must need no training images.",
            "sift in features.handcrafted, whose codebook is learned on these",
            "Leave it out, or `tlkeras train` the recipe.",
        )
    work, facts = _open_features(_job_fingerprint_fields(resolved))
    return run_job(Path(out), facts, work, _list_source(resolved), execution)


def predict_in_shards(
    run: str | Path | Run, images: Sequence[str | Path], out: str | Path, *, runs: str | Path = RUNS, **options: Any
) -> dict[str, Any]:
    """The predictions of any number of images, files or all below folders, as Parquet files.

    Args:
        run: A name, a path, `latest`, or a `Run`.
        images: Files and folders.
        out: The job's folder; one that holds the same job, unfinished, is resumed.
        runs: Folder of the run directories.
        options: Of `ExecutionOptions`.

    Returns:
        Counts and what failed, see `run_job`.

    Raises:
        TlkerasError: What is in the way.
    """
    execution, folder = ExecutionOptions(**options), Path(out)
    check_engine(execution.engine)
    work, facts = _open_predictions({"run": str(open_run(run, runs).path.resolve())})
    if len(images) == 1 and os.path.isdir(images[0]):
        root = os.path.realpath(images[0])
        return run_job(folder, facts, work, (root, lambda: iter_image_files(root, [])), execution)
    paths = [os.path.abspath(path) for path in expand_paths(images)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return run_job(folder, facts, work, (root, lambda: paths), execution)


def run_job(
    folder: Path,
    facts: Mapping[str, Any],
    work: ShardProcessor,
    images: tuple[str, Callable[[], Iterable[str]]],
    options: ExecutionOptions,
) -> dict[str, Any]:
    """Do a job, or what is left of it.

    Args:
        facts: As in `Job`; `open_work` makes the work again from them, on any machine.
        work: What was made from them here.
        images: The folder that names are relative to, and what lists the paths.

    Returns:
        `folder`, `images`, `shards`, `done`, `rows`, `rejected`, `bytes`, `sha256` of all parts (None where not every
        shard is done), `failed` (shards given up, with their last error), `computed` (images of this call),
        `seconds` of computing, `engine`, `workers`.
    """
    root, list_paths = images
    job = plan_job(folder, facts, root, list_paths, options.shard_size)
    job.forget_attempts()
    job.drop_damaged(options.verify)
    before, started, count = job.summarise(), time.monotonic(), options.count()
    settled = before["rows"] + before["rejected"]
    if job.list_pending():
        if options.engine == "ray":
            run_ray(job, load_worker_task, count)
        elif count > 1:
            run_processes(job, ["-m", "tlkeras.inference.sharded", str(folder)], count)
        else:
            with progress_bar("Shards", job.images - settled, "images") as advance:
                process_shards(job, work, advance)
    after = job.summarise()
    return {
        **after,
        "failed": [failure.__dict__ for failure in job.list_failures()],
        "computed": after["rows"] + after["rejected"] - settled,
        "seconds": round(time.monotonic() - started, 3),
        "engine": options.engine,
        "workers": count,
    }


def load_worker_task(job: Job) -> ShardProcessor:
    """Return what computes a job's rows.

    Raises:
        RunError: This machine would compute something else: other versions, weights or decoding.
    """
    kind = job.facts.get("kind")
    if kind not in _KINDS:
        raise RunError("A job must be of a known kind.", repr(kind), suggest(str(kind), _KINDS))
    work, facts = _KINDS[kind](job.facts)
    check_facts(job, facts)
    return work


def _open_features(about: Mapping[str, Any]) -> tuple[ShardProcessor, dict[str, Any]]:
    """Return what computes features, and all that these depend on."""
    recipe = Recipe.model_validate(to_immutable(about["recipe"]))
    extractor = builders.build_feature_extractor(recipe).pooled
    engine = make_engine(extractor, recipe.features.engine)
    size = builders.image_size(recipe)
    table = feature_table(recipe.features.precision, extractor.output_shape[-1])
    facts = {
        "kind": "features",
        "recipe": about["recipe"],
        "model": fingerprint(extractor),
        "engine": engine.name,
        "size": size,
        **_list_versions(),
    }
    return ShardProcessor(engine, size, recipe.data.resize, table), facts


def _open_predictions(about: Mapping[str, Any]) -> tuple[ShardProcessor, dict[str, Any]]:
    """Return what classifies images, and all that the answers depend on."""
    run = Run(Path(about["run"]))
    tasks, image = read_tasks(run), run.manifest["image"]
    model = load_model(run)
    engine = make_engine(order_outputs(model, [task.name for task in tasks]))
    facts = {
        "kind": "predictions",
        "run": about["run"],
        "model": fingerprint(model),
        "engine": engine.name,
        **image,
        **_list_versions(),
    }
    return ShardProcessor(engine, image["size"], image["resize"], prediction_table(tasks, name_columns(tasks))), facts


def _list_versions() -> dict[str, Any]:
    found = describe_environment()["versions"]
    return {"decoder": decoding.VERSION, "versions": {name: found.get(name) for name in _VERSIONS}}


_KINDS: dict[str, Callable[[Mapping[str, Any]], tuple[ShardProcessor, dict[str, Any]]]] = {
    "features": _open_features,
    "predictions": _open_predictions,
}


_DECISIVE = ("cut", "taps", "backbones", "handcrafted", "pooling", "precision", "engine")


def _job_fingerprint_fields(recipe: Recipe) -> dict[str, Any]:
    """Return what features depend on: two recipes that differ in anything else have the same job."""
    sections = recipe.model_dump(mode="json")
    return {
        "kind": "features",
        "recipe": {
            "name": "features",
            "data": {key: sections["data"][key] for key in ("source", "resize")},
            "backbone": sections["backbone"],
            "features": {key: sections["features"][key] for key in _DECISIVE},
            "training": {"seed": sections["training"]["seed"]},
        },
    }


def _list_source(recipe: Recipe) -> tuple[str, Callable[[], Iterable[str]]]:
    """Return the folder of a source's images and what lists them; folders of any size are only walked through."""
    folder = os.path.realpath(os.path.expanduser(recipe.data.source))
    if os.path.isdir(folder):
        return folder, lambda: iter_image_files(folder, [])
    table = builders.read_source(recipe)
    return str(table.root), lambda: table.paths


def main(folder: str) -> int:
    """Be one of the workers of `run_processes`; the exit code is that of the error."""
    try:
        job = open_job(Path(folder))
        process_shards(job, load_worker_task(job))
    except TlkerasError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
