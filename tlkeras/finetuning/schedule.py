"""Stages as data: the position of a run is a pure function of the history of its monitored value.

The rules are replayed from the start for the whole history, so that a resumed run, a finished one and one that was
never stopped get the same results.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from tlkeras.config.schema.finetuning import BatchNorm, Keep, Stage
from tlkeras.errors import RecipeError, RunError, suggest

__all__ = ["BASELINE", "BatchNorm", "Keep", "Schedule", "Stage", "StagePosition"]

BASELINE = -1
"""The epoch that stands for the weights from before any training."""


class StagePosition(NamedTuple):
    """The position of an epoch: the index of its stage, and the number of the stage's epochs before it."""

    stage: int
    epoch_in_stage: int


class _Best(NamedTuple):
    epoch: int
    value: float


class _Replay(NamedTuple):
    stage: int  # the last one begun
    start: int  # its first epoch
    best: _Best | None
    over: bool


@dataclass(frozen=True)
class Schedule:
    """Stages in order, and the rules by which one follows the other.

    A stage of exact length ends after its epochs; a plateau stage when its own best value has not improved for
    `patience` epochs, or after `max_epochs`. With `keep="best"` the best weights of the whole run are restored at the
    end of each stage, and a stage that brought no better ones ends the run, unless it is the first.

    The methods take `history`, the monitored value of every finished epoch, and `baseline`, its value before any
    training, if that was measured: the starting weights then are epoch `BASELINE` and can be the best. A value that
    is not finite is never an improvement; where all are NaN (there is no validation data) no stage fails and nothing
    is restored. A RecipeError names all values that cannot be used.
    """

    stages: tuple[Stage, ...]  # at least one; names differ
    minimise: bool  # whether lower values are better
    min_delta: float = 0.0  # an improvement is more than this
    keep: Keep = "best"  # "best" as above, or "last": every stage runs, and nothing is restored

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        repeated = [name for name, count in Counter(stage.name for stage in self.stages).items() if count > 1]
        keep, kinds = self.keep, get_args(Keep)
        rules = [
            (bool(self.stages), "it has no stages."),
            (not repeated, f"stages share a name: {', '.join(repeated)}."),
            (0 <= self.min_delta < math.inf, f"min_delta is not 0 or more. Received: {self.min_delta!r}."),
            (keep in kinds, f"keep is 'best' or 'last'. Received: {keep!r}. {suggest(str(keep), kinds)}"),
        ]
        if problems := [sentence for holds, sentence in rules if not holds]:
            raise RecipeError.from_problems("The schedule is invalid:", problems)

    @property
    def max_epochs(self) -> int:
        """Epochs of the whole run, at most."""
        return sum(stage.length for stage in self.stages)

    def locate(self, history: Sequence[float], baseline: float | None = None) -> StagePosition | None:
        """The position of the next epoch, or None when the run is over.

        RunError if the history is longer than this schedule lets a run be.
        """
        replay = self._replay(history, baseline)
        return None if replay.over else StagePosition(replay.stage, len(history) - replay.start)

    def best_epoch(self, history: Sequence[float], baseline: float | None = None) -> int | None:
        """The epoch of the best value so far (from 0, or `BASELINE`), or None when there is no finite one."""
        best = self._replay(history, baseline).best
        return best and best.epoch

    def restores(self, history: Sequence[float], baseline: float | None = None) -> int | None:
        """The epoch whose weights are to be restored now, possibly the last one finished; None for no epoch."""
        replay = self._replay(history, baseline)
        ended = len(history) > 0 and (replay.over or replay.start == len(history))
        return replay.best.epoch if ended and replay.best and self.keep == "best" else None

    def rate(self, position: StagePosition, step: int, steps_per_epoch: int) -> float:
        """The learning rate of the head at a step of an epoch (from 0).

        Linear warm-up, then half a cosine without restarts (Loshchilov and Hutter, 2017) or the constant peak.
        """
        stage = self.stages[position.stage]
        done = position.epoch_in_stage * steps_per_epoch + step
        warmup, total = stage.warmup * steps_per_epoch, stage.length * steps_per_epoch
        rise = min(1.0, (done + 1) / warmup) if warmup else 1.0  # the first step is not wasted on a rate of 0
        if not stage.decays:
            return stage.learning_rate * rise
        progress = max(0.0, (done - warmup) / (total - warmup))
        return stage.learning_rate * rise * (1 + math.cos(math.pi * progress)) / 2

    def _replay(self, history: Sequence[float], baseline: float | None) -> _Replay:
        best = self._improve(None, BASELINE, math.nan if baseline is None else baseline)
        start = 0
        for index, stage in enumerate(self.stages):
            end = self._find_end(stage, history, start)
            before = best
            for epoch in range(start, len(history) if end is None else end):
                best = self._improve(best, epoch, history[epoch])
            if end is None:
                return _Replay(index, start, best, over=False)
            start = end
            if self.keep == "best" and index and best is before and best is not None:  # it brought no better weights
                break
        if len(history) > start:
            rule = f"The history is longer than this schedule, which ends after {start} epochs."
            raise RunError(rule, f"{len(history)} epochs", "Resume with the schedule that the run was started with.")
        return _Replay(index, start, best, over=True)

    def _find_end(self, stage: Stage, history: Sequence[float], start: int) -> int | None:
        """The epoch after the stage's last one, or None while it runs."""
        end = start + stage.length
        if stage.until == "plateau":
            best = None
            for epoch in range(start, min(end, len(history))):
                best = self._improve(best, epoch, history[epoch])
                if epoch - (best.epoch if best else start - 1) >= stage.patience:
                    return epoch + 1
        return end if end <= len(history) else None

    def _improve(self, best: _Best | None, epoch: int, value: float) -> _Best | None:
        """The better of the best so far and an epoch; the earlier one where they differ too little."""
        if not math.isfinite(value):
            return best
        if best is not None:
            gain = best.value - value if self.minimise else value - best.value
            if gain <= self.min_delta:
                return best
        return _Best(epoch, value)
