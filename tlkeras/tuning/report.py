"""The result of a search: its trials ranked, parallel coordinates, and the importance of each key."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.config.trials import RecipeValues, require_tuning
from tlkeras.errors import RecipeError
from tlkeras.plotting.charts import COLOURS, FAINT, open_figure
from tlkeras.results import OPTIONAL, Result
from tlkeras.runs.directory import RUNS, Run, find_run
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

    RunError if there is no such search, or its files are damaged.
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
        with run.replacing("parallel.png") as temporary:
            _draw_parallel(log, done, temporary)
    if importance:
        with run.replacing("importance.png") as temporary:
            _draw_importance(importance, f"share of the differences in {objective}, {len(done)} trials", temporary)
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

    columns = {key: [_read_value(trial, key) for trial in trials] for key in space}
    codes = np.column_stack([_encode(values, space[key].sampling == "log")[0] for key, values in columns.items()])
    ranks = np.argsort(np.argsort(scores)).astype(float)
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(codes, ranks)
    found = permutation_importance(forest, codes, ranks, n_repeats=_ROUNDS, random_state=0).importances_mean
    shares = np.maximum(found, 0)
    return dict(zip(space, (shares / (shares.sum() or 1.0)).tolist(), strict=True))


def _read_value(values: RecipeValues, key: str) -> Any:
    """A number as it is, anything else as text."""
    value = values.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(value)


def _encode(values: Sequence[Any], logarithmic: bool) -> tuple[np.ndarray, list[str]]:
    """Numbers or their logarithms, and []; or the positions of texts, and these in order; float64 [n]."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, float)
        return np.log(numbers) if logarithmic else numbers, []
    names = sorted(set(map(str, values)))
    return np.array([names.index(str(value)) for value in values], float), names


def _draw_parallel(log: TrialLog, trials: Sequence[Trial], path: Path) -> None:
    """Draw a line per trial across an axis per key and one of the score, which colours it; the best is drawn last."""
    objective, space = log.tuning.objective, log.tuning.space
    scores = [trial.score(objective) for trial in trials]
    columns = {key: ([_read_value(one.values, key) for one in trials], space[key].sampling == "log") for key in space}
    columns[objective] = scores, False
    placed = [_place_on_axis(values, logarithmic) for values, logarithmic in columns.values()]
    goodness = np.argsort(np.argsort(-log.direction * np.array(scores))) / max(1, len(scores) - 1)
    with open_figure(path, (2.2 + 1.7 * len(columns), 5.0)) as figure:
        axis = figure.subplots()
        heights = np.array([heights for heights, _ in placed]).T
        for trial in np.argsort(goodness):
            best = goodness[trial] == goodness.max()
            colour = COLOURS[1] if best else _shade(float(goodness[trial]))
            width, order = (2.4, 3) if best else (1.0, 2)
            axis.plot(range(len(columns)), heights[trial], color=colour, linewidth=width, zorder=order)
        for number, (_, ticks) in enumerate(placed):
            axis.axvline(number, color=FAINT, linewidth=0.8)
            for height, text in ticks:
                axis.annotate(text, (number, height), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axis.set_xticks(range(len(columns)), [key.replace(".", ".\n") for key in columns])
        axis.set_xlim(-0.2, len(columns) - 0.4)
        axis.set_yticks([])
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.set_title(f"{len(scores)} trials, by {objective}: dark is better, orange the best", loc="left", fontsize=9)


def _draw_importance(shares: Mapping[str, float], label: str, path: Path) -> None:
    """Draw a bar per key with its share, 0 to 1, the longest on top."""
    ranked = sorted(shares.items(), key=lambda item: item[1])
    with open_figure(path, (7.0, 1.2 + 0.4 * len(ranked))) as figure:
        axis = figure.subplots()
        bars = axis.barh([key for key, _ in ranked], [share for _, share in ranked], color=COLOURS[0], height=0.6)
        axis.bar_label(bars, [f"{share:.0%}" for _, share in ranked], padding=3)
        axis.set_xlim(0, max(0.1, 1.15 * max(share for _, share in ranked)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel(label)


def _place_on_axis(values: Sequence[Any], logarithmic: bool) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights of the values, 0 to 1, and the ticks of the axis, each a height and a text; texts are spread evenly."""
    codes, names = _encode(values, logarithmic)
    if names:
        return (codes + 0.5) / len(names), [((number + 0.5) / len(names), name) for number, name in enumerate(names)]
    least, most = codes.min(), codes.max()
    span = most - least or 1.0
    marks = np.linspace(least, most, 5) if most > least else [least]
    ticks = [(float((mark - least) / span), f"{math.exp(mark) if logarithmic else mark:.3g}") for mark in marks]
    return (codes - least) / span, ticks


def _shade(goodness: float) -> tuple[float, float, float]:
    """A blue in red, green and blue, the darker the better."""
    return (0.80 * (1 - goodness), 0.88 - 0.43 * goodness, 0.95 - 0.25 * goodness)
