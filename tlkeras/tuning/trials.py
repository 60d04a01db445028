"""The trials of a search, as they are stored in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.config.trials import RecipeValues
from tlkeras.results import OPTIONAL, Result
from tlkeras.runs.directory import Run

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
