"""Stages as data: where a run stands follows from the history of its monitored value, and from nothing else.

Nothing here remembers anything. Whoever asks passes the whole history, and the rules are replayed from the start; so
a resumed run, a finished one and one that was never stopped get the same answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

from tlkeras.errors import RecipeError, RunError, suggest

BatchNorm = Literal["frozen", "affine", "reestimate", "train"]
Decay = Literal["cosine", "constant"]
Keep = Literal["best", "last"]
Unfreeze = int | Literal["all", "auto"]

BASELINE = -1
"""The epoch that stands for the weights from before any training."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which the same blocks train.

    Args:
        name: Shown in logs and charts.
        unfreeze: How many blocks train, counted from the top: a number, "2 blocks", "all", or "auto" (all, each at
            a rate found from its gradients; the multipliers are the ceiling).
        learning_rate: Peak rate of the head.
        epochs: Exactly so many; left out of a stage that trains until the plateau.
        until: "plateau" ends the stage when the monitored value improves no more.
        patience: Epochs without improvement that end a plateau stage.
        max_epochs: End of a plateau stage that never stops improving.
        backbone_lr_multiplier: Rate of the topmost block, as a share of the head's.
        layer_decay: Rate of each block, as a share of the one above it.
        warmup: Epochs, or a part of one, in which the rate rises linearly to its peak.
        decay: "cosine" lets the rate fall to zero at the end of the stage's full length, "constant" keeps it; by
            default cosine for a stage of exact length, constant until a plateau.
        batch_norm: What batch norm does in blocks that train: "frozen" changes nothing, "affine" trains scale and
            offset, "reestimate" takes the statistics anew before the stage, "train" does all that it usually does.

    Raises:
        RecipeError: Values that cannot be used; names all of them.
    """

    name: str
    unfreeze: int | str
    learning_rate: float
    epochs: int | None = None
    until: Literal["plateau"] | None = None
    patience: int = 2
    max_epochs: int = 50
    backbone_lr_multiplier: float = 0.1
    layer_decay: float = 1.0
    warmup: float = 0.0
    decay: Decay | None = None
    batch_norm: BatchNorm = "frozen"

    def __post_init__(self) -> None:
        if problems := list(_find_problems(self)):
            raise RecipeError.from_problems(f"Stage {self.name!r} cannot be used:", problems)
        object.__setattr__(self, "unfreeze", parse_unfreeze(self.unfreeze))
        object.__setattr__(self, "decay", self.decay or ("constant" if self.until else "cosine"))

    @property
    def length(self) -> int:
        """Epochs of the stage, at most."""
        return self.max_epochs if self.epochs is None else self.epochs

    def count_blocks(self, total: int) -> int:
        """Return how many of the backbone's blocks train.

        Raises:
            RecipeError: There are not so many.
        """
        count = total if isinstance(self.unfreeze, str) else self.unfreeze
        if count > total:
            raise RecipeError(
                f"Stage {self.name!r} must unfreeze from 0 to {total} blocks.", count, "All of them is `all`."
            )
        return count

    def multipliers(self, total: int) -> tuple[float, ...]:
        """Return the rate of each block as a share of the head's, from input to output; 0.0 where it is frozen.

        Rates that shrink from block to block are those of ULMFiT (Howard and Ruder, 2018).

        Raises:
            RecipeError: The backbone has fewer blocks than the stage unfreezes.
        """
        count = self.count_blocks(total)
        training = [self.backbone_lr_multiplier * self.layer_decay**depth for depth in range(count)]
        return (*[0.0] * (total - count), *reversed(training))


class StagePosition(NamedTuple):
    """Where an epoch stands: the index of its stage, and how many epochs of that stage came before it."""

    stage: int
    epoch_in_stage: int


class _Best(NamedTuple):
    epoch: int
    value: float


class _Replay(NamedTuple):
    starts: list[int]  # first epoch of each stage begun
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
    is restored.

    Args:
        stages: At least one; names differ.
        minimise: Whether lower values are better.
        min_delta: What counts as an improvement must be more than this.
        keep: "best" as above, or "last": every stage runs, and nothing is restored.

    Raises:
        RecipeError: Values that cannot be used; names all of them.
    """

    stages: tuple[Stage, ...]
    minimise: bool
    min_delta: float = 0.0
    keep: Keep = "best"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        repeated = [name for name, count in Counter(stage.name for stage in self.stages).items() if count > 1]
        rules = [
            (bool(self.stages), "there must be at least one stage."),
            (not repeated, f"each stage needs a name of its own. Received twice: {', '.join(repeated)}."),
            (0 <= self.min_delta < math.inf, f"min_delta must be 0 or more. Received: {self.min_delta!r}."),
            _rule_on_choice("keep", self.keep, get_args(Keep)),
        ]
        if problems := [sentence for holds, sentence in rules if not holds]:
            raise RecipeError.from_problems("The schedule cannot be used:", problems)

    @property
    def max_epochs(self) -> int:
        """Epochs of the whole run, at most."""
        return sum(stage.length for stage in self.stages)

    def locate(self, history: Sequence[float], baseline: float | None = None) -> StagePosition | None:
        """Return where the next epoch stands, or None when the run is over.

        Raises:
            RunError: The history is longer than this schedule lets a run be.
        """
        replay = self._replay(history, baseline)
        return None if replay.over else StagePosition(len(replay.starts) - 1, len(history) - replay.starts[-1])

    def best_epoch(self, history: Sequence[float], baseline: float | None = None) -> int | None:
        """Return the epoch of the best value so far (from 0, or `BASELINE`), or None when there is no finite one."""
        best = self._replay(history, baseline).best
        return best and best.epoch

    def starting_epochs(self, history: Sequence[float], baseline: float | None = None) -> list[int]:
        """Return the first epoch of each stage begun, that of the next epoch included."""
        return self._replay(history, baseline).starts

    def restores(self, history: Sequence[float], baseline: float | None = None) -> int | None:
        """Return the epoch whose weights must be restored now, the last one finished possibly; None for no epoch."""
        replay = self._replay(history, baseline)
        ended = len(history) > 0 and (replay.over or replay.starts[-1] == len(history))
        return replay.best.epoch if ended and replay.best and self.keep == "best" else None

    def rate(self, position: StagePosition, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of the head at a step of an epoch (from 0).

        Linear warm-up, then half a cosine without restarts (Loshchilov and Hutter, 2017) or the constant peak.
        """
        stage = self.stages[position.stage]
        done = position.epoch_in_stage * steps_per_epoch + step
        warmup, total = stage.warmup * steps_per_epoch, stage.length * steps_per_epoch
        rise = min(1.0, (done + 1) / warmup) if warmup else 1.0  # the first step is not wasted on a rate of 0
        if stage.decay == "constant":
            return stage.learning_rate * rise
        progress = max(0.0, (done - warmup) / (total - warmup))
        return stage.learning_rate * rise * (1 + math.cos(math.pi * progress)) / 2

    def _replay(self, history: Sequence[float], baseline: float | None) -> _Replay:
        """Go through the history stage by stage."""
        best = self._improve(None, BASELINE, math.nan if baseline is None else baseline)
        starts: list[int] = []
        start = 0
        for stage in self.stages:
            starts.append(start)
            end = self._find_end(stage, history, start)
            before = best
            for epoch in range(start, len(history) if end is None else end):
                best = self._improve(best, epoch, history[epoch])
            if end is None:
                return _Replay(starts, best, over=False)
            start = end
            failed = best is before and best is not None and len(starts) > 1
            if failed and self.keep == "best":
                break
        if len(history) > start:
            raise RunError(
                f"A run by this schedule is over after {start} epochs.",
                f"a history of {len(history)}",
                "Go on with the schedule that the run was started with.",
            )
        return _Replay(starts, best, over=True)

    def _find_end(self, stage: Stage, history: Sequence[float], start: int) -> int | None:
        """Return the epoch after the stage's last one, or None while it runs."""
        end = start + stage.length
        if stage.until == "plateau":
            best = None
            for epoch in range(start, min(end, len(history))):
                best = self._improve(best, epoch, history[epoch])
                if epoch - (best.epoch if best else start - 1) >= stage.patience:
                    return epoch + 1
        return end if end <= len(history) else None

    def _improve(self, best: _Best | None, epoch: int, value: float) -> _Best | None:
        """Return the better of the best so far and an epoch; the earlier one where they differ too little."""
        if not math.isfinite(value):
            return best
        if best is not None:
            gain = best.value - value if self.minimise else value - best.value
            if gain <= self.min_delta:
                return best
        return _Best(epoch, value)


def parse_unfreeze(value: Any) -> Unfreeze:
    """Read how many blocks to unfreeze: 2, "2 blocks", "all" or "auto".

    Raises:
        ValueError: It is none of these; the message is a sentence that names the nearest.
    """
    if value in ("all", "auto") or (type(value) is int and value >= 0):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)( blocks?)?", value)):
        return int(match[1])
    number = re.match(r"\d+", str(value))
    nearest = f"Did you mean '{number[0]} blocks'?" if number else suggest(str(value), ["2 blocks", "all", "auto"])
    raise ValueError(f"unfreeze must be a number of blocks, 'all' or 'auto'. Received: {value!r}. {nearest}")


def _find_problems(stage: Stage) -> Iterator[str]:
    """Say what is wrong with a stage's values, a sentence each."""
    try:
        parse_unfreeze(stage.unfreeze)
    except ValueError as error:
        yield str(error)
    if (stage.epochs is None) == (stage.until is None):
        received = "neither" if stage.until is None else "both"
        yield f"it takes either epochs or until: plateau. Received: {received}. max_epochs bounds a plateau stage."
    rules = [
        (bool(stage.name), "name must not be empty."),
        *(_rule_on_count(key, getattr(stage, key)) for key in ("patience", "max_epochs")),
        *(
            _rule_on_size(key, getattr(stage, key))
            for key in ("learning_rate", "backbone_lr_multiplier", "layer_decay")
        ),
        _rule_on_choice("batch_norm", stage.batch_norm, get_args(BatchNorm)),
    ]
    if stage.epochs is not None:
        rules.append(_rule_on_count("epochs", stage.epochs))
    if stage.until is not None:
        rules.append(_rule_on_choice("until", stage.until, ("plateau",)))
    if stage.decay is not None:
        rules.append(_rule_on_choice("decay", stage.decay, get_args(Decay)))
    yield from (sentence for holds, sentence in rules if not holds)
    if _is_number(stage.length) and not (_is_number(stage.warmup) and 0 <= stage.warmup < stage.length):
        yield f"warmup must be 0 or more epochs, and fewer than the stage has. Received: {stage.warmup!r}."


def _rule_on_count(key: str, value: Any) -> tuple[bool, str]:
    return type(value) is int and value >= 1, f"{key} must be a whole number, at least 1. Received: {value!r}."


def _rule_on_size(key: str, value: Any) -> tuple[bool, str]:
    return _is_number(value) and 0 < value < math.inf, f"{key} must be a number above 0. Received: {value!r}."


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _rule_on_choice(key: str, value: Any, valid: Sequence[str]) -> tuple[bool, str]:
    return value in valid, f"{key} must be one of {', '.join(valid)}. Received: {value!r}. {suggest(str(value), valid)}"
