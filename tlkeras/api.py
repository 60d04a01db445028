"""The verbs: each a function, and each a command of the same name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkeras import recipe as recipes
from tlkeras.errors import RecipeError, ResourceError, RunError
from tlkeras.loading import load_tensorflow
from tlkeras.runs import Run, find_unfinished, list_runs, open_run

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
    """
    start = time.perf_counter()
    resolved = recipes.load_recipe(recipe, overrides, quick=quick)
    load_tensorflow()
    from tlkeras import training

    run = training.train(resolved, Path(runs), loading=time.perf_counter() - start)
    return evaluate(str(run.path), runs=runs)


def resume(run: str = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Go on with a run that was interrupted, killed or failed, and measure the result; returns what `train` does.

    Raises:
        RunError: There is no such run, or it has finished.
    """
    start = time.perf_counter()
    stopped = find_unfinished(run, Path(runs))
    stopped.read_bytes("recipe.yaml")  # a run without its recipe is told as such
    load_tensorflow()
    from tlkeras import training

    resumed = training.resume(stopped, loading=time.perf_counter() - start)
    return evaluate(str(resumed.path), runs=runs)


def show_schedule(recipe: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a recipe's fine-tuning would do: per stage its blocks, rates, parameters, and where it starts.

    Raises:
        RecipeError: The recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    load_tensorflow()
    from tlkeras import rehearsal

    return rehearsal.show_schedule(resolved)


def evaluate(run: str = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Measure a finished run on its held-out pictures; see `tlkeras.evaluation.metrics.evaluate`."""
    from tlkeras.evaluation import metrics

    opened = open_run(run, Path(runs))
    opened.read_bytes("recipe.yaml")  # a run without its recipe is told as such
    resolved = recipes.load_recipe(str(opened.path / "recipe.yaml"))
    result = metrics.evaluate(opened, resamples=resolved.evaluation.bootstrap, seed=resolved.evaluation.seed)
    manifest = opened.manifest
    return {
        **result,
        "path": str(opened.path),
        **{key: manifest.get(key) for key in ("phases", "features", "head", "rejected")},
    }


def predict(run: str, pictures: Sequence[str | Path], *, top: int = 3, runs: str | Path = RUNS) -> dict[str, Any]:
    """Classify picture files and folders with a run's model; see `tlkeras.prediction.predict`."""
    load_tensorflow()
    from tlkeras import prediction

    return prediction.predict(open_run(run, Path(runs)), pictures, top=top)


def export(run: str = "latest", to: str | Path | None = None, *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Write a run as the next SavedModel version below `to` (default: saved_models/RECIPE)."""
    opened = open_run(run, Path(runs))
    load_tensorflow()
    from tlkeras.exporting import saved_model

    target = Path(to) if to else Path("saved_models") / opened.name.rpartition("-")[0]
    return saved_model.export(opened, target)


def check(recipe: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Say what `train` would do and what is in its way, without training.

    Returns:
        `name`, `problems` (nothing may be trained while there is one), `notes`, and facts on pictures and cost.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    load_tensorflow()
    from tlkeras import rehearsal

    return rehearsal.check(resolved)


def list_recipes(*, runs: str | Path = RUNS) -> dict[str, Any]:
    """Return the shipped recipes with the first line of their receipts, and the runs made so far."""
    shipped = [
        {"name": name, "about": (recipes.read_receipt(path) or [""])[0]}
        for name, path in recipes.list_recipes().items()
    ]
    made = []
    for run in list_runs(Path(runs)):
        figures = _read_figures(run)
        made.append(
            {
                "name": run.name,
                "state": run.read_state(),
                "created": run.read_created(),
                "accuracy": figures.get("accuracy"),
                "roc_auc": figures.get("roc_auc"),
            }
        )
    return {"recipes": shipped, "runs": made}


def copy_recipe(recipe: str, target: str | Path) -> Path:
    """Copy a recipe, as installed, to a file of your own.

    Raises:
        RecipeError: The target exists.
        ResourceError: It cannot be written.
    """
    source, path = recipes.find_recipe(recipe), Path(target)
    if path.is_dir():
        path = path / source.name
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise RecipeError("A recipe is never overwritten.", path, "Choose another name or move the file.") from None
    except OSError as error:
        path.unlink(missing_ok=True)  # what a full disk left of it
        raise ResourceError("The target of a copy must be writable.", f"{path} ({error.strerror})") from None
    return path


def _read_figures(run: Run) -> dict[str, float | None]:
    """Return the value of each metric of a run; nothing where it was not measured or the file is damaged."""
    try:
        return {name: figure["value"] for name, figure in run.read_json("metrics.json")["metrics"].items()}
    except (RunError, KeyError, TypeError, AttributeError):
        return {}


def backbones(
    pattern: str = "*",
    *,
    weights: str | None = None,
    max_parameters: float | None = None,
    max_multiply_adds: float | None = None,
) -> list[dict[str, Any]]:
    """Return the catalog's rows that match a name pattern; both limits are in millions."""
    from dataclasses import asdict

    from tlkeras.backbones.catalog import list_backbones

    entries = list_backbones(
        pattern,
        weights=weights,
        max_parameters=None if max_parameters is None else int(max_parameters * 1e6),
        max_multiply_adds=None if max_multiply_adds is None else int(max_multiply_adds * 1e6),
    )
    return [asdict(entry) for entry in entries]


def show_backbone(name: str, *, size: int | None = None) -> dict[str, Any]:
    """Return the blocks of a backbone, found in its graph: output shape, bytes, parameters, multiply-adds."""
    load_tensorflow()
    from tlkeras.backbones.blocks import find_blocks, find_cuts
    from tlkeras.backbones.building import build

    model = build(name, size=size, weights="none")
    blocks = [
        {
            "index": block.index,
            "name": block.name,
            "shape": list(block.cut.shape),
            "bytes": block.cut.bytes,
            "parameters": block.parameters,
            "multiply_adds": block.multiply_adds,
            "layers": len(block.layers),
        }
        for block in find_blocks(model)
    ]
    return {"name": model.name, "size": model.input_shape[1], "cuts": len(find_cuts(model)), "blocks": blocks}


def list_cache() -> dict[str, Any]:
    """Return where the activation cache lies and what it holds."""
    from dataclasses import asdict

    from tlkeras.features.cache import ActivationCache

    cache = ActivationCache()
    spaces = [asdict(space) for space in cache.list_spaces()]
    return {"root": str(cache.root), "bytes": sum(space["bytes"] for space in spaces), "spaces": spaces}


def prune_cache(*, max_gb: float | None = None, unused_days: float | None = None) -> dict[str, Any]:
    """Remove activations: by size (least recently used first), by age, or both."""
    from dataclasses import asdict

    from tlkeras.features.cache import ActivationCache

    removed = ActivationCache().prune(
        max_bytes=None if max_gb is None else int(max_gb * 1e9),
        unused_seconds=None if unused_days is None else unused_days * 86_400,
    )
    return {"removed": [asdict(space) for space in removed], "bytes": sum(space.bytes for space in removed)}
