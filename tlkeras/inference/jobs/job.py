"""A job on many images: one folder, fixed shards, and what was written down about each.

    FOLDER/job.json              what is computed, on how many images, in how many shards
           shards/00000          the paths of a shard's images, each ended by a zero byte
           parts/00000.parquet   its rows; `pandas.read_parquet("FOLDER/parts")` reads all of them
           rejected/00000.csv    its images that could not be used, with the reason
           records/00000.json    rows, rejected, bytes and SHA-256 of the part: the shard is done
           claims/00000.lock     held by the worker that is at the shard
           attempts/00000        a line for each start and each error; gone once the shard is done
           done.json             every shard is done: counts, and one SHA-256 of all parts

A file is written aside, flushed to the disk and renamed, the record last. So a shard that has a record is whole; one
that has none is done again, by any worker on any machine that sees the folder, and comes out the same.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from filelock import FileLock, Timeout

from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.errors import DataError, ResourceError, RunError
from tlkeras.features.shards import sync_folder

FORMAT = 1
ATTEMPTS = 3
JOB, DONE = "job.json", "done.json"
_FOLDERS = ("shards", "parts", "rejected", "records", "claims", "attempts")


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up: its number, the paths of its first and last image, and the last error."""

    shard: int
    first: str
    last: str
    error: str


@dataclass(frozen=True)
class Job:
    """What is written in a job's folder.

    Attributes:
        folder: Where all of it lies; a disk that all workers see.
        facts: What the rows depend on besides the images, JSON values.
        root: The folder that the images' names are relative to.
        images: How many there are.
        shards: How many shards they are divided into.
    """

    folder: Path
    facts: Mapping[str, Any]
    root: str
    images: int
    shards: int

    def part(self, shard: int) -> Path:
        """Return the file of a shard's rows."""
        return self.folder / "parts" / f"{shard:05d}.parquet"

    def read_paths(self, shard: int) -> list[str]:
        """Return the images of a shard, in order."""
        content = (self.folder / "shards" / f"{shard:05d}").read_bytes()
        return [os.fsdecode(path) for path in content.split(b"\0")[:-1]]

    def name(self, path: str) -> str:
        """Return what an image is called in the results: relative to the root, with "/" and printable."""
        return to_printable(os.path.relpath(path, self.root)).replace(os.sep, "/")

    def list_done(self) -> list[int]:
        """Return the shards that have a record."""
        return sorted(int(path.stem) for path in (self.folder / "records").glob("[0-9]*.json"))

    def is_done(self, shard: int) -> bool:
        """Return whether a shard has a record."""
        return self._record(shard).exists()

    def list_pending(self) -> list[int]:
        """Return the shards that have neither a record nor too many attempts behind them."""
        settled = {*self.list_done(), *(failure.shard for failure in self.list_failures())}
        return [shard for shard in range(self.shards) if shard not in settled]

    def read_record(self, shard: int) -> dict[str, Any]:
        """Return what was written down when a shard was done."""
        return json.loads(self._record(shard).read_bytes())

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Within, no other worker is at the shard; yields False if one is. A killed worker's claim ends with it."""
        lock = FileLock(self.folder / "claims" / f"{shard:05d}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def note_start(self, shard: int) -> None:
        """Write down that a worker begins a shard, so that one that kills its workers is given up, too."""
        self._note(shard, {"started": f"{socket.gethostname()}:{os.getpid()}"})

    def note_error(self, shard: int, error: str) -> None:
        """Write down why an attempt came to nothing."""
        self._note(shard, {"error": error})

    def forget_attempts(self, shard: int | None = None) -> None:
        """Give a shard, or all of them, as many attempts as at first."""
        for path in (self.folder / "attempts").glob("*" if shard is None else f"{shard:05d}"):
            path.unlink(missing_ok=True)

    def list_failures(self) -> list[FailedShard]:
        """Return the shards that failed so often that they were given up."""
        failures = []
        done = set(self.list_done())
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

    def finish(self, shard: int, table: pyarrow.Table, rejected: Sequence[InvalidImage]) -> None:
        """Write a shard's rows, its rejected images and its record.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        side = self.folder / "rejected" / f"{shard:05d}.csv"
        if rejected:
            with atomic_write(side) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(("path", "code", "reason"))
                writer.writerows((self.name(bad.path), bad.code, bad.reason) for bad in rejected)
        else:
            side.unlink(missing_ok=True)
        with atomic_write(self.part(shard)) as aside:
            pyarrow.parquet.write_table(table, aside, compression="zstd", use_dictionary=False)
        with open(self.part(shard), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.part(shard).stat().st_size
        record = {"rows": len(table), "rejected": len(rejected), "bytes": size, "sha256": digest}
        _write_json(self._record(shard), record)
        self.forget_attempts(shard)

    def drop_damaged(self, thorough: bool = False) -> list[int]:
        """Take away the records of shards whose part is missing or has another size, and return these shards.

        Args:
            thorough: Also read every part and compare its SHA-256.
        """
        dropped = []
        for shard in self.list_done():
            try:
                record, size = self.read_record(shard), self.part(shard).stat().st_size
                whole = record["bytes"] == size
                if whole and thorough:
                    with open(self.part(shard), "rb") as file:
                        whole = hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"]
            except (OSError, ValueError, KeyError):
                whole = False
            if not whole:
                self._record(shard).unlink(missing_ok=True)
                dropped.append(shard)
        return dropped

    def summarise(self) -> dict[str, Any]:
        """Return the counts; `done.json` holds them, too, once every shard is done.

        `sha256` is that of all parts' digests in order: two jobs with equal ones have equal rows, byte for byte.
        """
        records = [self.read_record(shard) for shard in self.list_done()]
        counts = {key: sum(record[key] for record in records) for key in ("rows", "rejected", "bytes")}
        whole = len(records) == self.shards
        digest = hashlib.sha256("".join(record["sha256"] for record in records).encode()).hexdigest()
        summary = {
            "folder": str(self.folder),
            "images": self.images,
            "shards": self.shards,
            "done": len(records),
            **counts,
            "sha256": digest if whole else None,
        }
        if whole:
            _write_json(self.folder / DONE, {key: summary[key] for key in summary if key != "folder"})
        return summary

    def _record(self, shard: int) -> Path:
        return self.folder / "records" / f"{shard:05d}.json"

    def _note(self, shard: int, note: dict[str, str]) -> None:
        with open(self.folder / "attempts" / f"{shard:05d}", "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")

    def _is_claimed(self, shard: int) -> bool:
        with self.claim(shard) as free:
            return not free


def plan_job(
    folder: Path, facts: Mapping[str, Any], root: str, list_paths: Callable[[], Iterable[str]], shard_size: int
) -> Job:
    """Divide images into shards and write the job down; a folder that holds the same job already is gone on with.

    The images of a job never change: a folder that has got more of them since is another job. Their paths are never
    in memory together.

    Args:
        facts: As in `Job`.
        root: As in `Job`.
        list_paths: Absolute paths, in a fixed order; only called for a new job.
        shard_size: Images in a shard.

    Raises:
        RunError: The folder holds another job, or other files.
        DataError: There is no image.
        ResourceError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / JOB).exists():
                _divide(folder, facts, root, list_paths, shard_size)
            job = open_job(folder)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise ResourceError(
            "A job's folder must be writable, on a file system with locks.",
            f"{folder} ({getattr(error, 'strerror', None) or error})",
        ) from error
    check_facts(job, facts)
    return job


def open_job(folder: Path) -> Job:
    """Return the job of a folder.

    Raises:
        RunError: It holds none that this version can read.
    """
    try:
        found = json.loads((folder / JOB).read_bytes())
        if found.pop("format") == FORMAT:
            return Job(folder, **found)
        problem: object = "one of another format"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = error
    raise RunError(f"The folder must hold a job of format {FORMAT}.", f"{folder} ({problem})")


def check_facts(job: Job, facts: Mapping[str, Any]) -> None:
    """See to it that a worker would compute what the job is about.

    Raises:
        RunError: It would not; every difference is named.
    """
    here = json.loads(json.dumps(facts))
    names = sorted(name for name in {*here, *job.facts} if here.get(name) != job.facts.get(name))
    if names:
        differences = [f"{name} is {job.facts.get(name)!r} there and {here.get(name)!r} here" for name in names]
        headline = f"All of a job is computed alike. The one in {job.folder} differs; choose another folder:"
        raise RunError.from_problems(headline, differences)


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it takes the target's place, on the disk for good, else it is gone."""
    aside = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _divide(
    folder: Path, facts: Mapping[str, Any], root: str, list_paths: Callable[[], Iterable[str]], size: int
) -> None:
    others = [path.name for path in folder.iterdir() if path.name not in (".lock", *_FOLDERS)]
    if others:
        raise RunError("A new job needs an empty folder.", f"{folder} with {sorted(others)[0]!r} in it")
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)  # what a plan that was interrupted has left
        (folder / name).mkdir()
    paths, count, shards = iter(list_paths()), 0, 0
    while chunk := list(islice(paths, size)):
        content = b"".join(os.fsencode(path) + b"\0" for path in chunk)
        (folder / "shards" / f"{shards:05d}").write_bytes(content)
        count, shards = count + len(chunk), shards + 1
    if not count:
        raise DataError("There must be at least one image.", f"none below {root}")
    sync_folder(folder / "shards")
    plan = {"format": FORMAT, "facts": dict(facts), "root": root, "images": count, "shards": shards}
    _write_json(folder / JOB, plan)


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
