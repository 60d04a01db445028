"""A search: trials are proposed, run and stored one by one, finalists are repeated, the best becomes a recipe."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkeras import progress
from tlkeras.config.recipe import Recipe, fingerprint, recipe_to_yaml
from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.config.trials import apply_values, longest_training
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.errors import RecipeError, RunError
from tlkeras.inference.jobs.engines import check_engine
from tlkeras.runs.directory import RUNS, Run, create_run, list_runs, record_failure
from tlkeras.training.builders import training_seed
from tlkeras.training.train import train
from tlkeras.tuning.objective import TrialRunner
from tlkeras.tuning.oracles import TrialScheduler
from tlkeras.tuning.report import TuningResult, report_search
from tlkeras.tuning.space import boundary_recipes, check_space
from tlkeras.tuning.trials import STATE, Trial, TrialLog, TrialResult
from tlkeras.tuning.workers import InProcessWorker, ProcessPoolWorkers, Workers

FOLDER = "tuning"
_GIVE_UP = 3  # failed trials in a row, with none that worked
_DEATHS = 2  # of the whole search in one and the same trial


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

    The same call resumes a search that was interrupted or killed. Errors are those of `search`.

    Args:
        recipe: As in `load_recipe`, with a section `tuning`.
        workers: Trials at the same time, each in a process of its own.
        engine: "local" (processes of this machine) or "ray" (actors of the Ray cluster at RAY_ADDRESS).
        train_best: Train the best trial's recipe as an ordinary run.
        runs: Folder of the run directories; the search is below its folder `tuning`.
    """
    finished = search(load_recipe_or_source(recipe, overrides)[0], Path(runs), workers, engine)
    result = report_search(finished)
    if not train_best:
        return result
    return replace(result, run=train(str(finished.path / "best.yaml"), runs=runs).name)


def search(recipe: Recipe, root: Path, workers: int = 1, engine: str = "local") -> Run:
    """The finished search of a recipe, a new one below `root`/tuning or the one that stopped there.

    After kill -9 the same call resumes: trials that ended are kept, those that were running are run again. Workers and
    engine are as in `tune`. The folder has `search.json`, `best.yaml` and `trials.csv`.
    RecipeError if the space is empty or impossible; TlkerasError if the engine is unknown or not installed; RunError
    with the reasons if every trial failed; ResourceError if the disk is full, where completed trials are kept.
    """
    tuning = check_space(recipe)
    check_engine(engine)
    run = _find_stopped(recipe, root / FOLDER) or create_run(root / FOLDER, recipe.name)
    with run.locked():
        if run.read_state() != "running" or (run.path / "recipe.yaml").exists():
            run.resume()
        run.write_text("recipe.yaml", recipe_to_yaml(recipe))
        run.update_manifest(recipe=fingerprint(recipe))
        with record_failure(run):
            _run_search(run, recipe, tuning, workers, engine)
    return run


def _run_search(run: Run, recipe: Recipe, tuning: TuningConfig, workers: int, engine: str) -> None:
    runner = TrialRunner()
    with run.phase("compute what is frozen"):
        boundaries = list(boundary_recipes(recipe))
        if not boundaries:
            raise RecipeError(f"No combination of values in the space of {recipe.name} makes a valid recipe.")
        runner.prepare(boundaries[0], boundaries)
    state, seed = SearchState(run, tuning, longest_training(recipe)), training_seed(recipe)
    with closing(_make_workers(run, recipe, runner, workers, engine)) as pool:
        with run.phase("trials"):
            _run_trials(state, pool)
        with run.phase("finalists"):
            _repeat_finalists(state, pool, seed)
    run.write_text("best.yaml", _format_best_recipe(recipe, state, seed))
    state.write_table()
    run.finish()


def _make_workers(run: Run, recipe: Recipe, runner: TrialRunner, workers: int, engine: str) -> Workers:
    if engine == "ray":
        from tlkeras.tuning.ray_workers import RayWorkers

        return RayWorkers(recipe, workers)
    return InProcessWorker(recipe, runner.score) if workers == 1 else ProcessPoolWorkers(run.path, workers)


class SearchState(TrialLog):
    """The trials of a running search and the scheduler that proposes them, stored after every change."""

    def __init__(self, run: Run, tuning: TuningConfig, epochs: int):
        super().__init__(run, tuning)
        self._scheduler = TrialScheduler(tuning, epochs, self.proposals)

    def next_trial(self, worker: str) -> Trial | None:
        """The next trial, marked as running; None where there is none at the moment."""
        if (proposed := self._scheduler.next(worker)) is None:
            return None
        known = self.trials.get(proposed.name, proposed)
        trial = self.trials[known.name] = replace(known, status="running", starts=known.starts + 1)
        self.write()
        return trial

    def record(self, trial: Trial, result: TrialResult) -> None:
        value, error = result.figures.get(self.tuning.objective, math.nan), result.error
        if error is None and not math.isfinite(value):
            error = f"its {self.tuning.objective} is {value}"
        if error is None:
            self.trials[trial.name] = replace(trial, status="completed", figures=result.figures)
            self._scheduler.complete(trial.name, value)
        else:
            self.trials[trial.name] = replace(trial, status="failed", error=error)
            self._scheduler.fail(trial.name, error)
        self.write()

    def record_repeat(self, name: str, seed: int, result: TrialResult) -> None:
        """Store the result of a trial with another seed; one that failed counts for nothing."""
        if result.error is None:
            trial = self.trials[name]
            self.trials[name] = replace(trial, repeats={**trial.repeats, str(seed): result.figures})
        self.write()

    def write(self) -> None:
        trials = [trial.to_dict() for trial in self.trials.values()]
        self.run.write_json(STATE, {"trials": trials, "proposals": self._scheduler.state()})


def _find_stopped(recipe: Recipe, root: Path) -> Run | None:
    """The newest search of exactly this recipe that stopped before its end, and that no process is running."""
    stopped = (run for run in reversed(list_runs(root)) if run.read_state() in ("killed", "interrupted", "failed"))
    return next((run for run in stopped if run.manifest.get("recipe") == fingerprint(recipe)), None)


def _run_trials(state: SearchState, workers: Workers) -> None:
    running: dict[str, Trial] = {}
    with progress.progress_bar("Trials", state.tuning.max_trials, "trials") as advance:
        advance(len(state.trials) - len(state.select("running")))
        while True:
            exhausted = _dispatch_trials(state, workers, running)
            if exhausted and not running:
                break
            worker, result = workers.next_result()
            state.record(running.pop(worker), result)
            advance(1)
            _check_failures(state)
    _check_failures(state, finished=True)


def _dispatch_trials(state: SearchState, workers: Workers, running: dict[str, Trial]) -> bool:
    """Submit trials to free workers; whether there are none left at the moment."""
    for worker in workers.worker_ids:
        while worker not in running:
            trial = state.next_trial(worker)
            if trial is None:
                return True
            if trial.starts > _DEATHS:
                state.record(trial, TrialResult(error=f"the search ended {_DEATHS} times in this trial"))
                continue
            running[worker] = trial
            workers.submit(worker, trial.values)
    return False


def _check_failures(state: SearchState, finished: bool = False) -> None:
    """Stop a search in which no trial works."""
    failed = state.select("failed")
    if state.select("completed") or not (finished or len(failed) >= _GIVE_UP):
        return
    reasons = list(dict.fromkeys(f"{dict(trial.values)}: {trial.error}" for trial in failed))
    raise RunError.from_problems(f"Every trial failed, {len(failed)} so far:", reasons[:_GIVE_UP] or ["there was none"])


def _repeat_finalists(state: SearchState, workers: Workers, first: int) -> None:
    """Run the best trials again with other seeds of training; the images keep their splits."""
    todo = [
        (trial, seed)
        for trial in state.completed()[: state.tuning.confirm_top]
        for seed in range(first + 1, first + state.tuning.confirm_seeds)
        if str(seed) not in trial.repeats
    ]
    running: dict[str, tuple[str, int]] = {}
    with progress.progress_bar("Finalists", len(todo), "trainings") as advance:
        while todo or running:
            for worker in workers.worker_ids:
                if worker not in running and todo:
                    trial, seed = todo.pop(0)
                    running[worker] = trial.name, seed
                    workers.submit(worker, {**trial.values, "training.seed": seed})
            worker, result = workers.next_result()
            state.record_repeat(*running.pop(worker), result)
            advance(1)


def _format_best_recipe(recipe: Recipe, state: SearchState, seed: int) -> str:
    """The recipe of the best trial as YAML, under a header with its score."""
    best, objective, path = state.rank()[0], state.tuning.objective, state.run.path
    found = best.summarise(objective)
    header = [
        f"# The best of {len(state.trials)} trials of {recipe.name}, by {objective} on the validation split.",
        "#",
        f"# Command   tlkeras train {path}/best.yaml",
        f"# Expect    validation {objective} {found.mean:.4f} ± {found.spread:.4f} ({found.seeds:g} seeds)",
        f"# Search    trial {best.name}, {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]
    values = {**best.values, "training.seed": seed}
    named = apply_values(recipe, values).model_copy(update={"name": f"{recipe.name}-best"})
    return "\n".join(header) + "\n" + recipe_to_yaml(named)
