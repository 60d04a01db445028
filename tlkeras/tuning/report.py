"""The result of a search: its trials ranked, parallel coordinates, and the importance of each key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.config.trials import RecipeValues, require_tuning
from tlkeras.errors import RecipeError
from tlkeras.results import OPTIONAL, Result
from tlkeras.runs.directory import RUNS, Run, find_run
from tlkeras.tuning.charts import draw_importance, draw_parallel
from tlkeras.tuning.trials import STATE, SeedSummary, Trial, TrialLog

FEWEST = 10  # trials, below which importance is guessing
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class RankedTrial(Trial):
    """A completed trial with its objective over seeds."""

    over_seeds: SeedSummary


@dataclass(frozen=True)
class TuningResult(Result):
    """A search, finished or not."""

    path: str
    state: str  # as in `Run.read_state`
    objective: str  # "loss", "accuracy" or "roc_auc", on the validation split
    space: tuple[str, ...]  # the keys that were searched
    trials: tuple[RankedTrial, ...]  # completed trials, best first, finalists before the others
    failed: tuple[Trial, ...]
    # share of the differences in the objective that each key explains; None of few trials
    importance: Mapping[str, float] | None
    images: tuple[str, ...]  # paths of the charts
    best: str | None  # path of the best trial's recipe; None until the search is finished
    phases: Mapping[str, float]
    # name of the run of the best recipe; None where none was trained
    run: str | None = field(default=None, metadata=OPTIONAL)


def report_tuning(search: str | Path = "latest", *, runs: str | Path = RUNS) -> TuningResult:
    """The trials of a search (a name, a path or `latest`), best first, with charts in its folder.

    Raises:
        RunError: There is no such search, or its files are damaged.
    """
    run = find_run(str(search), Path(runs) / "tuning")
    if not (run.path / STATE).exists():
        raise RecipeError(f"{run.path} is not a search.", None, "Start one with: tlkeras tune RECIPE")
    return report_search(run)


def report_search(run: Run) -> TuningResult:
    """The trials of the search in a folder, best first, with charts there; RunError if its files are damaged."""
    tuning = require_tuning(load_recipe(str(run.path / "recipe.yaml")))
    log = TrialLog(run, tuning)
    done, objective = log.select("completed"), tuning.objective
    scores = [trial.score(objective) for trial in done]
    importance = measure_importance(tuning.space, [t.values for t in done], scores) if len(done) >= FEWEST else None
    images = [name for name, drawn in (("parallel.png", done), ("importance.png", importance)) if drawn]
    if done:
        axes = {key: [_read_value(trial.values, key) for trial in done] for key in tuning.space}
        with run.replacing("parallel.png") as temporary:
            logarithmic = {key for key, dimension in tuning.space.items() if dimension.sampling == "log"}
            draw_parallel(axes, (objective, scores), temporary, logarithmic, low=log.direction > 0)
    if importance:
        with run.replacing("importance.png") as temporary:
            draw_importance(importance, f"share of the differences in {objective}, {len(done)} trials", temporary)
    best = run.path / "best.yaml"
    return TuningResult(
        path=str(run.path),
        state=run.read_state(),
        objective=objective,
        space=tuple(tuning.space),
        trials=tuple(RankedTrial(**vars(trial), over_seeds=trial.summarise(objective)) for trial in log.rank()),
        failed=tuple(log.select("failed")),
        importance=importance,
        images=tuple(str(run.path / name) for name in images),
        best=str(best) if best.exists() else None,
        phases=run.manifest.get("phases", {}),
    )


def measure_importance(
    space: Mapping[str, SearchDimension], trials: Sequence[RecipeValues], scores: Sequence[float]
) -> dict[str, float]:
    """Importance of each key: permutation importance (Breiman, 2001) in a forest fitted to the trials.

    Scores count by their rank, so that one trial that diverged does not decide. The values add up to 1, or are all 0
    where no key matters. With few trials the estimate is rough; keys that act together are measured one by one.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    codes = np.column_stack([_encode([_read_value(trial, key) for trial in trials], space[key]) for key in space])
    ranks = np.argsort(np.argsort(scores)).astype(float)
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(codes, ranks)
    found = permutation_importance(forest, codes, ranks, n_repeats=_ROUNDS, random_state=0).importances_mean
    shares = np.maximum(found, 0)
    return dict(zip(space, (shares / (shares.sum() or 1.0)).tolist(), strict=True))


def _read_value(values: RecipeValues, key: str) -> Any:
    """A number as it is, anything else as text."""
    value = values.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(value)


def _encode(values: list[Any], dimension: SearchDimension) -> np.ndarray:
    """Numbers or their logarithms, or the positions of texts in their order, float64 [n]."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, float)
        return np.log(numbers) if dimension.sampling == "log" else numbers
    names = sorted(set(map(str, values)))
    return np.array([names.index(str(value)) for value in values], float)
