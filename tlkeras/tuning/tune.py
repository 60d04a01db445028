"""A search over a recipe, and the run of its best trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.runs.directory import RUNS
from tlkeras.training.train import train
from tlkeras.tuning.objective import TrialRunner
from tlkeras.tuning.remote_workers import read_place, serve_chief
from tlkeras.tuning.report import report_tuning
from tlkeras.tuning.search import check_space, prepare, search


def tune(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    engine: str = "local",
    train_best: bool = True,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """What searching a recipe's `tuning.space` found best on the validation split, as a run and a recipe.

    Given again after an interruption or kill -9, it goes on where it stopped.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file, with a section `tuning`.
        overrides: Values by dotted key.
        workers: Trials at the same time, each in a process of its own.
        engine: "local" (processes of this machine) or "ray" (actors of the Ray cluster at RAY_ADDRESS).
        train_best: Carry out the best trial's recipe as an ordinary run, which is measured on the test split.
        runs: Folder of the run directories; the search is below its folder `tuning`.

    Returns:
        What `report_tuning` returns, and `run`: what `train` returns of the best recipe. Of a worker of a search over
        machines (KerasTuner's environment variables): `worker`, its name, `trials` and `failed`.
    """
    resolved = load_recipe(recipe, overrides)
    check_space(resolved)
    place = read_place()
    if place is not None and not place.is_chief:
        prepare(resolved, evaluator := TrialRunner())
        return serve_chief(place, resolved, evaluator)
    folder = search(resolved, Path(runs), workers, place, engine).path
    result = report_tuning(str(folder), runs=runs)
    if train_best:
        result["run"] = train(str(folder / "best.yaml"), runs=runs).name
    return result
