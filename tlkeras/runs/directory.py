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
import itertools
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tlkeras.errors import ResourceError, RunError, suggest
from tlkeras.results import Table
from tlkeras.runs.files import RunFiles, explain_not_resumable, now
from tlkeras.runs.run import Run

RUNS = "runs"  # the folder of run directories, below the current one, where none is named
_STOPPED = ("interrupted", "killed", "failed")
_LIBRARIES = ("tlkeras", "tensorflow", "keras", "openvino", "scikit-learn", "numpy", "pillow")


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
    run.update_manifest(state="running", created=now(), process=os.getpid(), cwd=os.getcwd())
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
            raise explain_not_resumable(run, state)
        return run
    states = {run.path: run.read_state() for run in list_runs(root)}
    stopped = [path for path, state in states.items() if state in _STOPPED]
    if not stopped:
        busy = [f"{path.name} is running" for path, state in states.items() if state == "running"]
        found = ", ".join([f"none in {root.resolve()}", *busy])
        headline = "No run was interrupted, so there is nothing to resume."
        raise RunError(headline, found, "Start one with: tlkeras train RECIPE")
    return Run(stopped[-1])


def list_runs(root: str | Path = RUNS) -> Table[Run]:
    """All runs below a root, oldest first, damaged ones among them."""
    root = Path(root)
    if not root.is_dir():
        return Table()
    runs = [Run(path) for path in root.iterdir() if (path / "manifest.json").is_file()]
    return Table(sorted(runs, key=lambda run: (run.read_created(), run.name)))


def remove_run(run: str | Run, runs: str | Path = RUNS) -> str:
    """The name of a run whose directory is gone now; RunError if there is none, or a process is writing it."""
    found = run if isinstance(run, Run) else find_run(run, Path(runs))
    _refuse_running(found)
    shutil.rmtree(found.path)
    return found.name


def rename_run(run: str | Run, name: str, runs: str | Path = RUNS) -> Run:
    """A run under another name in its folder; RunError if that is taken or no name, or a process is writing the run."""
    found = run if isinstance(run, Run) else find_run(run, Path(runs))
    _refuse_running(found)
    target = found.path.parent / name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == "latest":
        raise RunError("This cannot be the name of a run.", repr(name), "Use letters, digits, '.', '-' and '_'.")
    if target.exists():
        raise RunError(f"{target} exists already.", way_out="Choose another name.")
    pointer = found.path.parent / "latest"
    was_latest = pointer.is_file() and pointer.read_text().strip() == found.name
    found.path.rename(target)
    if was_latest:
        RunFiles(found.path.parent).write_text("latest", name + "\n")
    return Run(target)


def _refuse_running(run: Run) -> None:
    if run.read_state() == "running":
        raise RunError(f"{run.name} is still running.", run.path, "Wait for it, or stop it.")


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
