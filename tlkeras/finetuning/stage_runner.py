"""The compiled steps of a stage, on a network behind a cut: training, prediction, gradients, statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.freezing import recompute_batch_norm_statistics
from tlkeras.finetuning.inputs import BatchSource, split_recorded
from tlkeras.finetuning.losses import weighted_mean
from tlkeras.finetuning.network import Network, computing_in, use_fused_cpu_ops
from tlkeras.finetuning.regularization import collect_weights
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.unfreezing import ActiveStage

_FORWARD_BATCH = 64

Outputs = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class Objective:
    """The function that a step minimises."""

    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # from dense targets [b, k] and logits [b, k] to losses [b]
    # each from the network's outputs, `weights` [b] and, where given, `recorded_logits` among them, to a scalar
    penalties: Sequence[Callable[[Outputs], tf.Tensor]] = ()
    mix: Callable[..., Any] | None = None  # from inputs, targets, weights and a seed int32 [2] to mixed ones, or None
    # from the gradients of the tasks' losses (by task, then variable) and a seed int32 [2] to those that are applied;
    # None for their sum. With it the loss must have `split`, by task
    combine: Callable[..., list[Any]] | None = None
    variables: Sequence[keras.Variable] = ()  # of the penalties, not of the network; trainable ones train in all stages

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        return [variable for variable in self.variables if variable.trainable]


class MovingAverage:
    """An exponential moving average of variables (Polyak & Juditsky 1992), short at first.

    At update t the decay is min(decay, (1 + t) / (10 + t)), so that the start does not weigh for ever.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float):
        self.variables, self.decay = list(variables), decay
        self.values = [tf.Variable(variable.value, trainable=False) for variable in variables]
        self.updates = tf.Variable(0.0, trainable=False)
        self._saved = [self.updates, *self.values]

    def update(self) -> None:
        """Add the present values; part of the training step's graph."""
        self.updates.assign_add(1.0)
        decay = tf.minimum(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        for value, variable in zip(self.values, self.variables, strict=True):
            value.assign_add((1.0 - decay) * (variable.value - value))

    @property
    def state(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._saved]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._saved, state, strict=True):
            variable.assign(value)

    def swap(self) -> None:
        for value, variable in zip(self.values, self.variables, strict=True):
            present = variable.numpy()
            variable.assign(value)
            value.assign(present)


class StageRunner:
    """Applies a stage to a network, and trains the network and predicts with it.

    Its steps are compiled, without XLA, which on a CPU is seven to nine times slower for depthwise convolutions.

    Args:
        cut: Where the batches enter the network, which is trained in place.
        optimizer: Built on at least the variables that the stage trains; a scaled one, or loss scaling around it.
        average: Decay of the moving average of the weights; 0 for none.
        distribution: The devices; everything here happens within its scope.
    """

    def __init__(
        self,
        network: Network,
        stage: Stage,
        cut: str,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        average: float = 0.0,
        distribution: Strategy = ONE_DEVICE,
    ):
        self.stage, self.cut, self.active = stage, cut, ActiveStage(network.groups, stage)
        self._backbone, self._objective, self._optimizer = network.backbone, objective, optimizer
        self._distribution = distribution
        distribution.synchronise(self.active.layers)
        self._suffix = network.suffix(cut)
        self.variables = [*self._suffix.trainable_variables, *objective.trainable_variables]
        self.average = MovingAverage(self.variables, average) if average else None
        self._step = _compile(self._take_step)
        self._forward = self._make_forward("logits")

    def train(self, inputs: Any, targets: np.ndarray, weights: np.ndarray, seed: Sequence[int]) -> float:
        """Take one step; the batch's mean loss, without the penalties."""
        inputs, recorded = split_recorded(inputs)
        batch = [tf.convert_to_tensor(array) for array in (inputs, targets, weights, np.asarray(seed, np.int32))]
        return float(self._step(*batch, None if recorded is None else tf.convert_to_tensor(recorded)))

    def _take_step(
        self, inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, seed: tf.Tensor, recorded: Any
    ) -> tf.Tensor:
        inputs = _as_floats(inputs)
        if self._objective.mix is not None:
            inputs, targets, weights = self._objective.mix(inputs, targets, weights, seed)
        loss = self._distribution.run(self._learn, inputs, targets, weights, recorded)
        if self.average is not None:
            self.average.update()
        return loss

    def _learn(self, share: Any, inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, recorded: Any) -> tf.Tensor:
        """Update the variables once, from one device's share of the batch; that share of its mean loss."""
        objective, optimizer = self._objective, self._optimizer
        with tf.GradientTape(persistent=objective.combine is not None) as tape:
            outputs = {**self._call(inputs, training=True), "weights": weights}
            if recorded is not None:
                outputs["recorded_logits"] = recorded
            parts = self._split_loss(targets, tf.cast(outputs["logits"], tf.float32), weights)
            loss = tf.add_n(parts)
            penalties = tf.add_n([tf.constant(0.0), *(penalty(outputs) for penalty in objective.penalties)])
            terms = [loss + penalties] if objective.combine is None else [*parts, penalties]
            terms = [optimizer.scale_loss(term * share) for term in terms]
        gradients = [self._distribution.sum(tape.gradient(term, self.variables)) for term in terms]
        if objective.combine is not None:
            *of_tasks, of_penalties = gradients
            seed = tf.stack([tf.cast(optimizer.iterations, tf.int32), 0])
            gradients = [_sum_gradients(objective.combine(of_tasks, seed), of_penalties)]
        optimizer.apply(gradients[0], self.variables)
        return loss * share

    def _split_loss(self, targets: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
        """The batch's mean loss, a scalar; where gradients are combined, that of each task."""
        loss: Any = self._objective.loss
        if self._objective.combine is None:
            return [weighted_mean(loss(targets, logits), weights)]
        return [weighted_mean(of_task, weights) for of_task in tf.unstack(loss.split(targets, logits), axis=1)]

    def _call(self, inputs: tf.Tensor, training: bool) -> Outputs:
        with use_fused_cpu_ops(self._suffix, training):
            return self._suffix(_as_floats(inputs), training=training)

    def _make_forward(self, output: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """A compiled function from inputs to an output, float32 [b, ...], in inference mode."""

        def forward(inputs: tf.Tensor) -> tf.Tensor:
            return tf.cast(self._call(inputs, training=False)[output], tf.float32)

        return _compile(partial(self._distribution.map, forward))

    def predict(self, source: BatchSource, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions that could be read, int64 [m], and their logits, float32 [m, k]."""
        return self._predict(self._forward, source, count, 0)

    def read_features(self, source: BatchSource, count: int, views: int) -> tuple[np.ndarray, np.ndarray]:
        """Readable positions, int64 [m], and the inputs of the head, float32 [m, d], of one view after another."""
        forward = self._make_forward("features")
        found = [self._predict(forward, source, count, epoch) for epoch in range(views)]
        positions, features = zip(*found, strict=True)
        return np.concatenate(positions), np.concatenate(features)

    def _predict(
        self, forward: Callable[[tf.Tensor], tf.Tensor], source: BatchSource, count: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        share = self._distribution.share(np.arange(count))
        batches = np.array_split(share, max(1, len(share) // _FORWARD_BATCH))
        found = [
            (positions, forward(tf.convert_to_tensor(split_recorded(inputs)[0])).numpy())
            for positions, inputs in source.stream(batches, epoch)
        ]
        positions, predictions = map(np.concatenate, zip(*found, strict=True))
        if self._distribution.workers == 1:
            return positions, predictions
        whole = np.zeros((count, 1 + predictions.shape[1]), np.float32)  # a mark of each readable row before it
        whole[positions, 0], whole[positions, 1:] = 1.0, predictions
        whole = self._distribution.all_reduce(whole)
        rows = np.flatnonzero(whole[:, 0])
        return rows, whole[rows, 1:]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network holds the averaged weights."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def reestimate(self, batches: Iterable[Any]) -> None:
        """Recompute the statistics of batch norm in the trained blocks."""

        def forward(batch: tf.Tensor) -> Outputs:
            return self._suffix(_as_floats(batch), training=False)

        inputs = (split_recorded(batch)[0] for batch in batches)
        recompute_batch_norm_statistics(forward, self.active.layers, inputs)

    def scale_by_gradients(self, batches: Sequence[tuple[Any, np.ndarray, np.ndarray]]) -> None:
        """Set the rate of each variable of the backbone by its relative gradient in (inputs, targets, weights)."""
        paths = {weight.path for weight in collect_weights(self._backbone.layers)}
        variables = [variable for variable in self.variables if variable.path in paths]

        def differentiate(inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                logits = self._call(inputs, training=False)["logits"]
                loss = tf.reduce_mean(self._objective.loss(targets, tf.cast(logits, tf.float32)) * weights)
            return tape.gradient(loss, variables)

        compute = _compile(partial(self._distribution.call, differentiate))
        tensors = (map(tf.convert_to_tensor, (split_recorded(x)[0], *others)) for x, *others in batches)
        with computing_in("float32", self._backbone.layers):  # for few batches no loss scale can be found
            self.active.scale_by_gradients(self._optimizer, (compute(*batch) for batch in tensors), variables)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.function(function, jit_compile=False, reduce_retracing=True)


def _sum_gradients(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """The sums, variable by variable; None where both are."""
    pairs = ([part for part in pair if part is not None] for pair in zip(one, other, strict=True))
    return [tf.add_n(known) if known else None for known in pairs]


def _as_floats(inputs: tf.Tensor) -> tf.Tensor:
    """Inputs in float32, as cached activations may be float16; images stay uint8, which the backbone rescales."""
    return inputs if inputs.dtype == tf.uint8 else tf.cast(inputs, tf.float32)
