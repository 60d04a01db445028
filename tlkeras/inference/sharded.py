"""Jobs on many images: features and predictions in shards that any worker can compute, or in one table."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from filelock import FileLock, Timeout
from pyarrow import parquet

from tlkeras.backbones.weights import fingerprint
from tlkeras.config.frames import Frame
from tlkeras.config.recipe import Recipe
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.data import decoding
from tlkeras.data.headers import InvalidImage, Rendering, to_printable
from tlkeras.data.issues import describe_warnings
from tlkeras.data.pipeline import count_cores
from tlkeras.data.sources.folders import iter_image_files, load_recipe_or_source
from tlkeras.errors import DataError, ResourceError, RunError, TlkerasError, suggest
from tlkeras.features.engines import make_engine
from tlkeras.files import atomic_write
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.jobs.engines import check_engine, run_processes, run_ray
from tlkeras.inference.jobs.job import REJECTED_COLUMNS, Job, ListPaths, check_facts, open_csv, open_job, plan_job
from tlkeras.inference.jobs.worker import ShardProcessor, feature_table, prediction_table, process_shards
from tlkeras.inference.predict import load_model
from tlkeras.inference.results import JobResult, PredictionFileResult, expand_paths, explain_no_images, list_unreadable
from tlkeras.progress import progress_bar
from tlkeras.runs.directory import RUNS, Run, describe_environment, open_run
from tlkeras.runs.predictions import read_tasks
from tlkeras.training.builders.data import list_source_images
from tlkeras.training.builders.features import check_needs_no_training, make_bulk_extraction
from tlkeras.training.builders.variants import keep_feature_fields

SHARD_SIZE = 10_000
_CORES = 8  # of a worker: with more, its own work on batches and shards slows them down
_VERSIONS = ("tlkeras", "tensorflow", "keras", "openvino")
FORMATS = (".csv", ".parquet")
_ROWS_AT_ONCE = 1024


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
    recipe: str | Path | Recipe | Frame, out: str | Path, overrides: Mapping[str, Any] | None = None, **options: Any
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
    """The predictions of images, files or all below folders, as Parquet files; options as in `extract_features`."""
    execution, folder = ExecutionOptions(**options), Path(out)
    check_engine(execution.engine)
    processor = make_prediction_processor(str(open_run(run, runs).path.resolve()))
    if len(images) == 1 and os.path.isdir(images[0]):
        root = os.path.realpath(images[0])
        return run_job(folder, processor, root, lambda rejected: iter_image_files(root, rejected), execution)
    found, left_out = expand_paths(images)
    paths = [os.path.abspath(path) for path in found]
    if not paths:
        raise explain_no_images(images, left_out)
    root = os.path.commonpath([os.path.dirname(path) for path in paths])

    def list_paths(rejected: list[InvalidImage]) -> list[str]:
        rejected += [InvalidImage(os.path.abspath(bad.path), bad.code, bad.reason) for bad in left_out]
        return paths

    return run_job(folder, processor, root, list_paths, execution)


def run_job(
    folder: Path, processor: ShardProcessor, root: str, list_paths: ListPaths, options: ExecutionOptions
) -> JobResult:
    """Compute the shards of a job that are missing, here or where `load_processor` makes the processor again."""
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
            with progress_bar("Shards", job.images + job.left_out - settled, "images") as advance:
                process_shards(job, processor, advance)
    summary = job.summarise()
    return JobResult(
        **vars(summary),
        folder=str(folder),
        unreadable=list_unreadable(job.list_rejected()),
        failed=tuple(job.list_failures()),
        notes=tuple(describe_warnings(list(job.list_warnings()))),
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
    return ShardProcessor(engine, image["size"], Rendering.of(image), prediction_table(tasks), facts)


def _make_feature_processor(fields: Mapping[str, Any]) -> ShardProcessor:
    """The processor that computes features, from the part of a recipe that they depend on."""
    extraction = make_bulk_extraction(Recipe.model_validate(to_immutable(fields)))
    own = {"kind": "features", "recipe": fields, "model": fingerprint(extraction.model)}
    facts = {**own, "engine": extraction.engine.name, "size": extraction.size, **_list_versions()}
    table = feature_table(extraction.dtype, extraction.model.output_shape[-1])
    return ShardProcessor(extraction.engine, extraction.size, extraction.rendering, table, facts)


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


def predict_to_file(
    run: str | Path | Run,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    shard_size: int = _ROWS_AT_ONCE,
    runs: str | Path = RUNS,
) -> PredictionFileResult:
    """A table with a row per image of files and folders: path, label and the probability of every class.

    Predictions are kept in a hidden folder next to `out` until the table is complete; the same call resumes after a
    kill. Images that cannot be read, and other files in the folders, are listed in `NAME.rejected.csv`.

    DataError if no image was given, one does not exist, or the table exists, ends otherwise, or was begun by another
    run; RunError if images could not be classified for another reason than their files; ResourceError if the disk is
    full, or another process writes the same table.

    Args:
        run: As in `open_run`.
        out: A .csv or .parquet file that does not exist yet.
        shard_size: Images whose predictions are written at a time.
    """
    run, out, started = open_run(run, runs), Path(out), time.monotonic()
    if out.suffix not in FORMATS:
        raise DataError(f"A table of predictions ends in {' or '.join(FORMATS)}.", out, suggest(out.suffix, FORMATS))
    for path in (out, _name_rejected(out)):
        if path.exists():
            raise DataError(f"{path} already exists and is never overwritten.", None, "Choose another name or move it.")
    paths, left_out = expand_paths(images)
    if not paths:
        raise explain_no_images(images, left_out)
    with _locked_folder(out) as folder:
        processor = make_prediction_processor(str(run.path.resolve()))
        jobs = _plan_jobs(folder, processor, paths, shard_size)
        settled = sum(job.summarise().settled for job in jobs)
        with progress_bar("Predicting", sum(job.images for job in jobs), "images") as advance:
            advance(settled)
            for job in jobs:
                process_shards(job, processor, advance)
        if failures := [f"{one.first} to {one.last}: {one.error}" for job in jobs for one in job.list_failures()]:
            raise RunError.from_problems("Some images could not be classified; run the same command again:", failures)
        rejected = [*left_out, *(bad for job in jobs for bad in job.list_rejected())]
        rows = _join(jobs, out, rejected)
        notes = tuple(describe_warnings([odd for job in jobs for odd in job.list_warnings()]))
    seconds, computed = time.monotonic() - started, sum(job.images for job in jobs) - settled
    table = (run.name, str(out), rows, list_unreadable(rejected), str(_name_rejected(out)) if rejected else None)
    engine = processor.engine.name if computed else None
    return PredictionFileResult(*table, engine, settled, round(seconds, 3), round(computed / seconds, 1), notes)


def _name_rejected(out: Path) -> Path:
    return out.with_name(f"{out.stem}.rejected.csv")


@contextmanager
def _locked_folder(out: Path) -> Iterator[Path]:
    """The hidden folder of a table's jobs, for this process alone; it is removed if all goes well."""
    folder = out.with_name(f".{out.name}.job")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield folder
        shutil.rmtree(folder)
    except Timeout:
        raise ResourceError("Another process is writing this table.", out, "Wait for it to finish.") from None
    except OSError as error:
        way_out = "What was computed is kept: free some space and run the same command again."
        raise ResourceError(f"Cannot write {out}.", error.strerror or error, way_out) from error


def _plan_jobs(folder: Path, processor: ShardProcessor, paths: Sequence[str], shard_size: int) -> list[Job]:
    """The jobs that earlier calls have begun, and one of the images that none of these has."""
    begun = sorted(note.parent for note in folder.glob("*/job.json"))
    try:
        jobs = [plan_job(job_folder, processor.facts, None, lambda _: [], shard_size) for job_folder in begun]
        known = {path for job in jobs for shard in range(job.shards) for path in job.read_paths(shard)}
        new = [path for path in paths if path not in known]
        if new:
            jobs.append(plan_job(folder / f"{len(jobs):05d}", processor.facts, None, lambda _: new, shard_size))
    except RunError as error:
        way_out = f"Choose another name, or discard what was computed with: rm -r {folder}"
        raise DataError("This table was begun by another run, or in other versions.", error, way_out) from error
    for job in jobs:
        job.forget_attempts()
        job.drop_damaged()
    return jobs


def _join(jobs: Sequence[Job], out: Path, rejected: Sequence[InvalidImage]) -> int:
    """Write the table and the list of files without a row; the number of rows."""
    rows = 0
    parts = [job.part(shard) for job in jobs for shard in range(job.shards)]
    schema = parquet.read_schema(parts[0])
    columns = [pyarrow.field("path", pyarrow.string()), *(schema.field(name) for name in schema.names[2:])]
    with atomic_write(out) as temporary:
        with _open_table(temporary, pyarrow.schema(columns)) as write:
            for part in parts:
                found = parquet.read_table(part).drop("sha256").to_pylist()
                rows += len(found)
                write([[cell if isinstance(cell, str) else f"{cell:.7g}" for cell in row.values()] for row in found])
        if rejected:
            with atomic_write(_name_rejected(out)) as listing, open_csv(listing, REJECTED_COLUMNS) as write:
                write((to_printable(bad.path), bad.code, bad.reason) for bad in rejected)
    return rows


_Write = Callable[[Iterable[Sequence[str]]], object]


def _open_table(path: Path, schema: pyarrow.Schema) -> AbstractContextManager[_Write]:
    """A function that adds rows of text to a new table; in Parquet they get the types of the schema."""
    return open_csv(path, schema.names) if path.suffix == ".csv" else _open_parquet(path, schema)


@contextmanager
def _open_parquet(path: Path, schema: pyarrow.Schema) -> Iterator[_Write]:
    def write(rows: Iterable[Sequence[str]]) -> None:
        arrays = [
            pyarrow.array(np.array(values, np.float32) if pyarrow.types.is_floating(kind) else values, kind)
            for values, kind in zip(zip(*rows, strict=True), schema.types, strict=False)
        ]
        if arrays:
            table.write_table(pyarrow.table(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema) as table:
        yield write


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
