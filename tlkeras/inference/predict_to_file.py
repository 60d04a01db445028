"""Predictions of any number of images in one table: a job with one worker in a hidden folder, its parts joined."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pyarrow
from filelock import FileLock, Timeout
from pyarrow import parquet

from tlkeras.data.headers import InvalidImage
from tlkeras.errors import DataError, ResourceError, RunError, suggest
from tlkeras.files import atomic_write
from tlkeras.inference.jobs.job import REJECTED_COLUMNS, Job, open_csv, plan_job
from tlkeras.inference.jobs.worker import ShardProcessor, process_shards
from tlkeras.inference.predict import expand_paths
from tlkeras.inference.results import PredictionFileResult, list_unreadable
from tlkeras.inference.sharded import make_prediction_processor
from tlkeras.progress import progress_bar
from tlkeras.runs.directory import RUNS, Run, open_run

FORMATS = (".csv", ".parquet")
_SHARD_SIZE = 1024


def predict_to_file(
    run: str | Path | Run,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    shard_size: int = _SHARD_SIZE,
    runs: str | Path = RUNS,
) -> PredictionFileResult:
    """A table with a row per image of files and folders: path, label and the probability of every class.

    Predictions are kept in a hidden folder next to `out` until the table is complete; the same call resumes after a
    kill. Images that cannot be read are listed in `NAME.rejected.csv` with their reason.

    Args:
        run: As in `open_run`.
        out: A .csv or .parquet file that does not exist yet.
        shard_size: Images whose predictions are written at a time.

    Raises:
        DataError: No image was given, one does not exist, or the table has another ending, exists, or was begun by
            another run.
        RunError: Some images could not be classified, for another reason than their files.
        ResourceError: The disk is full, or another process writes the same table.
    """
    run, out, started = open_run(run, runs), Path(out), time.monotonic()
    _check_target(out)
    paths = expand_paths(images)
    with _locked_folder(out) as folder:
        processor = make_prediction_processor(str(run.path.resolve()))
        jobs = _plan_jobs(folder, processor, paths, shard_size)
        settled = sum(job.summarise().settled for job in jobs)
        _process(jobs, processor, settled)
        rows, rejected = _join(jobs, out)
    seconds = time.monotonic() - started
    computed = sum(job.images for job in jobs) - settled
    return PredictionFileResult(
        run=run.name,
        out=str(out),
        rows=rows,
        unreadable=list_unreadable(rejected),
        rejected=str(_name_rejected(out)) if rejected else None,
        engine=processor.engine.name if computed else None,
        resumed=settled,
        seconds=round(seconds, 3),
        rate=round(computed / seconds, 1),
    )


def _check_target(out: Path) -> None:
    if out.suffix not in FORMATS:
        raise DataError(f"A table of predictions ends in {' or '.join(FORMATS)}.", out, suggest(out.suffix, FORMATS))
    for path in (out, _name_rejected(out)):
        if path.exists():
            raise DataError(f"{path} already exists and is never overwritten.", None, "Choose another name or move it.")


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
        raise ResourceError(
            f"Cannot write {out}.",
            error.strerror or error,
            "What was computed is kept: free some space and run the same command again.",
        ) from error


def _plan_jobs(folder: Path, processor: ShardProcessor, paths: Sequence[str], shard_size: int) -> list[Job]:
    """The jobs that earlier calls have begun, and one of the images that none of these has."""
    begun = sorted(note.parent for note in folder.glob("*/job.json"))
    try:
        jobs = [plan_job(job_folder, processor.facts, None, list, shard_size) for job_folder in begun]
        known = {path for job in jobs for shard in range(job.shards) for path in job.read_paths(shard)}
        new = [path for path in paths if path not in known]
        if new:
            jobs.append(plan_job(folder / f"{len(jobs):05d}", processor.facts, None, lambda: new, shard_size))
    except RunError as error:
        raise DataError(
            "This table was begun by another run, or in other versions.",
            error,
            f"Choose another name, or discard what was computed with: rm -r {folder}",
        ) from error
    for job in jobs:
        job.forget_attempts()
        job.drop_damaged()
    return jobs


def _process(jobs: Sequence[Job], processor: ShardProcessor, settled: int) -> None:
    """Classify the images that have no row yet; RunError if some could not be classified."""
    with progress_bar("Predicting", sum(job.images for job in jobs), "images") as advance:
        advance(settled)
        for job in jobs:
            process_shards(job, processor, advance)
    failures = [f"{one.first} to {one.last}: {one.error}" for job in jobs for one in job.list_failures()]
    if failures:
        raise RunError.from_problems("Some images could not be classified; run the same command again:", failures)


def _join(jobs: Sequence[Job], out: Path) -> tuple[int, list[InvalidImage]]:
    """Write the table and the list of unreadable images; the number of rows, and these images."""
    rejected, rows = [bad for job in jobs for bad in job.list_rejected()], 0
    parts = [job.part(shard) for job in jobs for shard in range(job.shards)]
    schema = parquet.read_schema(parts[0])
    columns = [pyarrow.field("path", pyarrow.string()), *(schema.field(name) for name in schema.names[2:])]
    with atomic_write(out) as temporary:
        with _open_table(temporary, pyarrow.schema(columns)) as write:
            for part in parts:
                table = parquet.read_table(part)
                rows += len(table)
                write([[_format_cell(cell) for cell in row.values()] for row in table.drop("sha256").to_pylist()])
        if rejected:
            with atomic_write(_name_rejected(out)) as listing, open_csv(listing, REJECTED_COLUMNS) as write:
                write((bad.path, bad.code, bad.reason) for bad in rejected)
    return rows, rejected


def _format_cell(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:.7g}"


_Write = Callable[[Iterable[Sequence[str]]], object]


def _open_table(path: Path, schema: pyarrow.Schema) -> AbstractContextManager[_Write]:
    """A function that adds rows of text to a new table; in Parquet they get the types of the schema."""
    return open_csv(path, schema.names) if path.suffix == ".csv" else _open_parquet(path, schema)


@contextmanager
def _open_parquet(path: Path, schema: pyarrow.Schema) -> Iterator[_Write]:
    def write(rows: Iterable[Sequence[str]]) -> None:
        columns = zip(*rows, strict=True)
        arrays = [
            pyarrow.array(np.array(values, np.float32) if pyarrow.types.is_floating(kind) else values, kind)
            for values, kind in zip(columns, schema.types, strict=False)
        ]
        if arrays:
            table.write_table(pyarrow.table(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema) as table:
        yield write
