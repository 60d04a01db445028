"""The compiled steps of a stage: training, prediction, statistics of batch norm, on a network behind a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.inputs import BatchSource, split_recorded
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.precision import computing_in
from tlkeras.finetuning.regularization import collect_weights
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.train_step import (
    MovingAverage,
    Objective,
    as_floats,
    make_forward,
    make_gradient_step,
    make_train_step,
)
from tlkeras.finetuning.unfreezing import ActiveStage

_FORWARD_BATCH = 64


class StageRunner:
    """Applies a stage to a network, and trains the network and predicts with it.

    Args:
        network: Trained in place.
        cut: Where the batches enter the network.
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
        self.stage, self.cut = stage, cut
        self._backbone, self._objective, self._optimizer = network.backbone, objective, optimizer
        self._distribution = distribution
        self.active = ActiveStage(network.groups, stage)
        distribution.synchronise(self.active.layers)
        self._suffix = network.suffix(cut)
        self.variables = [*self._suffix.trainable_variables, *objective.trainable_variables]
        self.average = MovingAverage(self.variables, average) if average else None
        self._step = make_train_step(self._suffix, self.variables, optimizer, objective, self.average, distribution)
        self._forward = make_forward(self._suffix, distribution)

    def train(self, inputs: Any, targets: np.ndarray, weights: np.ndarray, seed: Sequence[int]) -> float:
        """Take one step; the batch's mean loss, without the penalties."""
        inputs, recorded = split_recorded(inputs)
        batch = [tf.convert_to_tensor(array) for array in (inputs, targets, weights, np.asarray(seed, np.int32))]
        return float(self._step(*batch, None if recorded is None else tf.convert_to_tensor(recorded)))

    def predict(self, source: BatchSource, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions that could be read, int64 [m], and their logits, float32 [m, k]."""
        return self._predict(self._forward, source, count, 0)

    def read_features(self, source: BatchSource, count: int, views: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions that could be read, int64 [m], and the inputs of the head, float32 [m, d].

        Those of each view, as the first epochs show them, stand one after another.
        """
        forward = make_forward(self._suffix, self._distribution, "features")
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
        return self._gather(positions, predictions, count)

    def _gather(self, positions: np.ndarray, predictions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The predictions of all processes, in the order of the positions."""
        if self._distribution.workers == 1:
            return positions, predictions
        found = np.zeros((count, 1 + predictions.shape[1]), np.float32)
        found[positions, 0], found[positions, 1:] = 1.0, predictions
        found = self._distribution.all_reduce(found)
        rows = np.flatnonzero(found[:, 0])
        return rows, found[rows, 1:]

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

    def reset_rates(self) -> None:
        """Give each variable the stage's own rate; in mid-epoch those that a checkpoint restored must stay."""
        self.active.apply_rates(self._optimizer)

    def reestimate(self, batches: Iterable[Any]) -> None:
        """Recompute the statistics of batch norm in the trained blocks."""
        inputs = (split_recorded(batch)[0] for batch in batches)
        self.active.reestimate(lambda batch: self._suffix(as_floats(batch), training=False), inputs)

    def scale_by_gradients(self, batches: Sequence[tuple[Any, np.ndarray, np.ndarray]]) -> None:
        """Set the rate of each variable of the backbone by its relative gradient.

        Args:
            batches: Inputs as of a source, targets float32 [b, k] and weights float32 [b].
        """
        paths = {weight.path for weight in collect_weights(self._backbone.layers)}
        variables = [variable for variable in self.variables if variable.path in paths]
        compute = make_gradient_step(self._suffix, variables, self._objective, self._distribution)
        tensors = (map(tf.convert_to_tensor, (split_recorded(x)[0], *others)) for x, *others in batches)
        with computing_in("float32", self._backbone.layers):  # for few batches no loss scale can be found
            self.active.scale_by_gradients(self._optimizer, (compute(*batch) for batch in tensors), variables)
