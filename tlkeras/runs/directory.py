"""A run directory: all that one training left behind, and the only thing that later stages read.

runs/NAME-NN/
    manifest.json       state, time per phase, counts, facts that prediction and export need
    recipe.yaml         the resolved recipe
    environment.json    machine and versions
    classes.json        class names per task
    splits.csv          the split of each image, its labels and the digest of its file
    rejected.csv        images left out, with the reason
    history.csv         what the head's fit recorded: loss per epoch, or per strength of regularisation
    predictions.npz     probabilities of the held-out images; predictions.csv is the same for reading
    validation.npz      probabilities of the validation images, if there are any
    fusion.npz          probabilities of heads on each part of fused features, joined afterwards
    probe.npz           probabilities of a linear head on frozen features, if the model is another
    metrics.json        metrics with their intervals; metrics.csv is the same as a table
    samples/            a few held-out images, so that an export can be proved anywhere; samples.json names them
    model.keras         uint8 images -> probabilities
    log.txt             warnings and errors, with time
"""

import contextlib
import csv
import itertools
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from tlkeras.errors import ResourceError, RunError, suggest
from tlkeras.features.store import peak_memory
from tlkeras.files import atomic_write

RUNS = "runs"  # the folder of run directories, below the current one, where none is named
_STOPPED = ("interrupted", "killed", "failed")
_LIBRARIES = ("tlkeras", "tensorflow", "keras", "openvino", "scikit-learn", "numpy", "pillow")


@dataclass
class Run:
    """One run directory; each file is written whole or not at all."""

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

    def take_worker_result(self) -> dict[str, Any] | None:
        """`worker`, `workers`, `devices`, `weights` (SHA-256) of a worker, whose folder is removed; None of a run."""
        manifest = self.manifest
        if "worker" not in manifest:
            return None
        shutil.rmtree(self.path.parent)
        trained = manifest["finetuning"]
        return {"worker": manifest["worker"], **{key: trained[key] for key in ("workers", "devices", "weights")}}

    def summarize(self) -> dict[str, Any]:
        """Name, state, creation time (UTC), and accuracy and ROC AUC where they were measured."""
        try:
            metrics = self.read_json("metrics.json")["metrics"]
            accuracy, auc = (metrics.get(name, {}).get("value") for name in ("accuracy", "roc_auc"))
        except (RunError, KeyError, TypeError, AttributeError):  # not measured, or a damaged file
            accuracy = auc = None
        facts = {"name": self.name, "state": self.read_state(), "created": self.read_created()}
        return {**facts, "accuracy": accuracy, "roc_auc": auc}

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
            raise _resume_error(self, "finished")
        manifest.pop("error", None)
        for name, seconds in manifest.get("phases", {}).items():
            self.phases[name] = round(self.phases.get(name, 0.0) + seconds, 3)
        facts = {"state": "running", "process": os.getpid(), "resumed": [*manifest.get("resumed", []), _now()]}
        self.write_json("manifest.json", {**manifest, **facts})

    def finish(self) -> None:
        """Mark the run as complete and make it the `latest`."""
        self.update_manifest(state="finished", phases=self.phases, finished=_now())
        Run(self.path.parent).write_text("latest", self.name + "\n")


def create_run(root: Path, name: str) -> Run:
    """Make `root/NAME-NN` with the next free number; nothing that exists is touched."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = [
            int(found[1]) for path in root.iterdir() if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name))
        ]
        for number in itertools.count(max(taken, default=0) + 1):
            path = root / f"{name}-{number:02d}"
            with contextlib.suppress(FileExistsError):  # another process took the number in the meantime
                path.mkdir()
                break
    except OSError as error:
        received = f"{root} ({error.strerror})"
        raise ResourceError("Cannot write a run directory.", received, "Choose another folder with --runs.") from None
    run = Run(path)
    run.update_manifest(state="running", created=_now(), process=os.getpid(), cwd=os.getcwd())
    run.write_json("environment.json", describe_environment())
    return run


def open_run(reference: str | Path | Run, root: str | Path = RUNS) -> Run:
    """A finished run by `latest`, by name, by path, or as it is; RunError, with the nearest name, if there is none."""
    if not isinstance(reference, Run):
        reference = Run(_latest(Path(root)) if reference == "latest" else _locate(str(reference), Path(root)))
    run = reference
    state = run.read_state()
    if state != "finished":
        way_out = f"Resume it with: tlkeras train --resume {run.name}"
        raise RunError(f"The run {run.name} has not finished: it is {state}.", run.path, way_out)
    return run


def find_run(reference: str, root: Path) -> Run:
    """A run in any state by name, by path, or as `latest`, the newest; RunError with the nearest name if none."""
    runs = list_runs(root)
    return runs[-1] if reference == "latest" and runs else Run(_locate(reference, root))


def find_resumable_run(reference: str | Path | Run, root: Path) -> Run:
    """A run that can be resumed: by name, by path, as it is, or `latest`, the newest that stopped before its end.

    RunError if there is no such run (the nearest name is told), or it has finished, is damaged, or is running.
    """
    if reference != "latest":
        run = reference if isinstance(reference, Run) else Run(_locate(str(reference), root))
        state = run.read_state()
        if state not in _STOPPED:
            raise _resume_error(run, state)
        return run
    states = {run.path: run.read_state() for run in list_runs(root)}
    stopped = [path for path, state in states.items() if state in _STOPPED]
    if not stopped:
        busy = [f"{path.name} is running" for path, state in states.items() if state == "running"]
        found = ", ".join([f"none in {root.resolve()}", *busy])
        headline = "No run was interrupted, so there is nothing to resume."
        raise RunError(headline, found, "Start one with: tlkeras train RECIPE")
    return Run(stopped[-1])


def list_runs(root: str | Path = RUNS) -> list[Run]:
    """All runs below a root, oldest first, damaged ones among them."""
    root = Path(root)
    if not root.is_dir():
        return []
    runs = [Run(path) for path in root.iterdir() if (path / "manifest.json").is_file()]
    return sorted(runs, key=lambda run: (run.read_created(), run.name))


@contextmanager
def record_failure(run: Run) -> Iterator[None]:
    """Do the work of a run inside: warnings go to its log, and how it ended, if early, to its manifest."""
    with log_to_file(run):
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(ResourceError):  # a full disk must not hide what went wrong first
                run.update_manifest(state=state, phases=run.phases, error=f"{type(error).__name__}: {error}")
            raise


@contextmanager
def log_to_file(run: Run) -> Iterator[None]:
    """Copy warnings and errors of tlkeras into the run's log.txt."""
    handler = logging.FileHandler(run.path / "log.txt", encoding="utf-8", errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("tlkeras", "py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _resume_error(run: Run, state: str) -> RunError:
    problem, way_out = "cannot be resumed: its manifest.json is damaged.", "Start a new run with: tlkeras train RECIPE"
    if state == "finished":
        problem = "has already finished, so there is nothing to resume."
        way_out = f"See its results with: tlkeras evaluate {run.name}"
    elif state == "running":
        problem, way_out = "is still running.", "Wait for it, or stop it and then resume."
    return RunError(f"{run.name} {problem}", run.path, way_out)


def _locate(reference: str, root: Path) -> Path:
    for path in (root / reference, Path(reference)):
        if (path / "manifest.json").is_file():
            return path if path.name else path.resolve()  # "." has no name
    names = ["latest", *(run.name for run in list_runs(root))]
    raise RunError(f"No run called {reference!r}.", None, suggest(reference, names))


def _latest(root: Path) -> Path:
    pointer = root / "latest"
    if pointer.is_file() and (root / (name := pointer.read_text().strip()) / "manifest.json").is_file() and name:
        return root / name
    finished = [run for run in list_runs(root) if run.read_state() == "finished"]
    if not finished:
        raise RunError(f"No finished runs in {root.resolve()} yet.", None, "Make one with: tlkeras train quickstart")
    return finished[-1].path


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def describe_environment() -> dict[str, Any]:
    """Machine, Python and versions of libraries, as environment.json keeps them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {library: _version(library) for library in _LIBRARIES},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
