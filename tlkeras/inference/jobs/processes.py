"""The engine for one machine: processes that take shards from the job's folder, and a parent that restarts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tlkeras.data.pipeline import list_cores
from tlkeras.errors import RunError, TlkerasError
from tlkeras.inference.jobs.job import Job
from tlkeras.progress import progress_bar

_STARTS = 3  # of a worker without a shard done in between
_PAUSE = 0.2


@dataclass
class WorkerProcess:
    """A Python process that is started again when it dies."""

    arguments: Sequence[str]  # of Python
    log: Path  # file of its standard error
    cores: Sequence[int]  # cores it may run on; empty: any
    starts: int = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self) -> None:
        self.starts += 1
        with open(self.log, "wb" if self.starts == 1 else "ab") as log:
            command = [sys.executable, *self.arguments]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, self.cores)

    def poll(self, progressed: bool) -> int | None:
        """Exit code if it has ended for good; one that died is started again, anew if a shard was done meanwhile."""
        code = self.process.poll() if self.process else 0
        if progressed:
            self.starts = 1
        # below 70: an error that the user has to mend first
        if code is None or 0 <= code < 70 or self.starts >= _STARTS:
            return code
        self.start()
        return None

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def run_processes(job: Job, arguments: Sequence[str], count: int) -> None:
    """Compute a job with `count` processes, each on its share of the cores; TlkerasError if all of them failed."""
    cores = list_cores()
    (job.folder / "logs").mkdir(exist_ok=True)
    workers = [
        WorkerProcess(arguments, job.folder / "logs" / f"worker-{os.getpid()}-{number}.txt", cores[number::count])
        for number in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        codes = _watch(job, workers)
    finally:
        for worker in workers:
            worker.stop()
    if job.list_pending():
        _raise_worker_error(workers, codes)


def _watch(job: Job, workers: Sequence[WorkerProcess]) -> list[int]:
    """Exit codes of the workers once all have ended; the progress is shown meanwhile."""
    seen = set(job.list_done())
    settled = sum(job.read_record(shard).images for shard in seen)
    with progress_bar("Shards", job.images - settled, "images") as advance:
        while True:
            new = set(job.list_done()) - seen
            for shard in new:
                advance(job.read_record(shard).images)
            seen |= new
            codes = [worker.poll(bool(new)) for worker in workers]
            if all(code is not None for code in codes):
                return [code or 0 for code in codes]
            time.sleep(_PAUSE)


def _raise_worker_error(workers: Sequence[WorkerProcess], codes: Sequence[int]) -> None:
    """Raise the error of a worker that failed: of its exit code, with its last lines."""
    number = max(range(len(codes)), key=lambda number: codes[number] != 0)
    lines = workers[number].log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    kinds = {kind.exit_code: kind for kind in TlkerasError.__subclasses__() if kind.__init__ is TlkerasError.__init__}
    raise kinds.get(codes[number], RunError)(
        "Every worker of the job has failed.",
        f"exit codes {', '.join(map(str, codes))}; {' / '.join(lines) or 'no message'}",
        "Finished shards are kept. Run the same command again.",
    )
