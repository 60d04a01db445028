"""The run of a schedule: one optimizer, one history, any number of stages and of interruptions.

It drives Keras callbacks as `fit` does. `fit` itself clips each device's gradient before adding, fails on several
machines (keras#20585), and cannot resume in the middle of an epoch to the same bits.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from types import FrameType
from typing import Any

import keras
import numpy as np

from tlkeras import progress
from tlkeras.errors import RunError
from tlkeras.finetuning.checkpoints import Checkpoints, pack_groups
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import DataSplit
from tlkeras.finetuning.lr_range_test import LRFinderResult, run_lr_sweep
from tlkeras.finetuning.metrics import TaskSlice, compute_validation_metrics
from tlkeras.finetuning.network import Network, computing_in, scale_losses
from tlkeras.finetuning.optimizers import ScaledOptimizer
from tlkeras.finetuning.schedule import Schedule, StagePosition
from tlkeras.finetuning.stage_runner import Objective, StageRunner

_GRADIENT_BATCHES = 8
_FITTED_VIEWS = 2

HistoryRow = dict[str, Any]
"""What is known of a finished epoch: `epoch` from 1, `stage`, `loss`, `learning_rate`, and metrics as `val_loss`."""

FitHeads = Callable[[np.ndarray, np.ndarray], Mapping[str, Sequence[keras.layers.Layer]]]
"""From positions int64 [m] in the training split and their features float32 [m, d], where a position can come several
times, to the layers of each task's head."""


@dataclass(frozen=True)
class TrainerConfig:
    """How the steps are taken.

    The precision is that in which the backbone computes while it trains; weights and head are float32 in all of them,
    and the trained network computes in float32. `fit_heads` refits the heads where a schedule begins with other
    statistics of batch norm than those of the features that they were fitted on; None leaves them.
    """

    batch_size: int = 32  # examples in a step; the remainder at the end of an epoch is left out
    seed: int = 0  # of the order of examples and of mixing
    ema: float = 0.0  # decay of the moving average of the weights, which is measured and kept; 0 for none
    balanced_sampling: bool = False  # draw every class equally often
    monitor: str = "val_loss"  # the column of the history that the schedule follows
    tasks: tuple[TaskSlice, ...] = (TaskSlice(),)  # the columns of targets and logits, by task
    save_seconds: float = 60.0  # the most training that kill -9 can cost
    precision: str = "float32"  # or "bfloat16" or "float16"
    distribution: Strategy = ONE_DEVICE  # the devices. Network and optimizer must have been made in its scope
    fit_heads: FitHeads | None = None


class Trainer:
    """Runs a schedule from wherever the newest checkpoint stands.

    All that the next step depends on is in a checkpoint: the network's variables with the states of its random
    layers, the optimizer's, the moving average, the best weights so far, the history, epoch and step. The order of
    examples and their views are pure functions of seed, epoch and step. So a run that was killed ends with the same
    bits as one that was not, on the same machine.

    Args:
        network: Trained in place.
        cuts: Per stage, the cut behind which the network is trained; all before it stays frozen.
        optimizer: A fresh one; it is built here, once, on every variable that any stage trains.
        splits: Those to train and to validate on; None for the latter where nothing is held out.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        cuts: Sequence[str],
        optimizer: ScaledOptimizer,
        objective: Objective,
        splits: tuple[DataSplit, DataSplit | None],
        settings: TrainerConfig = TrainerConfig(),
    ):
        self.network, self.schedule, self.cuts = network, schedule, tuple(cuts)
        self._distribution = settings.distribution
        with self._distribution.scope():
            self.optimizer = scale_losses(optimizer, settings.precision)
            self.optimizer.build([*network.list_trainable(schedule.stages), *objective.trainable_variables])
        self._distribution.wrap_optimizer(self.optimizer)
        self.objective, self.settings = objective, settings
        self.train, self.validation = splits
        self.history: list[HistoryRow] = []  # one row per finished epoch
        self.baseline: float | None = None  # the monitored value before any training
        self._losses: list[float] = []  # one per step of the present epoch
        self._stopped = False  # by a callback
        self._runner: StageRunner | None = None
        self._checkpoints: Checkpoints | None = None
        self._changing = [*network.list_changing(schedule.stages), *objective.variables]
        self._best = self._snapshot_weights()
        self._stages = [stage.name for stage in schedule.stages]
        self._steps_per_epoch = len(self._draw_batches())

    def run(
        self, checkpoints: Checkpoints | None = None, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> list[HistoryRow]:
        """Train to the end of the schedule; the history. The network then holds the weights that are kept.

        Ctrl-C and SIGTERM end it between two steps, after a checkpoint, with a KeyboardInterrupt; another `run` with
        the same checkpoints resumes it. A second one ends it at once. RunError if the checkpoint has another precision.

        Args:
            checkpoints: Resumed from, and saved to.
            callbacks: Called as by `fit`. `model.stop_training` ends the run after the epoch. An epoch's end is
                reported after its checkpoint, so that no epoch is reported that is then lost. `params` also has
                `stages`, their names, and `history`, the logs of the epochs before a resumed run.
        """
        self._checkpoints = checkpoints
        with self._distribution.monitor_peers(), self._distribution.scope(), self._computing():
            averages = self._resume()
            with self._open_callbacks(callbacks) as listeners:
                self._train(averages, listeners)
        self.network.release()
        return self.history

    def find_rate(self, index: int, lowest: float, highest: float, steps: int) -> LRFinderResult:
        """Losses of one stage at rising rates, see `run_lr_sweep`, from the present weights, which are restored.

        The stages before it are not run; batches come again where an epoch has fewer than `steps`.
        """
        moving = [*self._changing, *self.optimizer.variables]
        saved = [np.array(variable) for variable in moving]
        try:
            with self._computing():
                runner = self._make_runner(index)
                self._start_epoch(runner, StagePosition(index, 0))
                return run_lr_sweep(lambda rates: self._try_rates(runner, rates), lowest, highest, steps)
        finally:
            _assign(moving, saved)
            self.network.release()

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value, counted from 1; 0 stands for the start, None where nothing was measured."""
        best = self.schedule.best_epoch(self._monitored(), self.baseline)
        return None if best is None else best + 1

    def _computing(self) -> AbstractContextManager[None]:
        return computing_in(self.settings.precision, self.network.backbone.layers)

    def _try_rates(self, runner: StageRunner, rates: Sequence[float]) -> Iterator[float]:
        batches = chain.from_iterable(map(self._stream, repeat(runner)))
        for step, (rate, (rows, inputs)) in enumerate(zip(rates, batches, strict=False)):
            self.optimizer.learning_rate = rate
            yield self._take_step(runner, rows, inputs, step)

    @contextmanager
    def _open_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[keras.callbacks.CallbackList]:
        """Keras' list of callbacks; within, the model has the attributes of one that is in `fit`."""
        model = self.network.model
        vars(model)["optimizer"], model.stop_training = self.optimizer, False
        params: dict[str, Any] = {"verbose": 0, "epochs": self.schedule.max_epochs, "steps": self._steps_per_epoch}
        params |= {"stages": self._stages, "history": [self._make_logs(row) for row in self.history]}
        try:
            yield keras.callbacks.CallbackList(list(callbacks), model=model, **params)
        finally:
            del vars(model)["optimizer"]

    def _make_logs(self, row: HistoryRow) -> dict[str, float]:
        """A row of the history as `fit` logs it, in numbers: the stage is counted from 1."""
        number = self._stages.index(row["stage"]) + 1
        return {name: number if name == "stage" else value for name, value in row.items() if name != "epoch"}

    def _train(self, averages: list[np.ndarray], callbacks: keras.callbacks.CallbackList) -> None:
        callbacks.on_train_begin()
        with _holding_signals() as received:
            saved = time.monotonic()
            while (position := self._locate()) is not None:
                runner = self._start_stage(position, averages)
                averages = []
                callbacks.on_epoch_begin(len(self.history))
                for _ in self._take_steps(runner, position, callbacks):
                    if received or time.monotonic() - saved > self.settings.save_seconds:
                        self._save()
                        saved = time.monotonic()
                    if received:
                        raise KeyboardInterrupt
                self._end_epoch(runner, position)
                self._save()
                callbacks.on_epoch_end(len(self.history) - 1, self._make_logs(self.history[-1]))
                stops = self._distribution.all_reduce(np.array([self.network.model.stop_training], np.int32))
                if stops[0]:  # in any process: the run ends before the end of its schedule, for good
                    self._stopped = True
                    if self._runner is not None:
                        self._end_stage(self._runner)
                    self._save()
                saved = time.monotonic()
                if received:
                    raise KeyboardInterrupt
        callbacks.on_train_end(self._make_logs(self.history[-1]))

    def _locate(self) -> StagePosition | None:
        return None if self._stopped else self.schedule.locate(self._monitored(), self.baseline)

    def _monitored(self) -> list[float]:
        return [row.get(self.settings.monitor, float("nan")) for row in self.history]

    def _start_stage(self, position: StagePosition, averages: Sequence[np.ndarray]) -> StageRunner:
        """The runner of an epoch's stage, prepared for the epoch unless that is resumed after its first step."""
        stage = self.schedule.stages[position.stage]
        if self._runner is None or self._runner.stage is not stage:
            self._runner = self._make_runner(position.stage)
            if self._runner.average is not None and (self._losses or position.epoch_in_stage):
                self._runner.average.restore(averages)
        if not self._losses:
            self._start_epoch(self._runner, position)
        return self._runner

    def _make_runner(self, index: int) -> StageRunner:
        parts = (self.network, self.schedule.stages[index], self.cuts[index], self.optimizer, self.objective)
        return StageRunner(*parts, self.settings.ema, self._distribution)

    def _start_epoch(self, runner: StageRunner, position: StagePosition) -> None:
        runner.active.apply_rates(self.optimizer)  # not in mid-epoch, where those of the checkpoint stay
        if position.epoch_in_stage == 0 and runner.active.has_batch_norm:
            self._start_statistics(runner)
        if runner.stage.unfreeze == "auto":
            batches = islice(self._stream(runner), _GRADIENT_BATCHES)
            runner.scale_by_gradients([(x, self.train.targets[rows], self.train.weights[rows]) for rows, x in batches])

    def _start_statistics(self, runner: StageRunner) -> None:
        """Recompute the statistics of batch norm if the stage says so, and refit untrained heads to them. Heads that
        were fitted on other statistics can be off by orders of magnitude: a channel that hardly varies in these images
        has large weights behind it, and now varies as all do.
        """
        fit = None if self.history else self.settings.fit_heads
        if runner.stage.batch_norm == "reestimate" or (runner.stage.batch_norm == "train" and fit is not None):
            runner.reestimate(inputs for _, inputs in self._stream(runner))
            if fit is not None:
                source = self.train.source(runner.cut)
                self.network.take_heads(fit(*runner.read_features(source, len(self.train), _FITTED_VIEWS)))
            _assign(self._changing, self._distribution.broadcast(self._snapshot_weights()))

    def _stream(self, runner: StageRunner) -> Iterator[tuple[np.ndarray, Any]]:
        """All batches of the present epoch, whole."""
        return self.train.source(runner.cut).stream(self._draw_batches(), len(self.history))

    def _draw_batches(self) -> list[np.ndarray]:
        size, seed, balanced = self.settings.batch_size, self.settings.seed, self.settings.balanced_sampling
        return self.train.draw_batches(size, seed, len(self.history), balanced=balanced)

    def _take_steps(
        self, runner: StageRunner, position: StagePosition, callbacks: keras.callbacks.CallbackList
    ) -> Iterator[None]:
        """Take the steps that are left of the present epoch, and yield after each."""
        batches, epoch, done = self._draw_batches(), len(self.history), len(self._losses)
        size, steps = len(batches[0]), self._steps_per_epoch
        shares = [self._distribution.share(batch) for batch in batches[done:]]
        label = f"{runner.stage.name} {position.epoch_in_stage + 1}/{runner.stage.length}"
        with progress.progress_bar(label, steps * size, "images") as advance:
            advance(done * size)
            total = sum(self._losses)
            for step, (rows, inputs) in enumerate(self.train.source(runner.cut).stream(shares, epoch), done):
                self.optimizer.learning_rate = self.schedule.rate(position, step, steps)
                callbacks.on_train_batch_begin(step)
                self._losses.append(self._take_step(runner, rows, inputs, epoch * steps + step))
                total += self._losses[-1]
                callbacks.on_train_batch_end(step, {"loss": total / (step + 1)})
                advance(size)
                yield
                if self.network.model.stop_training and self._distribution.workers == 1:
                    return  # several processes stop together, after the epoch

    def _take_step(self, runner: StageRunner, rows: np.ndarray, inputs: Any, number: int) -> float:
        """The loss of a step; its number seeds the mixing."""
        seed = (self.settings.seed % 2**31, number)
        return runner.train(inputs, self.train.targets[rows], self.train.weights[rows], seed)

    def _end_epoch(self, runner: StageRunner, position: StagePosition) -> None:
        """Measure, keep the weights if they are the best, and restore the best at the end of a stage."""
        rates = [self.schedule.rate(position, step, self._steps_per_epoch) for step in range(len(self._losses))]
        row: HistoryRow = {"epoch": len(self.history) + 1, "stage": runner.stage.name}
        row |= {"loss": float(np.mean(self._losses)), "learning_rate": float(np.mean(rates))}
        with runner.averaged():
            self.history.append(row | self._measure(runner))
            if self.best_epoch == len(self.history):
                self._best = self._snapshot_weights()
        self._losses = []
        following = self._locate()
        if following is None or following.stage != position.stage:
            self._end_stage(runner)

    def _end_stage(self, runner: StageRunner) -> None:
        """Put the averages in place of the weights, then the best weights if those are kept."""
        if runner.average is not None:
            runner.average.swap()
        if self.schedule.keep == "best" and self.best_epoch is not None:
            _assign(self._changing, self._best)
        self._runner = None

    def _measure(self, runner: StageRunner) -> dict[str, float]:
        if (split := self.validation) is None:
            return {}
        rows, logits = runner.predict(split.source(runner.cut), len(split))
        return compute_validation_metrics(split.targets[rows], logits, split.weights[rows], self.settings.tasks)

    def _snapshot_weights(self) -> list[np.ndarray]:
        return [np.array(variable) for variable in self._changing]

    def _resume(self) -> list[np.ndarray]:
        """Load the newest checkpoint, or without one measure the start; the checkpoint's moving averages."""
        newest = self._checkpoints.load_latest() if self._checkpoints else None
        found = self._distribution.broadcast_checkpoint(newest)
        if found is None:
            if self.validation is not None:
                self.baseline = self._measure(self._make_runner(0))[self.settings.monitor]
            return []
        began = found.state.get("precision", "float32")
        if began != self.settings.precision:
            raise RunError(
                f"This run was started in {began}: resume it in {began}.",
                self.settings.precision,
                "Resume it on a machine with the same accelerator, or start a new run.",
            )
        keys = ("history", "baseline", "losses", "stopped")
        self.history, self.baseline, self._losses, self._stopped = (found.state[key] for key in keys)
        groups = found.groups
        _assign(self._changing, groups["variables"])
        self._best = groups["best"]
        _assign(self.optimizer.variables, groups["optimizer"])
        return groups.get("average", [])

    def _save(self) -> None:
        if self._checkpoints is None or not self._distribution.is_chief:
            return
        average = self._runner.average.state if self._runner and self._runner.average else []
        groups = {"variables": self._changing, "best": self._best, "optimizer": self.optimizer.variables}
        state = {"history": self.history, "baseline": self.baseline, "losses": self._losses, "stopped": self._stopped}
        self._checkpoints.save(
            len(self.history) * self._steps_per_epoch + len(self._losses),
            pack_groups({**groups, "average": average}),
            {**state, "precision": self.settings.precision},
        )


def _assign(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextmanager
def _holding_signals() -> Iterator[list[int]]:
    """Within, a first Ctrl-C or SIGTERM is only noted in the list, and a second one interrupts at once. Only the main
    thread can receive signals: elsewhere nothing is held back.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
