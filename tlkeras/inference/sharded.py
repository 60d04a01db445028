"""Jobs on many images: features and predictions in shards that any worker can compute."""

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
from tlkeras.errors import RunError, TlkerasError, suggest
from tlkeras.features.engines import make_engine
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.jobs.job import Job, check_facts, open_job, plan_job
from tlkeras.inference.jobs.processes import run_processes
from tlkeras.inference.jobs.ray_engine import check_engine, run_ray
from tlkeras.inference.jobs.rows import feature_table, prediction_table
from tlkeras.inference.jobs.worker import ShardProcessor, process_shards
from tlkeras.inference.predict import expand_paths, load_model
from tlkeras.inference.results import JobResult, list_unreadable
from tlkeras.progress import progress_bar
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.environment import describe_environment
from tlkeras.runs.predictions import read_tasks
from tlkeras.training.builders.jobs import (
    check_needs_no_training,
    keep_feature_fields,
    list_source_images,
    make_bulk_extraction,
)

SHARD_SIZE = 10_000
_CORES = 8  # of a worker: with more, its own work on batches and shards slows them down
_VERSIONS = ("tlkeras", "tensorflow", "keras", "openvino")


@dataclass(frozen=True)
class ExecutionOptions:
    """Workers of a job."""

    engine: str = "local"  # "local": processes of this machine; "ray": actors of a Ray cluster
    workers: int | None = None  # their number; None: one for every eight cores of this machine
    shard_size: int = SHARD_SIZE  # images in a shard, which one worker computes at a time and loses when it dies
    verify: bool = False  # compare the checksums of all existing parts; damaged ones are computed again

    def count(self) -> int:
        return self.workers or max(1, count_cores() // _CORES)


def extract_features(
    recipe: str | Path | Recipe, out: str | Path, overrides: Mapping[str, Any] | None = None, **options: Any
) -> JobResult:
    """The features of all images of a source, whatever their labels and splits, as Parquet files.

    Args:
        recipe: A recipe, or images alone, as `check` takes them, of which the features of `linear_probe` are computed.
        out: The job's folder; one that holds the same job, unfinished, is resumed.
        options: Of `ExecutionOptions`.
    """
    resolved, _ = load_recipe_or_source(recipe, overrides)
    execution = ExecutionOptions(**options)
    check_engine(execution.engine)
    check_needs_no_training(resolved)
    processor = _make_feature_processor(keep_feature_fields(resolved))
    return run_job(Path(out), processor, *list_source_images(resolved), execution)


def predict_in_shards(
    run: str | Path | Run, images: Sequence[str | Path], out: str | Path, *, runs: str | Path = RUNS, **options: Any
) -> JobResult:
    """The predictions of any number of images, files or all below folders, as Parquet files.

    The run is as in `open_run`; folder and options are as in `extract_features`.
    """
    execution, folder = ExecutionOptions(**options), Path(out)
    check_engine(execution.engine)
    processor = make_prediction_processor(str(open_run(run, runs).path.resolve()))
    if len(images) == 1 and os.path.isdir(images[0]):
        root = os.path.realpath(images[0])
        return run_job(folder, processor, root, lambda: iter_image_files(root, []), execution)
    paths = [os.path.abspath(path) for path in expand_paths(images)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return run_job(folder, processor, root, lambda: paths, execution)


def run_job(
    folder: Path,
    processor: ShardProcessor,
    root: str,
    list_paths: Callable[[], Iterable[str]],
    options: ExecutionOptions,
) -> JobResult:
    """Compute the shards of a job that are missing; root and paths are as in `plan_job`.

    `load_processor` makes the processor again from its facts, on any machine.
    """
    job = plan_job(folder, processor.facts, root, list_paths, options.shard_size)
    job.forget_attempts()
    job.drop_damaged(options.verify)
    settled, started, count = job.summarise().settled, time.monotonic(), options.count()
    if job.list_pending():
        if options.engine == "ray":
            run_ray(job, load_processor, count)
        elif count > 1:
            run_processes(job, ["-m", "tlkeras.inference.sharded", str(folder)], count)
        else:
            with progress_bar("Shards", job.images - settled, "images") as advance:
                process_shards(job, processor, advance)
    summary = job.summarise()
    return JobResult(
        **vars(summary),
        folder=str(folder),
        unreadable=list_unreadable(job.list_rejected()),
        failed=tuple(job.list_failures()),
        computed=summary.settled - settled,
        seconds=round(time.monotonic() - started, 3),
        engine=options.engine,
        workers=count,
    )


def load_processor(job: Job) -> ShardProcessor:
    """The processor of a job's shards; RunError if this machine's versions, weights or decoding are others."""
    kind = job.facts.get("kind")
    if kind not in _MAKERS:
        raise RunError(f"Unknown kind of job {kind!r}.", way_out=suggest(str(kind), _MAKERS))
    processor = _MAKERS[kind](job.facts)
    check_facts(job, processor.facts)
    return processor


def make_prediction_processor(run_path: str) -> ShardProcessor:
    """The processor that classifies images with the model of a run; RunError if it has none that can be read."""
    run = Run(Path(run_path))
    tasks, image, model = read_tasks(run), run.manifest["image"], load_model(run)
    engine = make_engine(order_outputs(model, [task.name for task in tasks]))
    own = {"kind": "predictions", "run": run_path, "model": fingerprint(model), "engine": engine.name}
    facts = {**own, **image, **_list_versions()}
    return ShardProcessor(engine, image["size"], image["resize"], prediction_table(tasks), facts)


def _make_feature_processor(fields: Mapping[str, Any]) -> ShardProcessor:
    """The processor that computes features, from the part of a recipe that they depend on."""
    extraction = make_bulk_extraction(Recipe.model_validate(to_immutable(fields)))
    facts = {
        "kind": "features",
        "recipe": fields,
        "model": fingerprint(extraction.model),
        "engine": extraction.engine.name,
        "size": extraction.size,
        **_list_versions(),
    }
    table = feature_table(extraction.dtype, extraction.model.output_shape[-1])
    return ShardProcessor(extraction.engine, extraction.size, extraction.resize, table, facts)


def _list_versions() -> dict[str, object]:
    found = describe_environment()["versions"]
    return {"decoder": decoding.VERSION, "versions": {name: found.get(name) for name in _VERSIONS}}


_MAKERS: dict[str, Callable[[Mapping[str, Any]], ShardProcessor]] = {
    "features": lambda facts: _make_feature_processor(facts["recipe"]),
    "predictions": lambda facts: make_prediction_processor(facts["run"]),
}


def main(folder: str) -> int:
    """Compute shards as one of the workers of `run_processes`; the exit code, that of the error if there is one."""
    try:
        job = open_job(Path(folder))
        process_shards(job, load_processor(job))
    except TlkerasError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
