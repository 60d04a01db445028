"""The engine for many machines: Ray Data hands shards to actors, which keep the same contract as local processes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.errors import MissingExtraError, TlkerasError, suggest
from tlkeras.inference.jobs.job import Job, open_job
from tlkeras.inference.jobs.worker import ShardProcessor, process_shard
from tlkeras.progress import progress_bar


class ShardActor:
    """Holds a model and does the shards that Ray gives it; what is there already is not done again.

    Args:
        folder: The job's, as the actor's machine sees it.
        open_work: From a job to what computes it; it refuses where this machine would compute something else.
    """

    def __init__(self, folder: str, open_work: Callable[[Job], ShardProcessor]):
        self._job = open_job(Path(folder))
        self._work = open_work(self._job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Do a batch of shard numbers, int64 [n]; return how many images of each are settled, int64 [n]."""
        return {"images": np.array([self._do(shard) for shard in batch["shard"].tolist()], np.int64)}

    def _do(self, shard: int) -> int:
        with self._job.claim(shard) as free:  # taken: Ray believed another actor dead, and it is not
            while free and shard in self._job.list_pending():
                process_shard(self._job, self._work, shard)
        return len(self._job.read_paths(shard))


ENGINES = ("local", "ray")
"""What jobs and searches run on: processes of this machine, or actors of a Ray cluster."""


def check_engine(name: str) -> None:
    """Make sure that work can be given to an engine.

    Raises:
        TlkerasError: It is unknown.
        MissingExtraError: It is not installed.
    """
    if name not in ENGINES:
        raise TlkerasError(f"An engine is one of {', '.join(ENGINES)}.", repr(name), suggest(name, ENGINES))
    if name == "ray":
        require_ray()


def require_ray() -> None:
    """See to it that Ray is there.

    Raises:
        MissingExtraError: It is not installed.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("The engine ray", "ray")


def run_ray(
    job: Job, open_work: Callable[[Job], ShardProcessor], workers: int, options: dict[str, Any] | None = None
) -> None:
    """Do a job with so many actors of a Ray cluster: that of RAY_ADDRESS, else one started on this machine.

    An actor that dies is replaced and its shards are done again.

    Args:
        open_work: As in `ShardActor`; importable by name on every machine.
        options: What an actor needs, such as {"num_gpus": 1}; by default one GPU where the cluster has any, else as
            many cores as each of the workers can have.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    require_ray()
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
            fn_constructor_args=(str(job.folder.resolve()), open_work),
            batch_size=1,
            concurrency=workers,
            **(options or choose_resources(ray.cluster_resources(), workers)),
        )
        with progress_bar("Shards", sum(len(job.read_paths(shard)) for shard in pending), "images") as advance:
            for batch in settled.iter_batches(batch_size=1):
                advance(int(batch["images"][0]))
    finally:
        if own:
            ray.shutdown()


def choose_resources(cluster: dict[str, float], workers: int) -> dict[str, Any]:
    """Return what an actor asks of a cluster: one GPU where there are any, else its share of the cores."""
    if cluster.get("GPU"):
        return {"num_gpus": 1}
    return {"num_cpus": max(1, int(cluster.get("CPU", 1)) // workers)}
