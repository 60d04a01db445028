"""KerasTuner's oracles as the scheduler of a search, with a state that can be stored."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import trial as tuner_trial
from threadpoolctl import threadpool_limits

from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.config.trials import RecipeValues
from tlkeras.results import OPTIONAL, Result
from tlkeras.runs.directory import Run
from tlkeras.tuning.space import declare, read_values

STATE = "search.json"
_FIGURES = ("loss", "accuracy", "roc_auc", "seconds")


@dataclass(frozen=True)
class TrialResult:
    """The end of a trial."""

    # loss, accuracy and ROC AUC on the validation split, and seconds; empty where it failed
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None  # why it failed; None where it did not


def name_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures as Keras names those of the validation split: `val_loss`; `seconds` keeps its name."""
    return {name if name == "seconds" else f"val_{name}": value for name, value in figures.items()}


@dataclass(frozen=True)
class SeedSummary(Result):
    """A trial's objective over seeds: mean, standard deviation (ddof 1; 0 of one seed), and number of seeds."""

    mean: float
    spread: float
    seeds: int


@dataclass(frozen=True)
class Trial(Result):
    """A trial of a search."""

    name: str  # KerasTuner's name of it
    values: RecipeValues  # recipe values by dotted key
    starts: int = 0  # number of times that it was started
    repeats: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # figures with other seeds, by seed
    status: str = "running"  # "running", "completed" or "failed"
    error: str | None = field(default=None, metadata=OPTIONAL)
    # as in `TrialResult`; None until it is completed
    figures: Mapping[str, float] | None = field(default=None, metadata=OPTIONAL)

    def score(self, objective: str) -> float:
        """Value of the objective with the recipe's own seed; NaN of a trial that is not completed."""
        return (self.figures or {}).get(objective, float("nan"))

    def summarise(self, objective: str) -> SeedSummary:
        scores = [self.score(objective), *(figures[objective] for figures in self.repeats.values())]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        return SeedSummary(float(np.mean(scores)), spread, len(scores))


class TrialLog:
    """The trials of a search, read from its folder."""

    def __init__(self, run: Run, tuning: TuningConfig):
        self.run, self.tuning = run, tuning
        self.trials: dict[str, Trial] = {}  # by name, in the order of their start
        self.proposals: Mapping[str, Any] | None = None  # state of the scheduler, JSON values; None of a new search
        if (run.path / STATE).exists():
            stored = run.read_json(STATE)
            self.trials = {trial["name"]: Trial(**trial) for trial in stored["trials"]}
            self.proposals = stored["proposals"]

    @property
    def direction(self) -> float:
        """+1 if the objective is minimised, -1 if it is maximised."""
        return 1.0 if self.tuning.objective == "loss" else -1.0

    def select(self, status: str) -> list[Trial]:
        """Trials of a status, in the order of their start."""
        return [trial for trial in self.trials.values() if trial.status == status]

    def completed(self) -> list[Trial]:
        return sorted(self.select("completed"), key=lambda trial: self.direction * trial.score(self.tuning.objective))

    def rank(self) -> list[Trial]:
        """Completed trials, finalists first, by the mean over their seeds."""
        objective, done = self.tuning.objective, self.completed()
        ranked = sorted(done, key=lambda trial: self.direction * trial.summarise(objective).mean)
        return [trial for trial in ranked if trial.repeats] + [trial for trial in done if not trial.repeats]

    def write_table(self) -> None:
        keys, rows = list(self.tuning.space), []
        for trial in self.trials.values():
            figures = [(trial.figures or {}).get(name) for name in _FIGURES]
            rows.append([trial.name, trial.status, *map(trial.values.get, keys), *figures, trial.error or ""])
        self.run.write_table("trials.csv", ["trial", "status", *keys, *_FIGURES, "error"], rows)


SCORE = "score"
_ignore_deprecations = partial(warnings.catch_warnings, action="ignore", category=DeprecationWarning)
_ORACLES: dict[str, type[keras_tuner.Oracle]] = {
    "random": keras_tuner.oracles.RandomSearchOracle,
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    "grid": keras_tuner.oracles.GridSearchOracle,
    "hyperband": keras_tuner.oracles.HyperbandOracle,
}


def make_oracle(tuning: TuningConfig, epochs: int) -> keras_tuner.Oracle:
    """The oracle of a recipe's algorithm, with its own files and failure limit switched off.

    KerasTuner writes its files in place and gives up after three failures with its lock held; here the search stores
    the state and decides when to give up. Hyperband divides the epochs among its rounds.
    """
    kind = _ORACLES[tuning.algorithm]
    hyperband = tuning.algorithm == "hyperband"
    silent = {"save": lambda self: None, "_save_trial": lambda self, trial: None}
    oracle: keras_tuner.Oracle = type(kind.__name__, (kind,), silent)(
        objective=keras_tuner.Objective(SCORE, "min" if tuning.objective == "loss" else "max"),
        hyperparameters=declare(tuning, keras_tuner.HyperParameters()),
        allow_new_entries=False,
        # from 1 on: KerasTuner takes 0 as no seed
        seed=tuning.seed + 1,
        max_consecutive_failed_trials=10**9,
        **({"max_epochs": epochs} if hyperband else {"max_trials": tuning.max_trials}),
    )
    if hyperband:
        oracle.max_trials = tuning.max_trials
    oracle.verbose = 0
    return oracle


class TrialScheduler:
    """Proposes trials, after a result of `state`, if given, again those that were running then."""

    def __init__(self, tuning: TuningConfig, epochs: int, state: Mapping[str, Any] | None = None):
        self._tuning, self._oracle = tuning, make_oracle(tuning, epochs)
        if state:
            known = {name: json.loads(text) for name, text in state["trials"].items()}
            self._oracle.trials = {name: tuner_trial.Trial.from_state(one) for name, one in known.items()}
            self._oracle.set_state(json.loads(state["oracle"]))
            self._oracle._retry_queue += [trial.trial_id for trial in self._oracle.ongoing_trials.values()]
            self._oracle.ongoing_trials = {}
            if "grid" in state:
                self._oracle._populate_next = list(state["grid"]["pending"])
                for name in state["grid"]["order"]:
                    self._oracle._ordered_ids.insert(name)

    def state(self) -> Mapping[str, object]:
        """All that the next proposal depends on, as JSON values."""
        trials = {name: json.dumps(trial.get_state()) for name, trial in self._oracle.trials.items()}
        state: dict[str, object] = {"oracle": json.dumps(self._oracle.get_state()), "trials": trials}
        if self._tuning.algorithm == "grid":  # KerasTuner does not store its place in the grid
            state["grid"] = {"pending": self._oracle._populate_next, "order": _list_order(self._oracle._ordered_ids)}
        return state

    def next(self, worker: str) -> Trial | None:
        """The next trial, not started yet; None where there is none, at the moment or for good."""
        # many small systems of equations, for which one thread is the fastest
        with threadpool_limits(1), _ignore_deprecations():
            trial = self._oracle.create_trial(worker)
        if trial.status != tuner_trial.TrialStatus.RUNNING:
            return None
        return Trial(trial.trial_id, read_values(self._tuning, trial.hyperparameters.values))

    def complete(self, name: str, score: float) -> None:
        with _ignore_deprecations():
            self._oracle.update_trial(name, {SCORE: score})
        self._end(name, tuner_trial.TrialStatus.COMPLETED, None)

    def fail(self, name: str, reason: str) -> None:
        self._end(name, tuner_trial.TrialStatus.FAILED, reason)

    def _end(self, name: str, status: str, message: str | None) -> None:
        trial = self._oracle.trials[name]
        trial.status, trial.message = status, message
        with _ignore_deprecations():
            self._oracle.end_trial(trial)


def _list_order(linked: Any) -> list[str]:
    """Items of KerasTuner's linked list, in order."""
    found, index = [], linked._next_index[None]
    while index is not None:
        found.append(linked._memory[index])
        index = linked._next_index[index]
    return found
