"""Muon for convolutional networks."""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("tlkeras")
class ConvMuon(keras.optimizers.Muon):
    """Muon whose orthogonal steps are those of convolutions, too; that of Keras gives these to AdamW.

    A kernel [..., inputs, outputs] is flattened to a matrix, and its step has the same length in every direction. Under
    AdamW the numbers of a step are of one size, so that where inputs are never negative, as behind a ReLU, they add up
    to a shift of the output's mean, which frozen batch norm does not undo. Depthwise kernels, vectors, embeddings and
    layers named in `exclude_layers` take AdamW's steps.

    Arguments and the size of a step are those of `keras.optimizers.Muon`: 0.2 on average, times the rate, whatever the
    shape (`rms_rate`), so that rates and weight decay for AdamW suit it.

    Source: Jordan et al., Muon, 2024 (kernels flattened); Liu et al., Muon is scalable for LLM training, 2025 (size).
    """

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """About the nearest orthogonal matrix, in the shape of the kernel.

        An iteration multiplies the matrix by a polynomial of its Gram matrix. These commute: their product is found
        first, from small matrices alone, so that the whole one is multiplied twice and not twice per iteration.
        """
        matrix = _flatten(x)
        matrix = matrix / (ops.norm(matrix) + 1e-7)
        tall = matrix.shape[0] > matrix.shape[1]
        turned = ops.transpose(matrix)
        gram = turned @ matrix if tall else matrix @ turned
        product = identity = ops.eye(gram.shape[0], dtype=gram.dtype)
        for _ in range(steps):
            factor = self.muon_a * identity + self.muon_b * gram + self.muon_c * gram @ gram
            product, gram = factor @ product, factor @ gram @ factor
        return ops.reshape(matrix @ product if tall else product @ matrix, x.shape)

    def lr_adjust(self, x: Any) -> Any:
        """Scale a step by the larger side of the matrix."""
        return ops.reshape(super().lr_adjust(_flatten(x)), x.shape)

    def _should_use_adamw(self, variable: Any) -> bool:
        if len(variable.shape) <= 2:
            return super()._should_use_adamw(variable)
        keywords = [*self.exclude_layers, *(["(?i)embedding"] if self.exclude_embeddings else [])]
        return variable.shape[-1] == 1 or any(re.search(keyword, variable.path) for keyword in keywords)


def _flatten(x: Any) -> Any:
    return ops.reshape(x, (-1, x.shape[-1]))
