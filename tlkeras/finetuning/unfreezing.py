"""Entering a stage, for the trainer and the callback alike: what trains, at which rates, and how batch norm acts."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import DataError, TlkerasError
from tlkeras.finetuning.freezing import freeze, unfreeze
from tlkeras.finetuning.layer_groups import Groups, layerwise_lr_decay
from tlkeras.finetuning.optimizers import find_scaled
from tlkeras.finetuning.schedule import BatchNorm, Stage


def set_trainable(groups: Groups, count: int, batch_norm: BatchNorm = "frozen") -> list[keras.Variable]:
    """Let the head and the top `count` blocks train; all below is frozen and acts as in inference; what now trains.

    Batch norm in blocks is as of `Stage`; in the head it always trains. Keras sees the change when the training
    function is made again. TlkerasError if there are not so many blocks.
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
    """A stage in force on a model: making one freezes and unfreezes the model's layers."""

    def __init__(self, groups: Groups, stage: Stage):
        total = len(groups.blocks)
        count = stage.count_blocks(total)
        set_trainable(groups, count, stage.batch_norm)
        trained = groups.blocks[total - count :]
        # of the blocks that train, nested ones included
        self.layers = [part for block in trained for layer in block.layers for part in layer._flatten_layers()]
        self.multipliers = layerwise_lr_decay(groups, stage.multipliers(total))

    @property
    def has_batch_norm(self) -> bool:
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

        Gradients are those of a few batches, in each one per variable that trains in the backbone.
        """
        relative = np.mean([relative_gradient_norms(of_batch, variables) for of_batch in gradients], axis=0)
        factors = zip(variables, derive_multipliers(relative), strict=True)
        scaled = {variable.path: self.multipliers[variable.path] * float(factor) for variable, factor in factors}
        optimizer_with_rates: Any = find_scaled(optimizer)
        optimizer_with_rates.set_multipliers({**self.multipliers, **scaled})


def relative_gradient_norms(gradients: Sequence[tf.Tensor | None], variables: Sequence[keras.Variable]) -> np.ndarray:
    """||gradient|| / ||variable|| of each variable, float64 [t], for one batch; to be averaged over a few batches.

    A variable that is all zeros has no scale to compare with: infinity, or 0 where its gradient is 0 as well. A
    gradient of None, that of a variable without influence on the loss, counts as 0.
    A common factor of the gradients, as from loss scaling, does no harm. The authors leave out batch norm, as
    `collect_weights` does. Leave out a new head too: its weights are small because it is new, and would make every
    other rate small. DataError if a gradient or a variable has a NaN or an infinity; the first ones are named.

    Source: Lee et al., Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR 2023.
    """
    pairs = zip(gradients, variables, strict=True)
    norms = [(_measure_norm(gradient), _measure_norm(variable)) for gradient, variable in pairs]
    sizes, scales = np.array(norms).reshape(-1, 2).T
    broken = [variable.path for variable, pair in zip(variables, norms, strict=True) if not np.isfinite(pair).all()]
    if broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        rule = "Weights or their gradients are not finite."
        raise DataError(rule, f"NaN or infinity at {named}", "Lower the learning rate.")
    return np.divide(sizes, scales, out=np.where(sizes > 0, np.inf, 0.0), where=scales > 0)


def derive_multipliers(relative: np.ndarray) -> np.ndarray:
    """Multiplier of each variable's learning rate, in [0, 1]: its relative gradient over the largest one.

    Infinite ones, of variables that are all zeros, learn at the full rate and do not lower that of the others.
    DataError if a value is NaN or negative.

    Source: Lee et al., ICLR 2023 (Auto-RGN).
    """
    relative = np.asarray(relative, dtype=np.float64)
    if not (relative >= 0).all():
        raise DataError("Relative gradients are NaN or negative.", relative[~(relative >= 0)].tolist())
    infinite = np.isinf(relative)
    largest = np.max(relative, initial=0.0, where=~infinite)
    return np.where(infinite, 1.0, relative / (largest or 1.0))


def _measure_norm(values: tf.Tensor | keras.Variable | None) -> float:
    """The Euclidean norm, computed in float64: squares of float32 overflow where the values do not."""
    if values is None:
        return 0.0
    tensor = tf.convert_to_tensor(values)  # also of sparse gradients
    return float(np.linalg.norm(tensor.numpy().astype(np.float64).ravel()))
