"""A search over a recipe, and the run of its best trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.runs.directory import RUNS
from tlkeras.training.train import train
from tlkeras.tuning.report import TuningResult, report_search
from tlkeras.tuning.search import search


def tune(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    engine: str = "local",
    train_best: bool = True,
    runs: str | Path = RUNS,
) -> TuningResult:
    """The trials of a recipe's `tuning.space`, best first on the validation split, and the run of the best.

    The same call resumes a search that was interrupted or killed.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a `Recipe`, with a section `tuning`.
        overrides: Values by dotted key.
        workers: Trials at the same time, each in a process of its own.
        engine: "local" (processes of this machine) or "ray" (actors of the Ray cluster at RAY_ADDRESS).
        train_best: Train the best trial's recipe as an ordinary run.
        runs: Folder of the run directories; the search is below its folder `tuning`.

    Raises:
        RecipeError: The space is empty or impossible.
        RunError: Every trial failed.
    """
    finished = search(load_recipe(recipe, overrides), Path(runs), workers, engine)
    result = report_search(finished)
    if not train_best:
        return result
    return replace(result, run=train(str(finished.path / "best.yaml"), runs=runs).name)
