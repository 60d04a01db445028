"""Learning rates from relative gradients (Auto-RGN)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import DataError


def relative_gradient_norms(gradients: Sequence[tf.Tensor | None], variables: Sequence[keras.Variable]) -> np.ndarray:
    """||gradient|| / ||variable|| of each variable, float64 [t], for one batch; to be averaged over a few batches.

    A variable that is all zeros has no scale to compare with: infinity, or 0 where its gradient is 0 as well. A
    gradient of None, that of a variable without influence on the loss, counts as 0.
    DataError if a gradient or a variable has a NaN or an infinity; the first ones are named.

    Args:
        gradients: Of the loss; a common factor, as from loss scaling, does no harm.
        variables: The authors leave out batch norm, as `collect_weights` does. Leave out a new head too: its weights
            are small because it is new, and would make every other rate small.

    Source: Lee et al., Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR 2023.
    """
    pairs = zip(gradients, variables, strict=True)
    norms = [(_measure_norm(gradient), _measure_norm(variable)) for gradient, variable in pairs]
    sizes, scales = np.array(norms).reshape(-1, 2).T
    broken = [variable.path for variable, pair in zip(variables, norms, strict=True) if not np.isfinite(pair).all()]
    if broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise DataError(
            "Weights or their gradients are not finite.", f"NaN or infinity at {named}", "Lower the learning rate."
        )
    unscaled = np.where(sizes > 0, np.inf, 0.0)
    return np.divide(sizes, scales, out=unscaled, where=scales > 0)


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
