"""KerasTuner's oracles as the scheduler of a search, with a state that can be stored."""

import json
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import keras_tuner
from keras_tuner.engine import trial as tuner_trial
from threadpoolctl import threadpool_limits

from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.tuning.space import declare, read_values
from tlkeras.tuning.trials import Trial

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
