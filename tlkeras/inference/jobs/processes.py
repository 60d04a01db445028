"""The engine for one machine: processes that take shards from the job's folder, and one that looks after them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tlkeras.data.pipeline import list_cores
from tlkeras.errors import RunError, TlkerasError
from tlkeras.inference.jobs.job import Job
from tlkeras.progress import progress_bar

_STARTS = 3  # of a worker without a shard done in between
_PAUSE = 0.2


@dataclass
class WorkerProcess:
    """A process, started again when it dies.

    Attributes:
        command: What is run.
        log: Where its standard error goes.
        cores: What it may run on; empty: any.
    """

    command: Sequence[str]
    log: Path
    cores: Sequence[int]
    starts: int = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process."""
        self.starts += 1
        with open(self.log, "wb" if self.starts == 1 else "ab") as log:
            self.process = _spawn(self.command, log)
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, self.cores)

    def look(self, progressed: bool) -> int | None:
        """Return the exit code once the process has ended for good; one that died is started again."""
        code = self.process.poll() if self.process else 0
        if progressed:
            self.starts = 1
        if code is None or code == 0 or 0 < code < 70:  # an error in words: to start again would not help
            return code
        if self.starts >= _STARTS:
            return code
        self.start()
        return None


def run_processes(job: Job, command: Sequence[str], count: int) -> None:
    """Do a job with so many processes, each on its share of this process's cores.

    Raises:
        TlkerasError: Every worker ended with an error, and there is work left; the last lines of one are told.
    """
    cores = list_cores()
    shares = [cores[number::count] for number in range(count)]
    (job.folder / "logs").mkdir(exist_ok=True)
    workers = [
        WorkerProcess(command, job.folder / "logs" / f"worker-{os.getpid()}-{number}.txt", share)
        for number, share in enumerate(shares)
    ]
    try:
        for worker in workers:
            worker.start()
        codes = _watch(job, workers)
    finally:
        for worker in workers:
            if worker.process and worker.process.poll() is None:
                worker.process.terminate()
        for worker in workers:
            if worker.process:
                worker.process.wait()
    if job.list_pending():
        _raise(workers, codes)


def _watch(job: Job, workers: Sequence[WorkerProcess]) -> list[int]:
    """Show the progress until all workers have ended; return their exit codes."""
    seen = set(job.list_done())
    size = [job.read_record(shard) for shard in seen]
    known = sum(record["rows"] + record["rejected"] for record in size)
    with progress_bar("Shards", job.images - known, "images") as advance:
        while True:
            new = set(job.list_done()) - seen
            for shard in new:
                record = job.read_record(shard)
                advance(record["rows"] + record["rejected"])
            seen |= new
            codes = [worker.look(bool(new)) for worker in workers]
            if all(code is not None for code in codes):
                return [code or 0 for code in codes]
            time.sleep(_PAUSE)


def _raise(workers: Sequence[WorkerProcess], codes: Sequence[int]) -> None:
    """Raise what stopped the workers, with the exit code that they ended with."""
    place = max(range(len(codes)), key=lambda number: codes[number] != 0)
    lines = workers[place].log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    kinds = {kind.exit_code: kind for kind in TlkerasError.__subclasses__() if kind.__init__ is TlkerasError.__init__}
    kind = kinds.get(codes[place], RunError)
    raise kind(
        "A job goes on as long as one worker lives.",
        f"exit codes {', '.join(map(str, codes))}; {' / '.join(lines) or 'no message'}",
        "What was done is kept; give the command again to go on.",
    )


def _spawn(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=log)
