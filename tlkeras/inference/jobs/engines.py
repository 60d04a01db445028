"""The engines of a job: processes of this machine, or Ray Data's actors on many machines."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tlkeras.data.pipeline import list_cores
from tlkeras.errors import MissingExtraError, RunError, TlkerasError, suggest
from tlkeras.inference.jobs.job import Job, open_job
from tlkeras.inference.jobs.worker import ShardProcessor, process_shard
from tlkeras.progress import progress_bar

ENGINES = ("local", "ray")  # where jobs and searches run: in processes of this machine, or in actors of a Ray cluster
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
    if job.list_pending():  # raise the error of a worker that failed: of its exit code, with its last lines
        number = max(range(count), key=lambda number: codes[number] != 0)
        lines = workers[number].log.read_text("utf-8", "replace").strip().splitlines()[-3:]
        plain = [kind for kind in TlkerasError.__subclasses__() if kind.__init__ is TlkerasError.__init__]
        kinds = {kind.exit_code: kind for kind in plain}
        received = f"exit codes {', '.join(map(str, codes))}; {' / '.join(lines) or 'no message'}"
        way_out = "Finished shards are kept. Run the same command again."
        raise kinds.get(codes[number], RunError)("Every worker of the job has failed.", received, way_out)


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


class ShardActor:
    """Holds a model and computes the shards that Ray gives it and that are not done yet."""

    def __init__(self, folder: str, load_processor: Callable[[Job], ShardProcessor]):
        self._job = open_job(Path(folder))
        self._processor = load_processor(self._job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers of images of the shards, int64 [n], from their numbers, int64 [n], once they are settled."""
        shards = batch["shard"].tolist()
        for shard in shards:
            with self._job.claim(shard) as free:  # not free: Ray took another actor for dead that is alive
                while free and shard in self._job.list_pending():
                    process_shard(self._job, self._processor, shard)
        return {"images": np.array([len(self._job.read_paths(shard)) for shard in shards], np.int64)}


def check_engine(name: str) -> None:
    """Raise a TlkerasError if an engine is unknown, and a MissingExtraError if it is not installed."""
    if name not in ENGINES:
        known = ", ".join(ENGINES)
        raise TlkerasError(f"Unknown engine {name!r}; it is one of {known}.", way_out=suggest(name, ENGINES))
    if name == "ray":
        require_ray()


def require_ray() -> None:
    """Raise a MissingExtraError if Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingExtraError("The engine ray", "ray")


def run_ray(job: Job, load_processor: Callable[[Job], ShardProcessor], workers: int) -> None:
    """Compute a job with `workers` actors of a Ray cluster: that of RAY_ADDRESS, else one started on this machine.

    An actor that dies is replaced and its shards are computed again. `load_processor` is importable on every machine.
    """
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, configure_logging=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        pending = job.list_pending()
        shards = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending) or 1)
        settled = shards.map_batches(
            ShardActor,
            fn_constructor_args=(str(job.folder.resolve()), load_processor),
            batch_size=1,
            concurrency=workers,
            **choose_resources(ray.cluster_resources(), workers),
        )
        with progress_bar("Shards", sum(len(job.read_paths(shard)) for shard in pending), "images") as advance:
            for batch in settled.iter_batches(batch_size=1):
                advance(int(batch["images"][0]))
    finally:
        if own:
            ray.shutdown()


def choose_resources(cluster: dict[str, float], workers: int) -> dict[str, int]:
    """Resources of an actor, by Ray's names: one GPU where the cluster has any, else an equal share of the cores."""
    if cluster.get("GPU"):
        return {"num_gpus": 1}
    return {"num_cpus": max(1, int(cluster.get("CPU", 1)) // workers)}
