"""A stage at work: its network behind the cut, its variables, and the compiled steps on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.finetuning.batch_norm import recompute_batch_norm_statistics
from tlkeras.finetuning.distribution import ONE_DEVICE, Strategy
from tlkeras.finetuning.gradient_scaling import derive_multipliers, relative_gradient_norms
from tlkeras.finetuning.inputs import BatchSource, split_recorded
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.optimizers import find_scaled
from tlkeras.finetuning.precision import computing_in
from tlkeras.finetuning.regularization import collect_weights
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.train_step import (
    MovingAverage,
    Objective,
    as_floats,
    list_trainable,
    make_forward,
    make_gradient_step,
    make_train_step,
)

_FORWARD_BATCH = 64


class StageRunner:
    """Makes a network ready for a stage, and trains and asks it.

    Args:
        network: What is trained, in place.
        stage: What trains, at which rates.
        cut: Behind which the batches come in.
        optimizer: Built on at least the variables that the stage trains; a scaled one, or loss scaling around it.
        criterion: What is minimised.
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
        self._network, self._criterion = network, objective
        self._scaled: Any = find_scaled(optimizer)
        self._multipliers = network.apply(stage)
        self._distribution = distribution
        distribution.synchronise(network.list_trained_layers(stage))
        self._suffix = network.suffix(cut)
        self.variables = [*self._suffix.trainable_variables, *list_trainable(objective)]
        self.average = MovingAverage(self.variables, average) if average else None
        self._step = make_train_step(self._suffix, self.variables, optimizer, objective, self.average, distribution)
        self._forward = make_forward(self._suffix, distribution)

    def train(self, inputs: Any, targets: np.ndarray, weights: np.ndarray, seed: Sequence[int]) -> float:
        """Take one step; return the batch's mean loss, without the regularisers."""
        inputs, recorded = split_recorded(inputs)
        batch = [tf.convert_to_tensor(array) for array in (inputs, targets, weights, np.asarray(seed, np.int32))]
        return float(self._step(*batch, None if recorded is None else tf.convert_to_tensor(recorded)))

    def predict(self, supply: BatchSource, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions that could be read, int64 [m], and their logits, float32 [m, k]."""
        return self._ask(self._forward, supply, count, 0)

    def read_features(self, supply: BatchSource, count: int, views: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions that could be read, int64 [m], and what the head takes of them, float32 [m, d].

        Those of each view, as the first epochs show them, stand one after another.
        """
        forward = make_forward(self._suffix, self._distribution, "features")
        positions, features = zip(*(self._ask(forward, supply, count, epoch) for epoch in range(views)), strict=True)
        return np.concatenate(positions), np.concatenate(features)

    def _ask(
        self, forward: Callable[[tf.Tensor], tf.Tensor], supply: BatchSource, count: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        share = self._distribution.share(np.arange(count))
        batches = np.array_split(share, max(1, len(share) // _FORWARD_BATCH))
        positions, predictions = zip(
            *(
                (rows, forward(tf.convert_to_tensor(split_recorded(inputs)[0])).numpy())
                for rows, inputs in supply.stream(batches, epoch)
            ),
            strict=True,
        )
        return self._collect(np.concatenate(positions), np.concatenate(predictions), count)

    def _collect(self, positions: np.ndarray, predictions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Put together what all processes answered, in the order of the positions."""
        if self._distribution.workers == 1:
            return positions, predictions
        found = np.zeros((count, 1 + predictions.shape[1]), np.float32)
        found[positions, 0], found[positions, 1:] = 1.0, predictions
        found = self._distribution.add_up(found)
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
        self._scaled.set_multipliers(self._multipliers)

    @property
    def has_batch_norm(self) -> bool:
        """Whether there is batch norm in the trained blocks."""
        layers = self._network.list_trained_layers(self.stage)
        return any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)

    def reestimate(self, batches: Iterable[Any]) -> None:
        """Take the statistics of batch norm in the trained blocks anew."""
        layers = self._network.list_trained_layers(self.stage)
        inputs = (split_recorded(batch)[0] for batch in batches)
        recompute_batch_norm_statistics(lambda batch: self._suffix(as_floats(batch), training=False), layers, inputs)

    def scale_by_gradients(self, batches: Sequence[tuple[Any, np.ndarray, np.ndarray]]) -> None:
        """Set the rate of each variable of the backbone by its relative gradient; the stage's rates are the ceiling."""
        names = {weight.path for weight in collect_weights(self._network.backbone.layers)}
        judged = [variable for variable in self.variables if variable.path in names]
        measure = make_gradient_step(self._suffix, judged, self._criterion, self._distribution)
        tensors = (map(tf.convert_to_tensor, (split_recorded(x)[0], *others)) for x, *others in batches)
        with computing_in("float32", self._network.backbone.layers):  # for few batches no loss scale can be found
            relative = np.mean([relative_gradient_norms(measure(*batch), judged) for batch in tensors], axis=0)
        factors = zip(judged, derive_multipliers(relative), strict=True)
        scaled = {variable.path: self._multipliers[variable.path] * float(factor) for variable, factor in factors}
        self._scaled.set_multipliers({**self._multipliers, **scaled})
