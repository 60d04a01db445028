"""The verbs of runs: made, gone on with, measured, asked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkeras.config import recipe as recipes
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.runs.directory import Run, find_resumable_run, open_run

RUNS = "runs"


def train(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, quick: bool = False, runs: str | Path = RUNS
) -> dict[str, Any]:
    """Carry out a recipe and measure the result.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Values by dotted key, such as `{"data.seed": 1}`.
        quick: Shrink the run to seconds; its figures then mean nothing.
        runs: Folder of the run directories.

    Returns:
        What `evaluate` returns: figures, and `path`, `phases` (seconds), `features`, `head`, `rejected` (a count).
        Where several processes train together, only the first one has these; the others return `worker`, `workers`,
        `devices` and `weights`, the SHA-256 of what was trained.
    """
    start = time.perf_counter()
    resolved = recipes.load_recipe(recipe, overrides, quick=quick)
    import_tensorflow_quietly()
    from tlkeras.training import train

    run = train.train(resolved, Path(runs), loading=time.perf_counter() - start)
    return _summarize_run(run, runs)


def _summarize_run(run: Run, runs: str | Path) -> dict[str, Any]:
    """Return a run's figures; of a process beside the chief only that it has done its part."""
    manifest = run.manifest
    if "worker" not in manifest:
        return evaluate(str(run.path), runs=runs)
    shutil.rmtree(run.path.parent)
    trained = manifest["finetuning"]
    return {"worker": manifest["worker"], **{key: trained[key] for key in ("workers", "devices", "weights")}}


def resume(run: str = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Go on with a run that was interrupted, killed or failed, and measure the result; returns what `train` does.

    Raises:
        RunError: There is no such run, or it has finished.
    """
    start = time.perf_counter()
    stopped = find_resumable_run(run, Path(runs))
    stopped.read_bytes("recipe.yaml")  # a run without its recipe is told as such
    import_tensorflow_quietly()
    from tlkeras.training import train

    resumed = train.resume(stopped, loading=time.perf_counter() - start)
    return _summarize_run(resumed, runs)


def evaluate(run: str = "latest", *, on: str | None = None, runs: str | Path = RUNS) -> dict[str, Any]:
    """Measure a finished run on its held-out images.

    Args:
        run: A name, a path or `latest`.
        on: Another source of labelled images to measure it on instead.
        runs: Folder of the run directories.

    Returns:
        What `tlkeras.evaluation.evaluate.evaluate` returns, or `tlkeras.evaluation.other_data.evaluate_on_dataset`.
    """
    opened = open_run(run, Path(runs))
    opened.read_bytes("recipe.yaml")  # a run without its recipe is told as such
    options = recipes.load_recipe(str(opened.path / "recipe.yaml")).evaluation
    if on is not None:
        import_tensorflow_quietly()
        from tlkeras.evaluation import other_data

        measured = other_data.evaluate_on_dataset(opened, on, resamples=options.bootstrap, seed=options.seed)
        return {**measured, "path": str(opened.path)}
    from tlkeras.evaluation import evaluate

    result = evaluate.evaluate(opened, resamples=options.bootstrap, seed=options.seed)
    manifest = opened.manifest
    return {
        **result,
        "path": str(opened.path),
        **{key: manifest.get(key) for key in ("phases", "features", "head", "rejected")},
    }


def predict(run: str, images: Sequence[str | Path], *, top: int = 3, runs: str | Path = RUNS) -> dict[str, Any]:
    """Classify image files and folders with a run's model; see `tlkeras.inference.predict.predict`."""
    import_tensorflow_quietly()
    from tlkeras.inference import predict

    return predict.predict(open_run(run, Path(runs)), images, top=top)


def predict_to_file(
    run: str, images: Sequence[str | Path], out: str | Path, *, runs: str | Path = RUNS
) -> dict[str, Any]:
    """Classify any number of images into a .csv or .parquet table; see `tlkeras.inference.predict_to_file.predict_to_file`."""
    import_tensorflow_quietly()
    from tlkeras.inference import predict_to_file

    return predict_to_file.predict_to_file(open_run(run, Path(runs)), images, Path(out))


def predict_in_shards(
    run: str, images: Sequence[str | Path], out: str | Path, *, runs: str | Path = RUNS, **options: Any
) -> dict[str, Any]:
    """Classify any number of images by several processes or machines, into a folder of Parquet files.

    Args:
        out: The job's folder; one that holds the same job, unfinished, is gone on with.
        crew: `engine` ("local" or "ray"), `workers`, `shard_size` and `verify`, see `tlkeras.inference.sharded.ExecutionOptions`.

    Returns:
        Counts and what failed, see `tlkeras.inference.sharded.run_job`.
    """
    import_tensorflow_quietly()
    from tlkeras.inference import sharded

    return sharded.predict_images(open_run(run, Path(runs)), images, Path(out), sharded.ExecutionOptions(**options))
