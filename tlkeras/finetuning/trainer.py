"""The run of a schedule: one optimizer, one history, any number of stages and of interruptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import keras
import numpy as np

from tlkeras import progress
from tlkeras.data.pipeline import epoch_permutation
from tlkeras.errors import RunError
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import BatchSource
from tlkeras.finetuning.losses import alternating_domain_sampler, balanced_sampler
from tlkeras.finetuning.lr_range_test import LRFinderResult, run_lr_sweep
from tlkeras.finetuning.metrics import TaskSlice, compute_validation_metrics
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.optimizers import ScaledOptimizer
from tlkeras.finetuning.precision import computing_in, scale_losses
from tlkeras.finetuning.schedule import Schedule, StagePosition
from tlkeras.finetuning.signals import GracefulShutdown
from tlkeras.finetuning.stage_runner import StageRunner
from tlkeras.finetuning.train_step import Objective, list_trainable

_GRADIENT_BATCHES = 8
_FITTED_VIEWS = 2

HistoryRow = dict[str, Any]
FitHeads = Callable[[np.ndarray, np.ndarray], Mapping[str, Sequence[keras.layers.Layer]]]
"""From positions int64 [m] in the split that is trained on and their features float32 [m, d], where a position can come
several times, to the layers of each task's head."""


@dataclass(frozen=True)
class DataSplit:
    """One split of the data.

    Attributes:
        targets: Dense, float32 [n, k], tasks side by side; NaN throughout a task where its target is not known.
        weights: float32 [n].
        supply: From the name of a cut to what is read there.
        of_target: Which examples are of a target domain, bool [n], without labels and of weight 0; None without one.
        rows: Which of all examples they are, int64 [n]; only who fits heads anew asks for it.
    """

    targets: np.ndarray
    weights: np.ndarray
    supply: Callable[[str], BatchSource]
    of_target: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class TrainerConfig:
    """How the steps are taken.

    Attributes:
        batch_size: Examples in a step; what is left over at the end of an epoch sits it out.
        seed: Of the order of examples and of what is mixed.
        ema: Decay of the moving average of the weights, which is what is measured and kept; 0 for none.
        balanced_sampling: Draw every class equally often.
        monitor: The column of the history that the schedule follows.
        tasks: What the columns of targets and logits are of.
        save_seconds: The most training that kill -9 can cost.
        precision: What the backbone computes in while it trains: "float32", "bfloat16" or "float16". Weights and head
            are float32 in all of them, and the trained network computes in float32.
        distribution: The devices. Network and optimizer must have been made in its scope.
        fit_heads: Fits the heads anew where a schedule begins with other statistics of batch norm than those of the
            features that they were fitted on; None leaves them.
    """

    batch_size: int = 32
    seed: int = 0
    ema: float = 0.0
    balanced_sampling: bool = False
    monitor: str = "val_loss"
    tasks: tuple[TaskSlice, ...] = (TaskSlice(),)
    save_seconds: float = 60.0
    precision: str = "float32"
    distribution: Strategy = ONE_DEVICE
    fit_heads: FitHeads | None = None


class Trainer:
    """Carries out a schedule from wherever the newest checkpoint stands.

    All that the next step depends on is in a checkpoint: the network's variables with the states of its random
    layers, the optimizer's, the moving average, the best weights so far, the history, epoch and step. The order of
    examples and their views are pure functions of seed, epoch and step. So a run that was killed ends with the same
    bits as one that was not, on the same machine.

    Args:
        network: What is trained, in place.
        schedule: When what is trained.
        cuts: Per stage, the cut behind which the network is trained; all before it stays frozen.
        optimizer: A fresh one; it is built here, once, on all that will ever train.
        criterion: What is minimised.
        parts: The splits to train on and to measure on; None for the latter where nothing is held out.
        settings: How the steps are taken.

    Attributes:
        history: One row per finished epoch.
        baseline: The monitored value before any training.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        cuts: Sequence[str],
        optimizer: ScaledOptimizer,
        objective: Objective,
        parts: tuple[DataSplit, DataSplit | None],
        settings: TrainerConfig = TrainerConfig(),
    ):
        self.network, self.schedule, self.cuts = network, schedule, tuple(cuts)
        self._distribution = settings.distribution
        with self._distribution.scope():
            self.optimizer = scale_losses(optimizer, settings.precision)
            self.optimizer.build([*network.list_trainable(schedule.stages), *list_trainable(objective)])
        self._distribution.adopt(self.optimizer)
        self.objective, self.settings = objective, settings
        self.train, self.validation = parts
        self.history: list[HistoryRow] = []
        self.baseline: float | None = None
        self._losses: list[float] = []  # of the present epoch, one per step taken
        self._runner: StageRunner | None = None
        self._changing = [*network.list_changing(schedule.stages), *objective.variables]
        self._best = self._copy()

    def run(
        self, checkpoints: Checkpoints | None = None, observe: Callable[[HistoryRow], None] = lambda row: None
    ) -> list[HistoryRow]:
        """Train to the end of the schedule and return the history; the network then holds the weights kept.

        Ctrl-C and SIGTERM end it between two steps, after a checkpoint; a second one ends it at once.

        Args:
            checkpoints: Where it goes on from and what it saves to.
            observe: Called with each row of the history, first with those of a run that goes on; of a new epoch after
                its checkpoint, so that no epoch is told that is then lost.

        Raises:
            KeyboardInterrupt: It was interrupted; another `run` with the same checkpoints goes on.
            RunError: The checkpoint is of a run in another precision.
        """
        layers = self.network.backbone.layers
        with self._distribution.watch(), self._distribution.scope(), computing_in(self.settings.precision, layers):
            averages = self._resume(checkpoints)
            for row in self.history:
                observe(row)
            self._train(averages, checkpoints, observe)
        self.network.release()
        return self.history

    def find_rate(self, index: int, lowest: float, highest: float, steps: int) -> LRFinderResult:
        """Try rising rates in one stage, from where the network stands; all that moved is put back.

        Args:
            index: Of the stage; those before it are not carried out.
            lowest: The first rate.
            highest: The last rate, unless the loss diverges before.
            steps: Rates to try; batches come again where an epoch has fewer.

        Raises:
            TlkerasError: The range is none.
        """
        moving = [*self._changing, *self.optimizer.variables]
        saved = [np.array(variable) for variable in moving]
        try:
            with computing_in(self.settings.precision, self.network.backbone.layers):
                runner = self._make_runner(index)
                self._prepare(runner, StagePosition(index, 0))
                return run_lr_sweep(lambda rates: self._try_rates(runner, rates), lowest, highest, steps)
        finally:
            for variable, value in zip(moving, saved, strict=True):
                variable.assign(value)
            self.network.release()

    def _try_rates(self, runner: StageRunner, rates: Sequence[float]) -> Iterator[float]:
        batches = chain.from_iterable(map(self._stream, repeat(runner)))
        for step, (rate, (rows, inputs)) in enumerate(zip(rates, batches, strict=False)):
            self.optimizer.learning_rate = rate
            seed = (self.settings.seed % 2**31, step)
            yield runner.train(inputs, self.train.targets[rows], self.train.weights[rows], seed)

    def _train(
        self, averages: list[np.ndarray], checkpoints: Checkpoints | None, observe: Callable[[HistoryRow], None]
    ) -> None:
        """Take all steps that are left."""
        with GracefulShutdown() as interruptions:
            saved = time.monotonic()
            while (position := self._locate()) is not None:
                runner = self._enter(position, averages)
                averages = []
                for _ in self._take_steps(runner, position):
                    if interruptions.received or time.monotonic() - saved > self.settings.save_seconds:
                        self._save(checkpoints)
                        saved = time.monotonic()
                    if interruptions.received:
                        raise KeyboardInterrupt
                self._end_epoch(runner, position)
                self._save(checkpoints)
                observe(self.history[-1])
                saved = time.monotonic()
                if interruptions.received:
                    raise KeyboardInterrupt

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value, counted from 1; 0 stands for the start, None where nothing was measured."""
        best = self.schedule.best_epoch(self._monitored(), self.baseline)
        return None if best is None else best + 1

    def _locate(self) -> StagePosition | None:
        return self.schedule.locate(self._monitored(), self.baseline)

    def _monitored(self) -> list[float]:
        return [row.get(self.settings.monitor, float("nan")) for row in self.history]

    def _enter(self, position: StagePosition, averages: Sequence[np.ndarray]) -> StageRunner:
        """Apply the stage as state, and do what stands at the start of a stage or an epoch."""
        stage = self.schedule.stages[position.stage]
        if self._runner is None or self._runner.stage is not stage:
            self._runner = self._make_runner(position.stage)
            if self._runner.average is not None and (self._losses or position.epoch_in_stage):
                self._runner.average.restore(averages)
        if not self._losses:
            self._prepare(self._runner, position)
        return self._runner

    def _make_runner(self, index: int) -> StageRunner:
        stage, average = self.schedule.stages[index], self.settings.ema
        return StageRunner(
            self.network, stage, self.cuts[index], self.optimizer, self.objective, average, self._distribution
        )

    def _prepare(self, runner: StageRunner, position: StagePosition) -> None:
        runner.reset_rates()
        if position.epoch_in_stage == 0 and runner.has_batch_norm:
            self._start_statistics(runner)
        if runner.stage.unfreeze == "auto":
            batches = islice(self._stream(runner), _GRADIENT_BATCHES)
            runner.scale_by_gradients([(x, self.train.targets[rows], self.train.weights[rows]) for rows, x in batches])

    def _start_statistics(self, runner: StageRunner) -> None:
        """Take the statistics of batch norm anew if the stage asks for it, and fit untrained heads to what they do.

        Heads that were fitted on other statistics can be off by orders of magnitude: a channel that hardly varies in
        these images has large weights behind it, and now varies as all do.
        """
        fit = None if self.history else self.settings.fit_heads
        if runner.stage.batch_norm == "reestimate" or (runner.stage.batch_norm == "train" and fit is not None):
            runner.reestimate(inputs for _, inputs in self._stream(runner))
            if fit is not None:
                supply = self.train.supply(runner.cut)
                self.network.take_heads(fit(*runner.read_features(supply, len(self.train), _FITTED_VIEWS)))
            self._paste(self._distribution.agree(self._copy()))

    def _stream(self, runner: StageRunner) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield all batches of the present epoch, whole."""
        return self.train.supply(runner.cut).stream(self._draw_batches(), len(self.history))

    def _stream_share(self, runner: StageRunner, done: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield this process's part of the batches that the present epoch still lacks."""
        batches = [self._distribution.share(batch) for batch in self._draw_batches()[done:]]
        return self.train.supply(runner.cut).stream(batches, len(self.history))

    def _draw_batches(self) -> list[np.ndarray]:
        """Return the positions of each batch of the present epoch."""
        count, seed, epoch = len(self.train), self.settings.seed, len(self.history)
        if self.train.of_target is not None:
            drawn = alternating_domain_sampler(self.train.of_target, seed, epoch)
        elif self.settings.balanced_sampling:
            drawn = balanced_sampler(self.train.targets.argmax(axis=1), count, seed, epoch)
        else:
            drawn = epoch_permutation(count, seed, epoch)
        size = min(self.settings.batch_size, len(drawn))
        return list(drawn[: len(drawn) // size * size].reshape(-1, size))

    def _take_steps(self, runner: StageRunner, position: StagePosition) -> Iterator[None]:
        """Take the steps that the present epoch still lacks, and yield after each."""
        batches = self._draw_batches()
        size, epoch = len(batches[0]), len(self.history)
        label = f"{runner.stage.name} {position.epoch_in_stage + 1}/{runner.stage.length}"
        with progress.progress_bar(label, len(batches) * size, "images") as advance:
            advance(len(self._losses) * size)
            for rows, inputs in self._stream_share(runner, len(self._losses)):
                step = len(self._losses)
                self.optimizer.learning_rate = self.schedule.rate(position, step, len(batches))
                seed = (self.settings.seed % 2**31, epoch * len(batches) + step)
                self._losses.append(runner.train(inputs, self.train.targets[rows], self.train.weights[rows], seed))
                advance(size)
                yield

    def _end_epoch(self, runner: StageRunner, position: StagePosition) -> None:
        """Measure, keep the weights if they are the best, and restore the best at the end of a stage."""
        steps = len(self._losses)
        row: HistoryRow = {
            "epoch": len(self.history) + 1,
            "stage": runner.stage.name,
            "loss": float(np.mean(self._losses)),
            "learning_rate": float(np.mean([self.schedule.rate(position, step, steps) for step in range(steps)])),
        }
        with runner.averaged():
            self.history.append(row | self._measure(runner))
            monitored = self._monitored()
            if self.schedule.best_epoch(monitored, self.baseline) == len(self.history) - 1:
                self._best = self._copy()
        self._losses = []
        following = self._locate()
        if following is None or following.stage != position.stage:
            if runner.average is not None:
                runner.average.swap()
            if self.schedule.restores(monitored, self.baseline) is not None:
                self._paste(self._best)
            self._runner = None

    def _measure(self, runner: StageRunner) -> dict[str, float]:
        """Return the measures on the validation split; nothing where there is none."""
        split = self.validation
        if split is None:
            return {}
        rows, logits = runner.predict(split.supply(runner.cut), len(split))
        return compute_validation_metrics(split.targets[rows], logits, split.weights[rows], self.settings.tasks)

    def _copy(self) -> list[np.ndarray]:
        return [np.array(variable) for variable in self._changing]

    def _paste(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._changing, values, strict=True):
            variable.assign(value)

    def _resume(self, checkpoints: Checkpoints | None) -> list[np.ndarray]:
        """Load the newest checkpoint and return its moving averages; without one, measure the start."""
        found = self._distribution.spread(checkpoints.load_latest() if checkpoints else None)
        if found is None:
            if self.validation is not None:
                self.baseline = self._measure(self._make_runner(0))[self.settings.monitor]
            return []
        began = found.state.get("precision", "float32")
        if began != self.settings.precision:
            raise RunError(
                "A run goes on in the precision it began in.",
                f"{began} then, {self.settings.precision} now",
                "Resume it on a machine with the same accelerator, or train anew.",
            )
        self.history, self.baseline, self._losses = (found.state[key] for key in ("history", "baseline", "losses"))
        groups: dict[str, list[np.ndarray]] = {}
        for name, values in found.arrays.items():
            groups.setdefault(name.partition("/")[0], []).append(values)
        self._paste(groups["variables"])
        self._best = groups["best"]
        for variable, value in zip(self.optimizer.variables, groups["optimizer"], strict=True):
            variable.assign(value)
        return groups.get("average", [])

    def _save(self, checkpoints: Checkpoints | None) -> None:
        if checkpoints is None or not self._distribution.is_chief:
            return
        groups = {
            "variables": self._changing,
            "best": self._best,
            "optimizer": self.optimizer.variables,
            "average": self._runner.average.state if self._runner and self._runner.average else [],
        }
        arrays = {f"{kind}/{i}": np.array(value) for kind, values in groups.items() for i, value in enumerate(values)}
        state = {
            "history": self.history,
            "baseline": self.baseline,
            "losses": self._losses,
            "precision": self.settings.precision,
        }
        checkpoints.save(len(self.history) * 10**6 + len(self._losses), arrays, state)
