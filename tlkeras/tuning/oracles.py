"""What proposes trials: KerasTuner's oracles, kept in one file that is whole or not there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from threadpoolctl import threadpool_limits

from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.tuning.space import make_hyperparameters, read_values

SCORE = "score"
_ORACLES: dict[str, type[keras_tuner.Oracle]] = {
    "random": keras_tuner.oracles.RandomSearchOracle,
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    "grid": keras_tuner.oracles.GridSearchOracle,
    "hyperband": keras_tuner.oracles.HyperbandOracle,
}


def make_oracle(tuning: TuningConfig, epochs: int) -> keras_tuner.Oracle:
    """Return the oracle that a recipe asks for.

    KerasTuner writes its files in place and gives up after three failures with its lock held; here it writes nothing,
    and the search decides when to give up.

    Args:
        epochs: What Hyperband divides among its rounds.
    """
    kind = _ORACLES[tuning.algorithm]
    options: dict[str, Any] = {"max_epochs": epochs} if tuning.algorithm == "hyperband" else {}
    if tuning.algorithm != "hyperband":
        options["max_trials"] = tuning.max_trials
    silent = {"save": lambda self: None, "_save_trial": lambda self, trial: None}
    oracle: keras_tuner.Oracle = type(kind.__name__, (kind,), silent)(
        objective=keras_tuner.Objective(SCORE, "min" if tuning.objective == "loss" else "max"),
        hyperparameters=make_hyperparameters(tuning),
        allow_new_entries=False,
        # from 1 on: 0 would be drawn anew
        seed=tuning.seed + 1,
        max_consecutive_failed_trials=10**9,
        **options,
    )
    if tuning.algorithm == "hyperband":
        oracle.max_trials = tuning.max_trials
    oracle.verbose = 0
    return oracle


class TrialScheduler:
    """Trials to do, one after the other or several at once.

    Args:
        tuning: What is searched.
        epochs: As in `make_oracle`.
        state: What `state` returned, to go on from there; trials that were running then are proposed again.
    """

    def __init__(self, tuning: TuningConfig, epochs: int, state: Mapping[str, Any] | None = None):
        self._tuning, self._oracle = tuning, make_oracle(tuning, epochs)
        if state:
            kept = {name: Trial.from_state(json.loads(text)) for name, text in state["trials"].items()}
            self._oracle.trials = kept
            self._oracle.set_state(json.loads(state["oracle"]))
            self._oracle._retry_queue += [trial.trial_id for trial in self._oracle.ongoing_trials.values()]
            self._oracle.ongoing_trials = {}
            if "grid" in state:
                self._oracle._populate_next = list(state["grid"]["pending"])
                for name in state["grid"]["order"]:
                    self._oracle._ordered_ids.insert(name)

    def state(self) -> dict[str, Any]:
        """Return all that the next proposal depends on, as JSON."""
        trials = {name: json.dumps(trial.get_state()) for name, trial in self._oracle.trials.items()}
        state: dict[str, Any] = {"oracle": json.dumps(self._oracle.get_state()), "trials": trials}
        if self._tuning.algorithm == "grid":  # whose place in the grid KerasTuner itself forgets
            state["grid"] = {"pending": self._oracle._populate_next, "order": _list_order(self._oracle._ordered_ids)}
        return state

    def next(self, worker: str) -> tuple[str, dict[str, Any]] | None:
        """Return the name and recipe values of a trial; None where there is none, at the moment or for good."""
        # many small systems of equations: threads only wait for each other
        with threadpool_limits(1), _quietly():
            trial = self._oracle.create_trial(worker)
        if trial.status != TrialStatus.RUNNING:
            return None
        return trial.trial_id, read_values(self._tuning, trial.hyperparameters.values)

    def complete(self, name: str, score: float) -> None:
        """Say how good a trial was."""
        with _quietly():
            self._oracle.update_trial(name, {SCORE: score})
        self._end(name, TrialStatus.COMPLETED, None)

    def fail(self, name: str, reason: str) -> None:
        """Say that a trial cannot be carried out."""
        self._end(name, TrialStatus.FAILED, reason)

    def _end(self, name: str, status: str, message: str | None) -> None:
        trial = self._oracle.trials[name]
        trial.status, trial.message = status, message
        with _quietly():
            self._oracle.end_trial(trial)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what KerasTuner's code says of its own age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _list_order(linked: Any) -> list[str]:
    """Return what KerasTuner's linked list holds, in its order."""
    found, index = [], linked._next_index[None]
    while index is not None:
        found.append(linked._memory[index])
        index = linked._next_index[index]
    return found
