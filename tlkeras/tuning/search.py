"""A search: trials proposed, carried out and kept one by one; finalists repeated; the best told as a recipe."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras import progress
from tlkeras.config.recipe import Recipe, fingerprint, recipe_to_yaml
from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.errors import RecipeError, ResourceError, RunError
from tlkeras.inference.jobs.ray_engine import check_engine
from tlkeras.runs.directory import Run, create_run, list_runs
from tlkeras.tuning.objective import TrialRunner
from tlkeras.tuning.oracles import TrialScheduler
from tlkeras.tuning.remote_workers import Machines, Place, identify
from tlkeras.tuning.space import apply_values, boundary_recipes, list_problems, longest, require_tuning
from tlkeras.tuning.workers import InProcessWorker, ProcessPoolWorkers, Workers

STATE = "search.json"
FOLDER = "tuning"
_GIVE_UP = 3  # failed trials in a row, with none that worked
_DEATHS = 2  # of the whole search in one and the same trial

Trial = dict[str, Any]


def check_space(recipe: Recipe) -> TuningConfig:
    """Return the section `tuning` of a recipe whose every value makes a valid recipe.

    Raises:
        RecipeError: There is none, or values are refused; all problems are named.
    """
    tuning = require_tuning(recipe)
    problems = list_problems(recipe)
    if recipe.finetuning and tuning.algorithm == "hyperband" and recipe.finetuning.stages is None:
        problems.append("hyperband divides epochs, which finetuning.stages: auto does not say: write the stages down")
    if problems:
        raise RecipeError.from_problems(f"The space of {recipe.name} cannot be searched:", problems)
    return tuning


def search(recipe: Recipe, root: Path, workers: int = 1, place: Place | None = None, engine: str = "local") -> Run:
    """Carry out a search below `root`/tuning, or go on with the one that stopped there.

    After kill -9 the same call goes on: trials that ended are kept, those that were running are done again.

    Args:
        recipe: With a section `tuning`.
        root: Folder of the run directories.
        workers: Trials at the same time; more than one are processes of their own.
        place: That of a chief whose workers are other machines.
        engine: "local", or "ray" for actors of a Ray cluster.

    Returns:
        The search's folder: `search.json`, `best.yaml`, `trials.csv`.

    Raises:
        RecipeError: The space is empty or impossible.
        TlkerasError: The engine is unknown, or not installed.
        RunError: Every trial failed; the reasons are told.
        ResourceError: The disk is full; what was done is kept.
    """
    tuning = check_space(recipe)
    check_engine(engine)
    run = _find_stopped(recipe, root / FOLDER) or create_run(root / FOLDER, recipe.name)
    with run.locked():
        _begin(run, recipe)
        _guard(
            run, lambda: _run_search(run, recipe, tuning, partial(_make_workers, run, recipe, workers, place, engine))
        )
    return run


def _guard(run: Run, work: Callable[[], None]) -> None:
    """Do the work; write into the manifest how it ended if it was not the end."""
    try:
        work()
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(ResourceError):  # a full disk must not hide what went wrong first
            run.update_manifest(state=state, phases=run.phases, error=f"{type(error).__name__}: {error}")
        raise


def _make_workers(
    run: Run, recipe: Recipe, workers: int, place: Place | None, engine: str, evaluator: TrialRunner
) -> Workers:
    """Return who carries out the trials."""
    if place is not None:
        return Machines(place, identify(recipe))
    if engine == "ray":
        from tlkeras.tuning.ray_workers import RayWorkers

        return RayWorkers(recipe, workers)
    return InProcessWorker(recipe, evaluator) if workers == 1 else ProcessPoolWorkers(run.path, workers)


def _run_search(run: Run, recipe: Recipe, tuning: TuningConfig, hire: Callable[[TrialRunner], Workers]) -> None:
    evaluator = TrialRunner()
    with run.phase("compute what is frozen"):
        prepare(recipe, evaluator)
    options = hire(evaluator)
    book = TrialLog(run, tuning, longest(recipe))
    with closing(options):
        with run.phase("trials"):
            _carry_out(book, options)
        with run.phase("finalists"):
            _repeat_finalists(book, options, recipe.training.seed)
    best = book.rank()[0]
    values = {**best["values"], "training.seed": recipe.training.seed}
    run.write_text("best.yaml", _write_best_recipe(recipe, run, best, values))
    book.write_table()
    run.finish()


def prepare(recipe: Recipe, evaluator: TrialRunner) -> None:
    """Compute what is frozen in all trials, in one pass over the images.

    Raises:
        RecipeError: No combination of the space is a valid recipe.
    """
    corners = list(boundary_recipes(recipe))
    if not corners:
        raise RecipeError("Some combination of the space must be a valid recipe.", "none", None)
    evaluator.prepare(corners[0], corners)


class TrialLog:
    """What is known of a search: written whole after every trial.

    Attributes:
        trials: One record per trial in the order of their start: `name`, `values`, `status` (running, completed,
            failed), `figures`, `error`, `starts`, `repeats` (figures with other seeds, by seed).
    """

    def __init__(self, run: Run, tuning: TuningConfig, epochs: int):
        self.run, self.tuning = run, tuning
        self.trials: dict[str, Trial] = {}
        state = None
        if (run.path / STATE).exists():
            kept = run.read_json(STATE)
            self.trials, state = {trial["name"]: trial for trial in kept["trials"]}, kept["proposals"]
        self.proposals = TrialScheduler(tuning, epochs, state)

    @property
    def sign(self) -> float:
        """What makes less better: 1 for a loss, -1 for what should be high."""
        return 1.0 if self.tuning.objective == "loss" else -1.0

    def propose(self, worker: str) -> Trial | None:
        """Return the next trial, marked as running; None where there is none now."""
        proposal = self.proposals.next(worker)
        if proposal is None:
            return None
        name, values = proposal
        trial = self.trials.setdefault(name, {"name": name, "values": values, "starts": 0, "repeats": {}})
        trial |= {"status": "running", "starts": trial["starts"] + 1}
        self.write()
        return trial

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """Write down how a trial ended."""
        value = result.get(self.tuning.objective, math.nan)
        error = result.get("error")
        if error is None and not math.isfinite(value):
            error = f"its {self.tuning.objective} is {value}"
        if error is not None:
            trial |= {"status": "failed", "error": error}
            self.proposals.fail(trial["name"], error)
        else:
            trial |= {"status": "completed", "figures": result}
            self.proposals.complete(trial["name"], value)
        self.write()

    def write(self) -> None:
        """Write all that is known; whole or not at all."""
        self.run.write_json(STATE, {"trials": list(self.trials.values()), "proposals": self.proposals.state()})

    def completed(self) -> list[Trial]:
        """Return the trials that have figures, best first; of Hyperband those of the last round reached."""
        done = [trial for trial in self.trials.values() if trial["status"] == "completed"]
        return sorted(done, key=lambda trial: self.sign * trial["figures"][self.tuning.objective])

    def rank(self) -> list[Trial]:
        """Return the completed trials, finalists first, by the mean over their seeds."""
        done = self.completed()
        finalists = [trial for trial in done if trial["repeats"]]
        ranked = sorted(finalists, key=lambda trial: self.sign * summarise(trial, self.tuning.objective)["mean"])
        return ranked + [trial for trial in done if not trial["repeats"]]

    def write_table(self) -> None:
        """Write trials.csv."""
        keys = list(self.tuning.space)
        rows = [
            [trial["name"], trial["status"], *(trial["values"].get(key) for key in keys), *_list_figures(trial)]
            for trial in self.trials.values()
        ]
        header = ["trial", "status", *keys, "loss", "accuracy", "roc_auc", "seconds", "error"]
        self.run.write_table("trials.csv", header, rows)


def summarise(trial: Trial, objective: str) -> dict[str, float]:
    """Return mean, spread (standard deviation, ddof 1; 0 of one) and number of a trial's results over seeds."""
    results = [trial["figures"][objective], *(figures[objective] for figures in trial["repeats"].values())]
    spread = float(np.std(results, ddof=1)) if len(results) > 1 else 0.0
    return {"mean": float(np.mean(results)), "spread": spread, "seeds": len(results)}


def _begin(run: Run, recipe: Recipe) -> None:
    if run.read_state() != "running" or (run.path / "recipe.yaml").exists():
        run.resume()
    run.write_text("recipe.yaml", recipe_to_yaml(recipe))
    run.update_manifest(recipe=fingerprint(recipe))


def _find_stopped(recipe: Recipe, root: Path) -> Run | None:
    """Return the newest search of exactly this recipe that did not end and that no process is at."""
    for run in reversed(list_runs(root)):
        stopped = run.read_state() in ("killed", "interrupted", "failed")
        if stopped and run.manifest.get("recipe") == fingerprint(recipe):
            return run
    return None


def _carry_out(book: TrialLog, options: Workers) -> None:
    """Do trials until there are none left."""
    running: dict[str, Trial] = {}
    known = len([trial for trial in book.trials.values() if trial["status"] != "running"])
    with progress.progress_bar("Trials", book.tuning.max_trials, "trials") as advance:
        advance(known)
        while True:
            exhausted = _dispatch_trials(book, options, running)
            if exhausted and not running:
                break
            if (ended := options.wait()) is not None:
                book.end(running.pop(ended[0]), ended[2])
                advance(1)
                _check_failures(book)
    _check_failures(book, over=True)


def _dispatch_trials(book: TrialLog, options: Workers, running: dict[str, Trial]) -> bool:
    """Give trials to workers that are free; return whether there are none left at the moment."""
    for worker in options.names:
        while worker not in running:
            trial = book.propose(worker)
            if trial is None:
                return True
            if trial["starts"] > _DEATHS:
                book.end(trial, {"error": f"the search ended {_DEATHS} times in this trial"})
                continue
            running[worker] = trial
            options.start(worker, trial["name"], trial["values"])
    return False


def _check_failures(book: TrialLog, over: bool = False) -> None:
    """Stop where nothing works.

    Raises:
        RunError: The first trials, or all, failed; each different reason is told once.
    """
    failed = [trial for trial in book.trials.values() if trial["status"] == "failed"]
    if book.completed() or not (over or len(failed) >= _GIVE_UP):
        return
    reasons = list(dict.fromkeys(f"{trial['values']}: {trial['error']}" for trial in failed))
    raise RunError.from_problems(f"Every trial failed, {len(failed)} so far:", reasons[:_GIVE_UP] or ["there was none"])


def _repeat_finalists(book: TrialLog, options: Workers, first: int) -> None:
    """Do the best trials again with other seeds of what is trained; the images stay on their splits."""
    finalists = book.completed()[: book.tuning.confirm_top]
    todo = [
        (trial, str(seed))
        for trial in finalists
        for seed in range(first + 1, first + book.tuning.confirm_seeds)
        if str(seed) not in trial["repeats"]
    ]
    with progress.progress_bar("Finalists", len(todo), "trainings") as advance:
        running: dict[str, tuple[Trial, str]] = {}
        while todo or running:
            for worker in options.names:
                if worker not in running and todo:
                    trial, seed = running[worker] = todo.pop(0)
                    options.start(worker, trial["name"], {**trial["values"], "training.seed": int(seed)})
            if (ended := options.wait()) is None:
                continue
            worker, _, result = ended
            trial, seed = running.pop(worker)
            if "error" not in result:
                trial["repeats"][seed] = result
            book.write()
            advance(1)


def _write_best_recipe(recipe: Recipe, run: Run, best: Trial, values: dict[str, Any]) -> str:
    tuning = require_tuning(recipe)
    found, objective = summarise(best, tuning.objective), tuning.objective
    count = len(run.read_json(STATE)["trials"])
    receipt = [
        f"# The best of {count} trials of {recipe.name}, by {objective} on the validation split.",
        "#",
        f"# Command   tlkeras train {run.path}/best.yaml",
        f"# Expect    validation {objective} {found['mean']:.4f} ± {found['spread']:.4f} ({found['seeds']:g} seeds)",
        f"# Search    trial {best['name']}, {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]
    named = apply_values(recipe, values).model_copy(update={"name": f"{recipe.name}-best"})
    return "\n".join(receipt) + "\n" + recipe_to_yaml(named)


def _list_figures(trial: Trial) -> Sequence[Any]:
    figures = trial.get("figures", {})
    return [*(figures.get(name) for name in ("loss", "accuracy", "roc_auc", "seconds")), trial.get("error", "")]
