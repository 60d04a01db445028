"""The files of a run directory, its state, and its lock."""

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from tlkeras.errors import ResourceError, RunError
from tlkeras.features.store import peak_memory
from tlkeras.files import atomic_write


@dataclass
class RunFiles:
    """The files of one run directory; each is written whole or not at all."""

    path: Path
    phases: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The directory's name, such as `quickstart-01`."""
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as last written; RunError if it is missing or damaged."""
        manifest = self.read_json("manifest.json")
        if not isinstance(manifest, dict) or "state" not in manifest:
            raise RunError(f"The manifest.json of {self.path} has no state.", f"{manifest!r:.60}")
        return manifest

    def read_state(self) -> str:
        """The state: "running", "finished", "failed", "interrupted", "killed" (its process is gone) or "damaged"."""
        try:
            state = self.manifest["state"]
        except RunError:
            return "damaged"
        return "killed" if state == "running" and not self._is_locked() else state

    def read_created(self) -> str:
        """Creation time in UTC; "" where the manifest is damaged."""
        try:
            return str(self.manifest.get("created", ""))
        except RunError:
            return ""

    def _is_locked(self) -> bool:
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        known = self.manifest if (self.path / "manifest.json").exists() else {}
        self.write_json("manifest.json", {**known, **facts})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure seconds and peak memory (MiB) of what runs inside, written at once, as a kill may follow."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0.0) + time.perf_counter() - start, 3)
        self.memory[name] = (peak_memory() or 0) // 2**20
        self.update_manifest(phases=self.phases, memory=self.memory)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all; ResourceError if the directory cannot be written."""
        with self.replacing(name) as aside:
            aside.write_text(text, encoding="utf-8")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path that becomes `name` on success and is removed on failure; ResourceError if nothing can be written."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        try:
            with atomic_write(target) as temporary:
                yield temporary
        except OSError as error:
            way_out = "Free some space or choose another folder, then run the command again."
            raise ResourceError(f"Cannot write {target}.", error.strerror or error, way_out) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON; numbers that JSON does not have (NaN) are refused."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run; RunError if the file is missing or damaged."""
        with self._reading(name) as path:
            return json.loads(path.read_text(encoding="utf-8"))

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        with self.replacing(name) as aside, open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Read an .npz file of the run; RunError if the file is missing or damaged."""
        with self._reading(name) as path, np.load(path, allow_pickle=False) as stored:
            return dict(stored)

    def require(self, name: str) -> Path:
        """The path of a file of the run; RunError if the file is missing."""
        path = self.path / name
        if not path.is_file():
            raise RunError(f"The run {self.path} has no {name}.")
        return path

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a file of the run; RunError if the file is missing."""
        with self._reading(name) as path:
            return path.read_bytes()

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        try:
            yield self.path / name
        except (OSError, ValueError, BadZipFile) as error:
            raise RunError(f"{name} of the run {self.path} cannot be read.", error) from None

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file; names that are no UTF-8 are written with replacement signs."""
        with self.replacing(name) as aside, open(aside, "w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this run meanwhile; RunError if another process is writing here."""
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunError("Another process is still writing this run.", self.path, "Wait for it to finish.") from None

    def resume(self) -> None:
        """Mark a run that stopped as running, inside `locked`; RunError if it has finished or its manifest is damaged.

        Times of `phases` are added to those last written; `resumed` in the manifest lists when this was done.
        """
        manifest = self.manifest
        if manifest["state"] == "finished":
            raise explain_not_resumable(self, "finished")
        manifest.pop("error", None)
        for name, seconds in manifest.get("phases", {}).items():
            self.phases[name] = round(self.phases.get(name, 0.0) + seconds, 3)
        facts = {"state": "running", "process": os.getpid(), "resumed": [*manifest.get("resumed", []), now()]}
        self.write_json("manifest.json", {**manifest, **facts})

    def finish(self) -> None:
        """Mark the run as complete and make it the `latest`."""
        self.update_manifest(state="finished", phases=self.phases, finished=now())
        RunFiles(self.path.parent).write_text("latest", self.name + "\n")


def explain_not_resumable(run: RunFiles, state: str) -> RunError:
    """The error of a run in a state in which it cannot be resumed."""
    problem, way_out = "cannot be resumed: its manifest.json is damaged.", "Start a new run with: tlkeras train RECIPE"
    if state == "finished":
        problem = "has already finished, so there is nothing to resume."
        way_out = f"See its results with: tlkeras evaluate {run.name}"
    elif state == "running":
        problem, way_out = "is still running.", "Wait for it, or stop it and then resume."
    return RunError(f"{run.name} {problem}", run.path, way_out)


def now() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
