"""Any number of images into one table on disk: streamed, resumed after a kill, nothing overwritten."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tlkeras import progress
from tlkeras.data.headers import ImageError, InvalidImage, check_header, read_image, to_printable
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.tasks import Task
from tlkeras.errors import DataError, MissingExtraError, ResourceError, suggest
from tlkeras.features.engines import make_engine
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import expand_paths, load_model
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks

FORMATS = (".csv", ".parquet")
_PART = 1024
_BATCH = 32
_REJECTED = "rejected"


def predict_to_file(
    run: str | Path | Run, images: Sequence[str | Path], out: str | Path, *, part: int = _PART, runs: str | Path = RUNS
) -> dict[str, Any]:
    """Classify image files and folders into a table with a row per image: path, label and every probability.

    Answers are kept in parts beside `out` until all are there; the same call goes on where a killed one stopped.
    Images that cannot be read are listed in `NAME.rejected.csv` with their reason.

    Args:
        out: A .csv or .parquet file that does not exist yet.
        part: Images whose answers are kept together.

    Returns:
        `run`, `out`, `rows`, `unreadable` (a count), `rejected` (the path of their list, or None), `engine`, `resumed`
        (images that an earlier call had done), `seconds` and `rate` (images per second, of this call).

    Raises:
        DataError: No image was given, one does not exist, or the table has another ending or exists.
        ResourceError: The disk is full, or another process writes the same table.
        MissingExtraError: Parquet without pyarrow.
    """
    run, out = open_run(run, runs), Path(out)
    _check_target(out)
    paths = expand_paths(images)
    started = time.monotonic()
    with _resumable_workdir(run, out) as work:
        todo, resumed = _find_todo(paths, work)
        tasks = read_tasks(run)
        engine = _predict_remaining(run, todo, work, tasks, part) if todo else None
        rows, unreadable = _assemble(work, out, name_columns(tasks))
    seconds = time.monotonic() - started
    return {
        "run": run.name,
        "out": str(out),
        "rows": rows,
        "unreadable": unreadable,
        "rejected": str(_name_rejected(out)) if unreadable else None,
        "engine": engine,
        "resumed": resumed,
        "seconds": round(seconds, 3),
        "rate": round(len(todo) / seconds, 1),
    }


def _check_target(out: Path) -> None:
    if out.suffix not in FORMATS:
        raise DataError(f"A table of predictions ends in {' or '.join(FORMATS)}.", out, suggest(out.suffix, FORMATS))
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("A table in Parquet", "parquet")
    for path in (out, _name_rejected(out)):
        if path.exists():
            raise DataError("A table is never overwritten.", path, "Choose another name or move the file.")


def _name_rejected(out: Path) -> Path:
    return out.with_name(f"{out.stem}.{_REJECTED}.csv")


@contextmanager
def _resumable_workdir(run: Run, out: Path) -> Iterator[Path]:
    """Yield the folder of parts, of this run and table alone; it is removed at the end if all went well.

    Raises:
        DataError: The parts there are another run's.
        ResourceError: The folder cannot be written, the disk is full, or another process is at it.
    """
    work = out.with_name(f".{out.name}.parts")
    job = {"run": str(run.path.resolve()), "model": _digest(run.path / "model.keras")}
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / ".lock", timeout=0):
            note = work / "job.json"
            if note.exists() and json.loads(note.read_text(encoding="utf-8")) != job:
                raise DataError(
                    "A table that was begun must be finished by the run that began it.",
                    f"{work} is of another run",
                    f"Choose another name, or give its answers up with: rm -r {work}",
                )
            _write_whole(note, json.dumps(job))
            yield work
        shutil.rmtree(work)
    except Timeout:
        raise ResourceError("Only one process may write a table.", out, "Wait for the other to end.") from None
    except OSError as error:
        raise ResourceError(
            f"{out} must be writable, with room on the disk.",
            error.strerror or error,
            "What was answered is kept: free some space and run the same command again.",
        ) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # `load_model` says what is wrong


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _find_todo(paths: Sequence[str], work: Path) -> tuple[list[str], int]:
    """Return the images without an answer, and how many have one."""
    done = {row[0] for file in _list_parts(work) for row in _read_part(file)}
    todo = [path for path in paths if to_printable(path) not in done]
    return todo, len(paths) - len(todo)


def _list_parts(work: Path) -> list[Path]:
    return sorted(work.glob("part-*.csv"))


def _read_part(file: Path) -> Iterator[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        yield from csv.reader(lines)


def _predict_remaining(run: Run, todo: Sequence[str], work: Path, tasks: Sequence[Task], part: int) -> str:
    """Classify images in one stream, their answers kept part after part; return what computed."""
    facts, model = run.manifest["image"], order_outputs(load_model(run), [task.name for task in tasks])
    engine, checked = make_engine(model), _ValidatedPaths(todo)
    stream = make_image_dataset(checked, facts["size"], facts["resize"], _BATCH).as_numpy_iterator()
    rows: list[list[Any]] = []
    position = 0
    with (
        progress.progress_bar("Predicting", len(todo), "images") as advance,
        closing(engine.run(stream)) as results,
        closing(_keep_parts(work, part)) as keep,
    ):
        next(keep)
        for index, outputs in results:
            for place, row in enumerate(index.tolist()):
                rows += [checked.explain(missing) for missing in range(position, row)]
                predicted = [
                    cell
                    for task, output in zip(tasks, outputs, strict=True)
                    for cell in task.format_prediction(output[place])
                ]
                rows.append([to_printable(todo[row]), "", "", *predicted])
                advance(row + 1 - position)
                position = row + 1
            rows = keep.send(rows)
        rows += [checked.explain(missing) for missing in range(position, len(todo))]
        keep.send(rows)
        advance(len(todo) - position)
    return engine.name


def _keep_parts(work: Path, part: int) -> Generator[list[list[Any]], list[list[Any]], None]:
    """Take rows, write those that fill a part, give back the others; what is left at the end is written too."""
    number = max((int(file.stem.partition("-")[2]) for file in _list_parts(work)), default=-1) + 1
    rows: list[list[Any]] = []
    try:
        while True:
            rows = yield rows
            while len(rows) >= part:
                _write_part(work / f"part-{number:08d}.csv", rows[:part])
                rows, number = rows[part:], number + 1
    finally:
        if rows:
            _write_part(work / f"part-{number:08d}.csv", rows)


def _write_part(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    aside = path.with_name("next.tmp")
    with aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


class _ValidatedPaths(Sequence[str]):
    """Paths as a stream reads them, some at a time; those that are no images are known and become "".

    Headers are read before: pipes are never opened, bombs never unpacked.
    """

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._problems: dict[int, InvalidImage] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, chosen: Any) -> Any:
        if not isinstance(chosen, slice):
            return self[chosen : chosen + 1][0]
        rows = range(*chosen.indices(len(self._paths)))
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_find_problem, (self._paths[row] for row in rows)))
        self._problems |= {row: problem for row, problem in zip(rows, found, strict=True) if problem}
        return ["" if problem else self._paths[row] for row, problem in zip(rows, found, strict=True)]

    def explain(self, row: int) -> list[str]:
        """Return the path, the code and the reason of an image that did not come out of the stream."""
        problem = self._problems.get(row) or read_error(self._paths[row])
        return [to_printable(self._paths[row]), problem.code, problem.reason]


def _find_problem(path: str) -> InvalidImage | None:
    """Say why a file is no image; pipes are never opened, bombs never unpacked."""
    try:
        check_header(read_image(path))
        return None
    except ImageError as error:
        return InvalidImage(path, error.code, error.reason)


def name_columns(tasks: Sequence[Task]) -> list[str]:
    """Return `label` and `probability of NAME`, or `value`, of each task; where there are several, its name before."""
    prefixes = ["" if len(tasks) == 1 else f"{task.name}: " for task in tasks]
    return [
        f"{prefix}{name}" for prefix, task in zip(prefixes, tasks, strict=True) for name in task.prediction_columns()
    ]


def _assemble(work: Path, out: Path, columns: list[str]) -> tuple[int, int]:
    """Write the table and the list of what could not be read from the parts; return how many rows each has."""
    aside, rejected = work / f"table{out.suffix}", work / "rejected.csv"
    counts = [0, 0]
    with (
        _make_writer(aside, ["path", *columns]) as write,
        rejected.open("w", newline="", encoding="utf-8") as file,
    ):
        bad = csv.writer(file)
        bad.writerow(["path", "code", "reason"])
        for part in _list_parts(work):
            rows = list(_read_part(part))
            good = [[row[0], *row[3:]] for row in rows if not row[1]]
            write(good)
            bad.writerows(row for row in rows if row[1])
            counts[0] += len(good)
            counts[1] += len(rows) - len(good)
    for path in (aside, rejected):
        with path.open("rb") as written:
            os.fsync(written.fileno())
    if counts[1]:
        os.replace(rejected, _name_rejected(out))
    os.replace(aside, out)
    return counts[0], counts[1]


@contextmanager
def _make_writer(path: Path, header: list[str]) -> Iterator[Any]:
    """Yield a function that adds rows of text to a table; in Parquet probabilities are float32."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            yield writer.writerows
        return
    import pyarrow as pa
    from pyarrow import parquet

    kinds = [pa.float32() if "probability of " in name or name.endswith(": value") else pa.string() for name in header]
    schema = pa.schema(list(zip(header, kinds, strict=True)))

    def write(rows: list[list[str]]) -> None:
        if rows:
            columns = [
                pa.array(np.array(values, dtype=np.float32) if kind == pa.float32() else values, kind)
                for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)
            ]
            table.write_table(pa.table(columns, schema=schema))

    with parquet.ParquetWriter(path, schema) as table:
        yield write
