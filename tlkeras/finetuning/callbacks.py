"""Keras callbacks: gradual unfreezing inside one `fit`, for any functional model, and a log for TensorBoard."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import TlkerasError, suggest
from tlkeras.finetuning.callback_checks import changes_by_step, find_problems
from tlkeras.finetuning.freezing import calling, recompute_batch_norm_statistics, take_forced
from tlkeras.finetuning.history import HistoryFolder
from tlkeras.finetuning.layer_groups import Groups, group_layers
from tlkeras.finetuning.optimizers import build_on, find_scaled
from tlkeras.finetuning.schedule import Schedule, Stage, StagePosition
from tlkeras.finetuning.unfreezing import ActiveStage, list_trainable
from tlkeras.lazy_tensorflow import check_backend

logger = logging.getLogger(__name__)

_SCALAR, _TENSOR = 1, 2  # of the enum DataClass in TensorFlow's summary.proto


class GradualUnfreezing(keras.callbacks.Callback):
    """Runs a schedule inside one `fit`: what trains, at which rates, and when to stop.

        optimizer = scale_learning_rates(keras.optimizers.AdamW())
        model.compile(optimizer, "categorical_crossentropy")
        schedule = Schedule((Stage("head", 0, 1e-3, epochs=5), Stage("top", 2, 3e-4, epochs=5)), minimise=True)
        model.fit(train, validation_data=held_out, epochs=schedule.max_epochs, callbacks=[GradualUnfreezing(schedule)])

    The state of an epoch follows from the history alone and is applied at its start, so that a resumed `fit` continues
    where the first one stopped. With a folder as `history` and a `keras.callbacks.BackupAndRestore` beside it, the same
    program started again after a crash does so by itself; else give it `initial_epoch` and the history until then. The
    optimizer is built once on all variables that any stage trains; its moments and its count of steps outlive the
    stages. Frozen layers act as in inference in the steps of `fit` alone, whatever ends it; they stay frozen.

    In stages whose rate changes from step to step (warm-up, and the cosine, which is the default) no other callback can
    set it, and a step is a call: `steps_per_execution` is 1.

    Args:
        schedule: The stages; their learning rates replace that of the optimizer.
        monitor: What the schedule follows, a name in Keras' logs. Without validation data every stage needs a length.
        history: Its value in every epoch that is already behind the model, or a folder that keeps it, and the best
            weights, on disk; of the folder as many epochs are read as are behind the model.
        baseline: Its value before any training, where it is known.
        head: Names of the head's layers, see `group_layers`.
        batches: Images [n, h, w, c] in batches, or tuples that begin with them, for stages that re-estimate batch norm.
        best_weights: Those of the best epoch of `history`, from `model.get_weights()`, if that is not the last one.

    The attributes `history`, NaN where an epoch was not measured, and `best_weights` go on as it trains.
    """

    _groups: Groups
    _position: StagePosition

    def __init__(
        self,
        schedule: Schedule,
        monitor: str = "val_loss",
        *,
        history: Sequence[float] | str | Path = (),
        baseline: float | None = None,
        head: Sequence[str] | None = None,
        batches: Iterable[Any] | None = None,
        best_weights: Sequence[np.ndarray] | None = None,
    ):
        check_backend("GradualUnfreezing")
        super().__init__()
        self.schedule, self.monitor = schedule, monitor
        self._folder = HistoryFolder(history, monitor) if isinstance(history, str | Path) else None
        self.history = [] if isinstance(history, str | Path) else list(history)
        self.baseline, self.best_weights = baseline, best_weights
        self._head = head
        self._batches: Any = batches
        self._resumed = False  # whether the first epoch of this fit has begun
        self._applied: int | None = None  # index of the stage
        self._last_rate: float | None = None  # that this callback set

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Build the optimizer; a TlkerasError names all reasons why the schedule cannot run."""
        self._groups = group_layers(self.model, self._head)
        problems = list(find_problems(self.schedule, self.model, len(self._groups.blocks), self.monitor, self.params))
        if self._batches is None:
            names = [stage.name for stage in self.schedule.stages if stage.batch_norm == "reestimate"]
            problems += [f"stage {name!r} re-estimates batch norm: give it batches." for name in names]
        if problems := [*problems, *([] if self._folder else self._find_problems_of_history())]:
            raise TlkerasError.from_problems("The schedule cannot run:", problems)
        ever = {id(variable) for variable in list_trainable(self._groups, self.schedule.stages)}
        take_forced(self.model.layers)
        variables = [variable for variable in self.model.weights if id(variable) in ever]
        self.model.optimizer = build_on(self.model.optimizer, variables, self.model.weights)
        self._applied, self._resumed = None, False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Apply the stage of the epoch; TlkerasError if the history is not that of the epochs before."""
        if not self._resumed:
            self._resume(epoch)
        if epoch != len(self.history):
            raise TlkerasError(
                "The history does not hold the monitored value of every epoch before this one.",
                f"{len(self.history)} values at epoch {epoch}",
                "Resume with `initial_epoch=len(history)`, or give history a folder that keeps it.",
            )
        self._start_stage(self._locate())

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of a step, in stages in which it changes from step to step; TlkerasError if another did."""
        if changes_by_step(self._stage):
            if batch == 0:
                self._check_rate()
            self._set_rate(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add to the history, keep and restore the best weights, end the run when its schedule is over."""
        logs = {} if logs is None else logs
        logs["stage"] = self._position.stage + 1
        logs["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        before = self._find_best()
        self.history.append(self._read_monitor(logs))
        if self._find_best() == epoch:
            self._keep_weights()
        if self._folder:
            self._folder.write(self.history, [np.array(state).tolist() for state in self._list_random_states()])
            self._folder.keep([self._find_best(), before])  # the weights of `fit` may be an epoch behind
        self._restore_best()
        self.model.stop_training = self.model.stop_training or self._locate() is None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model.train_function = None  # else a further fit would go on with that of the last stage

    @property
    def _stage(self) -> Stage:
        return self.schedule.stages[self._position.stage]

    def _locate(self) -> StagePosition | None:
        return self.schedule.locate(self.history, self.baseline)

    def _find_best(self) -> int | None:
        return self.schedule.best_epoch(self.history, self.baseline) if self.schedule.keep == "best" else None

    def _find_problems_of_history(self) -> Iterator[str]:
        if self._locate() is None:
            yield f"the run is over after the {len(self.history)} epochs of the history."
        if self._find_best() not in (None, len(self.history) - 1) and self.best_weights is None:
            yield "the best epoch of the history is not its last: give its weights as best_weights."

    def _resume(self, epoch: int) -> None:
        """Take up the history before an epoch, once all callbacks have begun and the model has its weights."""
        self._resumed = True
        if self._folder:
            self.history = self._folder.read(epoch)
            if (best := self._find_best()) is not None:
                self.best_weights = self._folder.read_weights(best)
            if problems := list(self._find_problems_of_history()):
                raise TlkerasError.from_problems("The schedule cannot run:", problems)
            self._restore_best()
            for state, values in zip(self._list_random_states(), self._folder.read_random(epoch), strict=False):
                state.assign(values)
        if self.history and not int(self.model.optimizer.iterations):
            raise TlkerasError(
                "The optimizer has taken no step, but epochs are behind the model: its moments are lost.",
                f"{len(self.history)} epochs of history",
                "Keras drops them from a model that is saved while blocks are frozen. Compile with "
                "scale_learning_rates(...), which keeps them; or save weights alone, and before load_weights compile "
                "and call `model.optimizer.build(model.trainable_variables)`.",
            )
        if self._find_best() == len(self.history) - 1:
            self._keep_weights()

    def _list_random_states(self) -> list[keras.Variable]:
        weights = {id(variable) for variable in self.model.weights}
        return [variable for variable in self.model.variables if id(variable) not in weights]

    def _restore_best(self) -> None:
        """Go back to the weights of the best epoch where the schedule does, at the end of a stage."""
        best = self.schedule.restores(self.history, self.baseline)
        if best not in (None, len(self.history) - 1):
            self.model.set_weights(self.best_weights)
            if scaled := find_scaled(self.model.optimizer):
                scaled.restart_averages()
            logger.info("The weights of epoch %d are restored, the best so far.", best + 1)

    def _keep_weights(self) -> None:
        self.best_weights = self.model.get_weights()
        if self._folder:
            self._folder.write_weights(len(self.history) - 1, self.best_weights)

    def _start_stage(self, position: StagePosition | None) -> None:
        """Apply the stage of an epoch, unless it is the one applied before."""
        if position is None or position.stage == self._applied:
            self._position = position or self._position
            return
        self._position, self._applied = position, position.stage
        stage, optimizer = self._stage, self.model.optimizer
        active = ActiveStage(self._groups, stage)
        if stage.batch_norm == "reestimate" and position.epoch_in_stage == 0:
            forward, layers = lambda images: self.model(images, training=False), active.layers
            recompute_batch_norm_statistics(forward, layers, self._batches)
        active.apply_rates(optimizer)
        self._set_rate(0)
        self._make_train_function()
        if any(getattr(variable, "regularizer", None) for variable in self.model.weights):
            self.model.make_test_function(force=True)  # Keras adds the penalties of what trains to the loss
        total, weights = len(self._groups.blocks), sum(math.prod(one.shape) for one in self.model.trainable_variables)
        facts = (stage.name, stage.count_blocks(total), total, f"{weights:,}", stage.learning_rate)
        logger.info("Stage %s: the head and %d of %d blocks train, %s weights; learning rate %g.", *facts)

    def _make_train_function(self) -> None:
        """A training function within which alone frozen layers act as in inference."""
        forced = take_forced(self.model.layers)
        self.model.make_train_function(force=True)
        step = self.model.train_function

        def run_step(iterator: Any) -> Any:
            with calling(forced):
                return step(iterator)

        self.model.train_function = run_step

    def _set_rate(self, step: int) -> None:
        self._last_rate = self.schedule.rate(self._position, step, self.params.get("steps") or 1)
        self.model.optimizer.learning_rate = self._last_rate

    def _check_rate(self) -> None:
        found = np.float32(self.model.optimizer.learning_rate)
        if self._last_rate is not None and found != np.float32(self._last_rate):
            raise TlkerasError(
                f"Another callback set the learning rate, which stage {self._stage.name!r} sets at every step.",
                f"{found:g} in place of {self._last_rate:g}",
                "Give the stage decay='constant' and no warmup, or leave that callback out.",
            )

    def _read_monitor(self, logs: dict[str, Any]) -> float:
        if self.monitor in logs:
            return float(logs[self.monitor])
        measured = [name for name in logs if name.startswith("val_")]
        plateaus = [stage.name for stage in self.schedule.stages if stage.until]
        if self.monitor.startswith("val_") and not measured and not plateaus:
            return math.nan
        raise TlkerasError(
            "The monitored value is not in Keras' logs.", repr(self.monitor), suggest(self.monitor, logs)
        )


class TensorBoardLogger(keras.callbacks.Callback):
    """Writes the logs of each epoch into an event file, at steps from 1: numbers as curves, the stage's name as text.

    A log begins empty, without the event files that the folder has, and a resumed training writes its earlier epochs
    again: so no epoch is missing or there twice, wherever the process before was killed. `tf.summary.scalar` and Keras'
    own callback would need TensorBoard, which only readers of the log must have.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin the log, with the epochs before a resumed training."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = tf.summary.create_file_writer(str(self.folder))
        for epoch, earlier in enumerate(self.params.get("history", ())):
            self.on_epoch_end(epoch, earlier)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        stages = self.params.get("stages")
        with self._writer.as_default(step=epoch + 1):
            for name, value in (logs or {}).items():
                is_text = name == "stage" and stages
                tensor = tf.constant(stages[int(value) - 1] if is_text else value, tf.string if is_text else tf.float32)
                tf.summary.write(name, tensor, metadata=_make_metadata(name, "text" if is_text else "scalars"))
        self._writer.flush()


def _make_metadata(name: str, plugin: str) -> Any:
    metadata = tf.compat.v1.SummaryMetadata(display_name=name, data_class=_TENSOR if plugin == "text" else _SCALAR)
    metadata.plugin_data.plugin_name = plugin
    return metadata
