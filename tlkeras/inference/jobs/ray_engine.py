"""The engine for many machines: Ray Data gives shards to actors, which write the job's folder as processes do."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tlkeras.errors import MissingExtraError, TlkerasError, suggest
from tlkeras.inference.jobs.job import Job, open_job
from tlkeras.inference.jobs.worker import ShardProcessor, process_shard
from tlkeras.progress import progress_bar


class ShardActor:
    """Holds a model and computes the shards that Ray gives it and that are not done yet."""

    def __init__(self, folder: str, load_processor: Callable[[Job], ShardProcessor]):
        self._job = open_job(Path(folder))
        self._processor = load_processor(self._job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers of images of the shards, int64 [n], from their numbers, int64 [n], once they are settled."""
        return {"images": np.array([self._settle(shard) for shard in batch["shard"].tolist()], np.int64)}

    def _settle(self, shard: int) -> int:
        with self._job.claim(shard) as free:  # not free: Ray took another actor for dead that is alive
            while free and shard in self._job.list_pending():
                process_shard(self._job, self._processor, shard)
        return len(self._job.read_paths(shard))


ENGINES = ("local", "ray")  # where jobs and searches run: in processes of this machine, or in actors of a Ray cluster


def check_engine(name: str) -> None:
    """Make sure that an engine can be used; TlkerasError if it is unknown; MissingExtraError if it is not installed."""
    if name not in ENGINES:
        known = ", ".join(ENGINES)
        raise TlkerasError(f"Unknown engine {name!r}; it is one of {known}.", way_out=suggest(name, ENGINES))
    if name == "ray":
        require_ray()


def require_ray() -> None:
    """Make sure that Ray is installed; MissingExtraError if it is not installed."""
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
