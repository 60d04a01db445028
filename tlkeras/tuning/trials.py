"""The trials of a search, as they are stored in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.config.trials import RecipeValues
from tlkeras.results import Result
from tlkeras.runs.directory import Run

STATE = "search.json"
_FIGURES = ("loss", "accuracy", "roc_auc", "seconds")


@dataclass(frozen=True)
class TrialResult:
    """The end of a trial."""

    # loss, accuracy and ROC AUC on the validation split, and seconds; empty where it failed
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None  # why it failed; None where it did not


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
    error: str | None = None
    figures: Mapping[str, float] | None = None  # as in `TrialResult`; None until it is completed

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without `error` and `figures` where there are none."""
        return {key: value for key, value in super().to_dict().items() if value is not None}

    def score(self, objective: str) -> float:
        """Value of the objective with the recipe's own seed; NaN of a trial that is not completed."""
        return (self.figures or {}).get(objective, float("nan"))

    def summarise(self, objective: str) -> SeedSummary:
        """The objective over all seeds."""
        scores = [self.score(objective), *(figures[objective] for figures in self.repeats.values())]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        return SeedSummary(float(np.mean(scores)), spread, len(scores))


class TrialLog:
    """The trials of a search, read from its folder.

    Attributes:
        trials: By name, in the order of their start.
        proposals: State of the scheduler that proposes trials, JSON values; None of a new search.
    """

    def __init__(self, run: Run, tuning: TuningConfig):
        self.run, self.tuning = run, tuning
        self.trials: dict[str, Trial] = {}
        self.proposals: Mapping[str, Any] | None = None
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
        """Completed trials, best first."""
        return sorted(self.select("completed"), key=lambda trial: self.direction * trial.score(self.tuning.objective))

    def rank(self) -> list[Trial]:
        """Completed trials, finalists first, by the mean over their seeds."""
        done = self.completed()
        finalists = [trial for trial in done if trial.repeats]
        ranked = sorted(finalists, key=lambda trial: self.direction * trial.summarise(self.tuning.objective).mean)
        return ranked + [trial for trial in done if not trial.repeats]

    def write_table(self) -> None:
        """Write trials.csv."""
        keys = list(self.tuning.space)
        self.run.write_table(
            "trials.csv",
            ["trial", "status", *keys, *_FIGURES, "error"],
            [_list_cells(trial, keys) for trial in self.trials.values()],
        )


def _list_cells(trial: Trial, keys: Sequence[str]) -> list[Any]:
    figures = trial.figures or {}
    values = [trial.values.get(key) for key in keys]
    return [trial.name, trial.status, *values, *(figures.get(name) for name in _FIGURES), trial.error or ""]
