"""Workers of a search: this process, or several of this machine that are replaced when they die."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.trials import RecipeValues, apply_values
from tlkeras.data.pipeline import list_cores
from tlkeras.errors import TlkerasError
from tlkeras.tuning.trials import TrialResult

_GROWTH = 1 << 30  # bytes of memory above the first trial at which a worker is replaced by a fresh one

Score = Callable[[Recipe], Mapping[str, float]]  # from a recipe to its figures on the validation split


class Workers(Protocol):
    """Runs trials, one at a time in each worker."""

    worker_ids: tuple[str, ...]

    def submit(self, worker: str, values: RecipeValues) -> None:
        """Start a trial in a worker that is free."""

    def next_result(self) -> tuple[str, TrialResult]:
        """The worker whose trial ends next, and the result."""

    def close(self) -> None:
        """End all workers."""


class InProcessWorker:
    """Runs trials synchronously in this process, when `next_result` is called."""

    worker_ids: tuple[str, ...] = ("here",)

    def __init__(self, recipe: Recipe, score: Score):
        self._recipe, self._score = recipe, score
        self._submitted: list[RecipeValues] = []

    def submit(self, worker: str, values: RecipeValues) -> None:
        self._submitted.append(values)

    def next_result(self) -> tuple[str, TrialResult]:
        return "here", run_trial(self._score, self._recipe, self._submitted.pop())

    def close(self) -> None:
        pass


class ProcessPoolWorkers:
    """Processes of this machine, each on its share of the cores.

    One that dies in a trial is replaced, and the trial fails with its exit code and the last lines of its log. One
    whose memory has grown by a GiB ends after its trial and is replaced. The folder is the search's.
    """

    def __init__(self, folder: Path, count: int):
        self._folder, cores = folder, list_cores()
        self._cores = {f"worker-{number}": cores[number::count] for number in range(count)}
        self.worker_ids: tuple[str, ...] = tuple(self._cores)
        self._results: queue.Queue[tuple[str, TrialResult]] = queue.Queue()
        self._processes: dict[str, subprocess.Popen] = {}

    def submit(self, worker: str, values: RecipeValues) -> None:
        process = self._processes.get(worker)
        if process is None or process.poll() is not None:
            process = self._processes[worker] = self._spawn(worker)
        threading.Thread(target=self._exchange, args=(process, worker, dict(values)), daemon=True).start()

    def next_result(self) -> tuple[str, TrialResult]:
        return self._results.get()

    def close(self) -> None:
        """Kill the processes, which are idle unless the search was interrupted."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _spawn(self, worker: str) -> subprocess.Popen:
        cores = self._cores[worker]
        share = str(max(1, len(cores)))
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": share, "OMP_NUM_THREADS": share}
        with open(self._log(worker), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tlkeras.tuning.workers", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
        return process

    def _exchange(self, process: subprocess.Popen, worker: str, values: dict[str, object]) -> None:
        try:
            process.stdin.write(json.dumps(values) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            reply = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, ValueError):
            reply = {"error": self._describe_death(worker, process), "recycle": False}
        if reply.pop("recycle"):
            process.wait()
        self._results.put((worker, TrialResult(**reply)))

    def _describe_death(self, worker: str, process: subprocess.Popen) -> str:
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = self._log(worker).read_text("utf-8", "replace").strip().splitlines()[-3:]
        return f"the worker process {how} (too little memory?); {' / '.join(lines) or 'its log is empty'}"

    def _log(self, worker: str) -> Path:
        return self._folder / f"{worker}.txt"


def run_trial(score: Score, recipe: Recipe, values: RecipeValues) -> TrialResult:
    """The result of a trial, failed or not; KeyboardInterrupt if the user wants to stop."""
    try:
        return TrialResult(score(apply_values(recipe, values)))
    except TlkerasError as error:
        return TrialResult(error=str(error))
    except Exception as error:  # of any kind: the search continues without this trial
        return TrialResult(error=f"{type(error).__name__}: {error}")


def serve_trials(folder: Path) -> int:
    """Run trials as one of the processes: values on each line of standard input, a result on each line of output."""
    results, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    from tlkeras.lazy_tensorflow import import_tensorflow_quietly

    import_tensorflow_quietly()
    from tlkeras.tuning.objective import TrialRunner

    recipe, runner, first = load_recipe(str(folder / "recipe.yaml")), TrialRunner(), 0
    for line in sys.stdin:
        result = run_trial(runner.score, recipe, json.loads(line))
        used = _read_memory()
        first = first or used
        recycle = used > first + _GROWTH
        results.write(json.dumps({**asdict(result), "recycle": recycle}) + "\n")
        results.flush()
        if recycle:
            return 0
    return 0


def _read_memory() -> int:
    """Resident bytes of this process; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(serve_trials(Path(sys.argv[1])))
