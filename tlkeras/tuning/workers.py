"""Who carries out trials: this process, or several of this machine that are started again when they die."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.pipeline import list_cores
from tlkeras.errors import TlkerasError
from tlkeras.tuning.space import apply_values

_GROWTH = 1 << 30  # bytes above the first trial at which a worker makes room for a fresh one


TrialResult = tuple[str, str, dict[str, Any]]
"""A worker, the name of the trial that it ended, and its figures or its `error`."""


class Workers(Protocol):
    """Carries out trials."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return those that can work at the same time."""
        ...

    def start(self, worker: str, trial: str, values: Mapping[str, Any]) -> None:
        """Begin a trial."""
        ...

    def wait(self) -> TrialResult | None:
        """Return the next trial that ends, or None where only the names have changed."""
        ...

    def close(self) -> None:
        """End what still works."""
        ...


class InProcessWorker:
    """This process; a trial is carried out when its result is asked for."""

    names: tuple[str, ...] = ("here",)

    def __init__(self, recipe: Recipe, evaluator: Any):
        self._recipe, self._evaluator = recipe, evaluator
        self._next: tuple[str, Mapping[str, Any]] | None = None

    def start(self, worker: str, trial: str, values: Mapping[str, Any]) -> None:
        """Keep the trial for `wait`."""
        self._next = (trial, values)

    def wait(self) -> TrialResult:
        """Carry out the trial."""
        if self._next is None:
            raise RuntimeError("no trial was started")
        (trial, values), self._next = self._next, None
        return "here", trial, run_trial(self._evaluator, self._recipe, values)

    def close(self) -> None:
        """Do nothing."""


class ProcessPoolWorkers:
    """Processes of this machine, each on its share of the cores.

    One that dies in a trial is replaced, and the trial fails with how it died and the last lines it wrote. One whose
    memory has grown by a GiB ends after its trial and is replaced.
    """

    def __init__(self, folder: Path, count: int):
        self._folder, cores = folder, list_cores()
        self._cores = {f"worker-{number}": cores[number::count] for number in range(count)}
        self.names: tuple[str, ...] = tuple(self._cores)
        self._ends: queue.Queue[TrialResult] = queue.Queue()
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self, worker: str, trial: str, values: Mapping[str, Any]) -> None:
        """Give a trial to a worker; a thread waits for its answer."""
        process = self._processes.get(worker)
        if process is None or process.poll() is not None:
            process = self._processes[worker] = self._spawn(worker)
        threading.Thread(target=self._ask, args=(process, worker, trial, dict(values)), daemon=True).start()

    def wait(self) -> TrialResult:
        """Return the next answer."""
        return self._ends.get()

    def close(self) -> None:
        """End the processes, which are idle unless the search was interrupted."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _spawn(self, worker: str) -> subprocess.Popen:
        cores = self._cores[worker]
        share = str(max(1, len(cores)))
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": share, "OMP_NUM_THREADS": share}
        with open(self._folder / f"{worker}.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tlkeras.tuning.worker_main", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
        return process

    def _ask(self, process: subprocess.Popen, worker: str, trial: str, values: dict[str, Any]) -> None:
        result = None
        try:
            if process.stdin and process.stdout:
                process.stdin.write(json.dumps(values) + "\n")
                process.stdin.flush()
                result = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            pass
        if result is None:
            result = {"error": self._tell_death(worker, process)}
        elif result.pop("recycle", False):
            process.wait()
        self._ends.put((worker, trial, result))

    def _tell_death(self, worker: str, process: subprocess.Popen) -> str:
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = (self._folder / f"{worker}.txt").read_text("utf-8", "replace").strip().splitlines()[-3:]
        return f"the worker process {how} (too little memory?); {' / '.join(lines) or 'it said nothing'}"


def run_trial(evaluator: Any, recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a trial, or its `error` in words.

    Raises:
        KeyboardInterrupt: The user wants to stop.
    """
    try:
        return evaluator.score(apply_values(recipe, values))
    except TlkerasError as error:
        return {"error": str(error)}
    except Exception as error:  # a trial may ask for anything: the search goes on and tells
        return {"error": f"{type(error).__name__}: {error}"}


def serve_trials(folder: Path) -> int:
    """Be one of the processes: read values, a line of JSON per trial, and answer each with a line."""
    results, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    from tlkeras.lazy_tensorflow import import_tensorflow_quietly

    import_tensorflow_quietly()
    from tlkeras.tuning.objective import TrialRunner

    recipe, evaluator, first = load_recipe(str(folder / "recipe.yaml")), TrialRunner(), 0
    for line in sys.stdin:
        result: dict[str, Any] = run_trial(evaluator, recipe, json.loads(line))
        used = _read_memory()
        first = first or used
        result["recycle"] = used > first + _GROWTH
        results.write(json.dumps(result) + "\n")
        results.flush()
        if result["recycle"]:
            return 0
    return 0


def _read_memory() -> int:
    """Return the resident bytes of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
