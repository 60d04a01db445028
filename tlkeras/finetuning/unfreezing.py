"""Entering a stage, for the trainer and the callback alike: what trains, at which rates, and how batch norm acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import TlkerasError
from tlkeras.finetuning.batch_norm import recompute_batch_norm_statistics
from tlkeras.finetuning.freezing import freeze, unfreeze
from tlkeras.finetuning.gradient_scaling import derive_multipliers, relative_gradient_norms
from tlkeras.finetuning.layer_groups import Groups, layerwise_lr_decay
from tlkeras.finetuning.optimizers import find_scaled
from tlkeras.finetuning.schedule import BatchNorm, Stage


def set_trainable(groups: Groups, count: int, batch_norm: BatchNorm = "frozen") -> list[keras.Variable]:
    """Let the head and the top blocks train; all below is frozen and acts as in inference.

    Keras sees the change when the training function is made again. TlkerasError if there are not so many blocks.

    Args:
        count: Blocks that train, counted from the top.
        batch_norm: In blocks that train, see `Stage`; in the head it always trains.

    Returns:
        The variables of the model that now train.
    """
    total = len(groups.blocks)
    if not 0 <= count <= total:
        raise TlkerasError(f"The model has {total} blocks to unfreeze.", count)
    groups.model.trainable = True  # in a nested model that is not, no layer trains
    for block in groups.blocks[: total - count]:
        freeze(block.layers)
    for block in groups.blocks[total - count :]:
        unfreeze(block.layers, batch_norm)
    unfreeze(groups.head.layers)
    return groups.model.trainable_variables


def list_trainable(groups: Groups, stages: Iterable[Stage]) -> list[keras.Variable]:
    """Every variable that a stage trains, each once; the last stage stays applied."""
    found: dict[int, keras.Variable] = {}
    for stage in stages:
        variables = set_trainable(groups, stage.count_blocks(len(groups.blocks)), stage.batch_norm)
        found |= {id(variable): variable for variable in variables}
    return list(found.values())


class ActiveStage:
    """A stage in force on a model: making one freezes and unfreezes the model's layers.

    Attributes:
        layers: Those of the blocks that train, nested ones included.
        multipliers: Learning-rate multiplier of each variable that trains in the backbone, by its path.
    """

    def __init__(self, groups: Groups, stage: Stage):
        total = len(groups.blocks)
        count = stage.count_blocks(total)
        self.stage, self._groups = stage, groups
        set_trainable(groups, count, stage.batch_norm)
        trained = groups.blocks[total - count :]
        self.layers = [part for block in trained for layer in block.layers for part in layer._flatten_layers()]
        self.multipliers = layerwise_lr_decay(groups, stage.multipliers(total))

    @property
    def has_batch_norm(self) -> bool:
        """Whether there is batch norm in the trained blocks."""
        return any(isinstance(layer, keras.layers.BatchNormalization) for layer in self.layers)

    def apply_rates(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Give each variable its learning-rate multiplier, if the optimizer has them."""
        if scaled := find_scaled(optimizer):
            scaled.set_multipliers(self.multipliers)

    def scale_by_gradients(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Iterable[Sequence[tf.Tensor | None]],
        variables: Sequence[keras.Variable],
    ) -> None:
        """Scale the rates of variables of the backbone by their relative gradients; the multipliers are the ceiling.

        Args:
            optimizer: A scaled one, or loss scaling around it.
            gradients: Of each of a few batches, one per variable.
            variables: Those that train in the backbone.
        """
        relative = np.mean([relative_gradient_norms(of_batch, variables) for of_batch in gradients], axis=0)
        factors = zip(variables, derive_multipliers(relative), strict=True)
        scaled = {variable.path: self.multipliers[variable.path] * float(factor) for variable, factor in factors}
        optimizer_with_rates: Any = find_scaled(optimizer)
        optimizer_with_rates.set_multipliers({**self.multipliers, **scaled})

    def reestimate(self, forward: Callable[[Any], Any], batches: Iterable[Any]) -> None:
        """Recompute the statistics of batch norm in the trained blocks, see `recompute_batch_norm_statistics`."""
        recompute_batch_norm_statistics(forward, self.layers, batches)
