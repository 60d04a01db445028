"""A job on many images: one folder, fixed shards, and a record of each.

    FOLDER/job.json              what is computed, on how many images, in how many shards
           shards/00000          the paths of a shard's images, each ended by a zero byte
           parts/00000.parquet   its rows; `pandas.read_parquet("FOLDER/parts")` reads all of them
           rejected/00000.csv    its images that could not be used, with the reason
           rejected/listing.csv  files beside the images that were left out when the images were listed
           warnings/00000.csv    its images that were used although they are odd
           records/00000.json    rows, rejected, bytes and SHA-256 of the part: the shard is done
           claims/00000.lock     held by the worker that computes the shard
           attempts/00000        a line for each start and each error; gone once the shard is done
           done.json             every shard is done: counts, and one SHA-256 of all parts

Files are written atomically, the record last. So a shard that has a record is complete; one that has none is computed
again, by any worker on any machine that sees the folder, with the same result.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from filelock import FileLock, Timeout

from tlkeras.data.headers import ImageWarning, InvalidImage, Issue, to_printable
from tlkeras.errors import ResourceError, RunError
from tlkeras.files import atomic_write, sha256, sync_folder
from tlkeras.inference.results import FailedShard, JobSummary, explain_no_images

FORMAT = 1
ATTEMPTS = 3
JOB, DONE = "job.json", "done.json"
REJECTED_COLUMNS = ("path", "code", "reason")
_FOLDERS = ("shards", "parts", "rejected", "warnings", "records", "claims", "attempts")
_LISTING = "rejected/listing.csv"

Facts = Mapping[str, Any]  # what the rows of a job depend on besides the images, JSON values
ListPaths = Callable[[list[InvalidImage]], Iterable[str]]
"""Yields the paths of images, and appends other files that it meets to a list."""


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard."""

    rows: int
    rejected: int  # images without a row
    bytes: int  # size of its part
    sha256: str  # of its part

    @property
    def images(self) -> int:
        return self.rows + self.rejected


@dataclass(frozen=True)
class Job:
    """The folder of a job."""

    folder: Path  # on a disk that all workers see
    facts: Facts
    root: str | None  # the folder that names of images are relative to; None: their names are their paths
    images: int
    shards: int
    left_out: int = 0  # files beside the images

    def part(self, shard: int) -> Path:
        """The file of a shard's rows."""
        return self.folder / "parts" / f"{shard:05d}.parquet"

    def read_paths(self, shard: int) -> list[str]:
        """Paths of a shard's images, in order."""
        content = (self.folder / "shards" / f"{shard:05d}").read_bytes()
        return [os.fsdecode(path) for path in content.split(b"\0")[:-1]]

    def name(self, path: str) -> str:
        """Name of an image in the results, printable: its path, or relative to the root with "/"."""
        return _name(path, self.root)

    def list_done(self) -> list[int]:
        """Numbers of the shards that have a record."""
        return sorted(int(path.stem) for path in (self.folder / "records").glob("[0-9]*.json"))

    def is_done(self, shard: int) -> bool:
        return self._record(shard).exists()

    def list_pending(self) -> list[int]:
        """Numbers of the shards that are neither done nor given up."""
        settled = {*self.list_done(), *(failure.shard for failure in self.list_failures())}
        return [shard for shard in range(self.shards) if shard not in settled]

    def read_record(self, shard: int) -> ShardRecord:
        return ShardRecord(**json.loads(self._record(shard).read_bytes()))

    def list_rejected(self) -> Iterator[InvalidImage]:
        """Files without a row, by name: those beside the images, and images of finished shards in their order."""
        for path in (self.folder / _LISTING, *map(self._rejected, self.list_done())):
            yield from (InvalidImage(**row) for row in _read_csv(path))

    def list_warnings(self) -> Iterator[ImageWarning]:
        """Images of finished shards that are odd, by name, in the order of the images."""
        for path in map(self._warnings, self.list_done()):
            yield from (ImageWarning(**row) for row in _read_csv(path))

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Keep other workers from a shard; yields False if one has it. A killed worker's claim ends with it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(FileLock(self.folder / "claims" / f"{shard:05d}.lock", timeout=0))
            except Timeout:
                yield False
            else:
                yield True

    def note_start(self, shard: int) -> None:
        """Record that a worker starts a shard, so that a shard that kills its workers is given up, too."""
        self.note(shard, started=f"{socket.gethostname()}:{os.getpid()}")

    def note(self, shard: int, **note: str) -> None:
        """Add a line to the attempts of a shard."""
        with open(self.folder / "attempts" / f"{shard:05d}", "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")

    def forget_attempts(self, shard: int | None = None) -> None:
        """Forget the failed attempts of a shard, or of all."""
        for path in (self.folder / "attempts").glob("*" if shard is None else f"{shard:05d}"):
            path.unlink(missing_ok=True)

    def list_failures(self) -> list[FailedShard]:
        """Shards that were given up after `ATTEMPTS` attempts."""
        failures, done = [], set(self.list_done())
        for path in sorted((self.folder / "attempts").iterdir()):
            notes = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            shard = int(path.name)
            started, errors = sum("started" in note for note in notes), [n["error"] for n in notes if "error" in n]
            if shard in done or started < ATTEMPTS or (len(errors) < started and self._is_claimed(shard)):
                continue
            names = [self.name(path) for path in self.read_paths(shard)]
            error = errors[-1] if len(errors) == started else "the worker died"
            failures.append(FailedShard(shard, names[0], names[-1], error))
        return failures

    def finish(
        self,
        shard: int,
        table: pyarrow.Table,
        rejected: Sequence[InvalidImage],
        warnings: Sequence[ImageWarning] = (),
    ) -> None:
        """Write a shard's rows, its rejected and odd images and its record; OSError if the disk is full."""
        _write_issues(self._rejected(shard), rejected, self.root)
        _write_issues(self._warnings(shard), warnings, self.root)
        part = self.part(shard)
        with atomic_write(part) as temporary:
            pyarrow.parquet.write_table(table, temporary, compression="zstd", use_dictionary=False)
        record = ShardRecord(len(table), len(rejected), part.stat().st_size, sha256(part))
        _write_json(self._record(shard), asdict(record))
        self.forget_attempts(shard)

    def drop_damaged(self, thorough: bool = False) -> list[int]:
        """Remove records of shards whose part is missing, or has another size or (thorough) SHA-256; their numbers."""
        dropped = [shard for shard in self.list_done() if not self._is_intact(shard, thorough)]
        for shard in dropped:
            self._record(shard).unlink(missing_ok=True)
        return dropped

    def summarise(self) -> JobSummary:
        """Progress so far; `done.json` is written once every shard is done."""
        records = [self.read_record(shard) for shard in self.list_done()]
        complete = len(records) == self.shards
        digest = hashlib.sha256("".join(record.sha256 for record in records).encode()).hexdigest()
        sums = {name: sum(getattr(record, name) for record in records) for name in ("rows", "rejected", "bytes")}
        sums["rejected"] += self.left_out
        counts = {"images": self.images + self.left_out, "shards": self.shards, "done": len(records), **sums}
        summary = JobSummary(**counts, sha256=digest if complete else None)
        if complete:
            _write_json(self.folder / DONE, summary.to_dict())
        return summary

    def _record(self, shard: int) -> Path:
        return self.folder / "records" / f"{shard:05d}.json"

    def _rejected(self, shard: int) -> Path:
        return self.folder / "rejected" / f"{shard:05d}.csv"

    def _warnings(self, shard: int) -> Path:
        return self.folder / "warnings" / f"{shard:05d}.csv"

    def _is_claimed(self, shard: int) -> bool:
        with self.claim(shard) as free:
            return not free

    def _is_intact(self, shard: int, thorough: bool) -> bool:
        try:
            record, part = self.read_record(shard), self.part(shard)
            return record.bytes == part.stat().st_size and (not thorough or record.sha256 == sha256(part))
        except (OSError, ValueError, TypeError):
            return False


def plan_job(folder: Path, facts: Facts, root: str | None, list_paths: ListPaths, shard_size: int) -> Job:
    """The new job of a folder, its images fixed and divided into shards, or the one that it holds already.

    Only for a new job are paths listed: in a fixed order, absolute where other processes read them, and never all in
    memory. RunError if the folder holds another job or other files, DataError if there is no image, ResourceError if
    the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / JOB).exists():
                _divide(folder, facts, root, list_paths, shard_size)
            job = open_job(folder)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason, way_out = getattr(error, "strerror", None), "Choose a writable folder on a file system with locks."
        raise ResourceError(f"Cannot write the job's folder {folder}.", reason or error, way_out) from error
    check_facts(job, facts)
    return job


def open_job(folder: Path) -> Job:
    """The job of a folder; RunError if it holds none that this version can read."""
    try:
        found = json.loads((folder / JOB).read_bytes())
        if found.pop("format") == FORMAT:
            return Job(folder, **found)
        problem: object = f"its format is not {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = error
    raise RunError(f"{folder} holds no job that this version can read.", problem)


def check_facts(job: Job, facts: Facts) -> None:
    """Raise a RunError that names every difference if a worker would not compute the rows that the job is about."""
    here = json.loads(json.dumps(facts))
    names = sorted(name for name in {*here, *job.facts} if here.get(name) != job.facts.get(name))
    if names:
        differences = [f"{name} is {job.facts.get(name)!r} there and {here.get(name)!r} here" for name in names]
        headline = f"{job.folder} holds another job; choose another folder, or compute this one as it was begun:"
        raise RunError.from_problems(headline, differences)


def _divide(folder: Path, facts: Facts, root: str | None, list_paths: ListPaths, size: int) -> None:
    if others := sorted(path.name for path in folder.iterdir() if path.name not in (".lock", *_FOLDERS)):
        raise RunError(f"{folder} already holds other files.", repr(others[0]), "Choose an empty folder.")
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)  # what an interrupted plan has left
        (folder / name).mkdir()
    rejected: list[InvalidImage] = []
    paths, count, shards = iter(list_paths(rejected)), 0, 0
    while chunk := list(islice(paths, size)):
        content = b"".join(os.fsencode(path) + b"\0" for path in chunk)
        (folder / "shards" / f"{shards:05d}").write_bytes(content)
        count, shards = count + len(chunk), shards + 1
    if not count:
        raise explain_no_images([root] if root else [], rejected)
    own = os.path.realpath(folder) + os.sep  # a job below the images would find its own files among them
    rejected = [bad for bad in rejected if not os.path.realpath(bad.path).startswith(own)]
    _write_issues(folder / _LISTING, rejected, root)
    sync_folder(folder / "shards")
    plan = {"format": FORMAT, "facts": dict(facts), "root": root, "images": count, "shards": shards}
    _write_json(folder / JOB, {**plan, "left_out": len(rejected)})


def _name(path: str, root: str | None) -> str:
    if root is None:
        return to_printable(path)
    return to_printable(os.path.relpath(path, root)).replace(os.sep, "/")


def _write_issues(path: Path, issues: Sequence[Issue], root: str | None) -> None:
    """Write a table of issues by name; without any there is none."""
    path.unlink(missing_ok=True)
    if issues:
        path.parent.mkdir(exist_ok=True)  # jobs of earlier versions have no folder for warnings
        with atomic_write(path) as temporary, open_csv(temporary, REJECTED_COLUMNS) as write:
            write((_name(issue.path, root), issue.code, issue.reason) for issue in issues)


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


@contextlib.contextmanager
def open_csv(path: Path, header: Sequence[str]) -> Iterator[Callable[[Iterable[Sequence[str]]], object]]:
    """A function that adds rows of text to a new table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        yield writer.writerows


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
