"""The pretrained half of a network, and the tensors in it whose activations are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.backbones.blocks import Block, find_cut
from tlkeras.backbones.weights import fingerprint

POOLED = "features"
SOURCE_LOGITS = "source"

_EPSILON = 1e-30  # a float32 below every probability that matters


@dataclass(frozen=True)
class FeatureExtractor:
    """The pretrained half. Its taps are POOLED, SOURCE_LOGITS (with a source head) and the names of cuts.

    The backbone, weights loaded, makes of uint8 images [n, size, size, 3] a map [n, h, w, width], with the pooling
    features [n, d]; the source head makes of the map the probabilities of the classes that the weights were trained on.
    """

    backbone: keras.Model
    pooled: keras.Model
    blocks: tuple[Block, ...] = ()
    source_head: keras.Model | None = None

    def join(self, taps: Sequence[str]) -> keras.Model:
        """One model from images to the activations at each tap."""
        outputs = [self._find(tap) for tap in taps]
        only = outputs[0] if len(outputs) == 1 else outputs  # Keras keeps a list of one as a list
        return keras.Model(self.backbone.input, only, name=self.backbone.name)

    def describe(self, taps: Sequence[str], name: str) -> list[Mapping[str, Any]]:
        """The facts of each tap's activations for the cache; the fingerprint identifies them."""
        return [{"backbone": name, "model": fingerprint(self.join([tap]))} for tap in taps]

    def copy_teacher(self) -> keras.Model:
        """A copy, with weights of its own, of the model to `source_log_probabilities`."""
        teacher = self.join([SOURCE_LOGITS])
        copied = keras.models.clone_model(teacher)
        copied.set_weights(teacher.get_weights())
        return copied

    def _find(self, tap: str) -> keras.KerasTensor:
        if tap == POOLED:
            return self.pooled.output
        if tap == SOURCE_LOGITS:
            return source_log_probabilities(self.backbone, self.source_head)
        return find_cut(self.backbone, tap).tensor


def source_log_probabilities(backbone: keras.Model, source_head: keras.Model | None) -> keras.KerasTensor:
    """The log-probabilities that the source head predicts, float32 [n, classes of the source]."""
    if source_head is None:
        raise ValueError("The network has no source head.")
    return keras.ops.log(source_head(backbone.output) + _EPSILON)
