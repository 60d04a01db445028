"""What a search found: a table, parallel coordinates, and which keys mattered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.errors import RecipeError
from tlkeras.runs.directory import RUNS, Run, find_run
from tlkeras.tuning.charts import draw_importance, draw_parallel
from tlkeras.tuning.search import Trial, TrialLog, summarise
from tlkeras.tuning.space import longest, require_tuning

FEWEST = 10  # trials, below which importance is guessing
_ROUNDS = 20


def report_tuning(search: str | Path = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """A search's trials, best first, drawn beside it.

    Returns:
        `path`, `state`, `objective`, `space`, `trials` (records, finalists first), `failed`, `importance` (share of the
        variance of the objective that each key explains, and the number of trials it is estimated from), `images`
        (paths), `best` (path of the recipe), `phases` (seconds).

    Raises:
        RunError: There is no such search, or its files are damaged.
    """
    run = find_run(str(search), Path(runs) / "tuning")
    if not (run.path / "search.json").exists():
        raise RecipeError("A report is of a search.", run.path, "Begin one with: tlkeras tune RECIPE")
    return report_search(run)


def report_search(run: Run) -> dict[str, Any]:
    """What `report_tuning` returns of a search; the images are written beside it.

    Raises:
        RunError: The search's files are damaged.
    """
    recipe = load_recipe(str(run.path / "recipe.yaml"))
    tuning = require_tuning(recipe)
    book = TrialLog(run, tuning, longest(recipe))
    ranked = book.rank()
    failed = [trial for trial in book.trials.values() if trial["status"] == "failed"]
    done = [trial for trial in book.trials.values() if trial["status"] == "completed"]
    scores = [trial["figures"][tuning.objective] for trial in done]
    importance = measure_importance(tuning.space, done, scores) if len(done) >= FEWEST else None
    images = []
    if done:
        axes = {key: [_read(trial, key) for trial in done] for key in tuning.space}
        with run.replacing("parallel.png") as aside:
            logarithmic = {key for key, dimension in tuning.space.items() if dimension.sampling == "log"}
            draw_parallel(axes, (tuning.objective, scores), aside, logarithmic, low=book.sign > 0)
        images.append(str(run.path / "parallel.png"))
    if importance:
        with run.replacing("importance.png") as aside:
            draw_importance(importance, f"share of the differences in {tuning.objective}, {len(done)} trials", aside)
        images.append(str(run.path / "importance.png"))
    best = run.path / "best.yaml"
    return {
        "path": str(run.path),
        "state": run.read_state(),
        "objective": tuning.objective,
        "space": list(tuning.space),
        "trials": [{**trial, "over_seeds": summarise(trial, tuning.objective)} for trial in ranked],
        "failed": failed,
        "importance": importance,
        "images": images,
        "best": str(best) if best.exists() else None,
        "phases": run.manifest.get("phases", {}),
    }


def measure_importance(space: dict[str, SearchDimension], trials: list[Trial], scores: list[float]) -> dict[str, float]:
    """Return how much each key mattered: permutation importance (Breiman, 2001) in a forest fitted to the trials.

    Scores count by their rank, so that one trial that diverged does not decide. The values add up to 1, or are all 0
    where nothing mattered. Few trials tell little, and keys that act together are each told alone.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    codes = np.column_stack([_encode([_read(trial, key) for trial in trials], space[key]) for key in space])
    ranks = np.argsort(np.argsort(scores)).astype(float)
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(codes, ranks)
    found = permutation_importance(forest, codes, ranks, n_repeats=_ROUNDS, random_state=0).importances_mean
    shares = np.maximum(found, 0)
    total = shares.sum()
    return {key: float(share / total) if total > 0 else 0.0 for key, share in zip(space, shares, strict=True)}


def _read(trial: Trial, key: str) -> Any:
    value = trial["values"].get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(value)


def _encode(values: list[Any], dimension: SearchDimension) -> np.ndarray:
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, float)
        return np.log(numbers) if dimension.sampling == "log" else numbers
    names = sorted(set(map(str, values)))
    return np.array([names.index(str(value)) for value in values], float)
