"""The pretrained half of a network, and the places in it whose values are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.backbones.blocks import Block, find_cut
from tlkeras.backbones.weights import fingerprint

POOLED = "features"
SOURCE_LOGITS = "source"

_TINY = 1e-30  # float32 has it, and no probability that matters is smaller


@dataclass(frozen=True)
class FeatureExtractor:
    """The pretrained half. Its taps are FEATURES, SOURCE (where there is a source head) and the names of cuts.

    Attributes:
        backbone: uint8 images [n, size, size, 3] to a map [n, h, w, width], weights loaded.
        pooled: The same graph with the pooling behind it, to features [n, d].
        blocks: Of the backbone; none where nobody asks for them.
        source_head: From the map to the probabilities of the classes that the weights were trained on.
    """

    backbone: keras.Model
    pooled: keras.Model
    blocks: tuple[Block, ...] = ()
    source_head: keras.Model | None = None

    def join(self, taps: Sequence[str]) -> keras.Model:
        """Return one model from images to the values at each tap."""
        outputs = [self._find(tap) for tap in taps]
        only = outputs[0] if len(outputs) == 1 else outputs  # Keras keeps a list of one as a list
        return keras.Model(self.backbone.input, only, name=self.backbone.name)

    def describe(self, taps: Sequence[str], name: str) -> list[Mapping[str, Any]]:
        """Return the facts that name the values at each tap in the cache; the fingerprint is what tells them apart."""
        return [{"backbone": name, "model": fingerprint(self.join([tap]))} for tap in taps]

    def copy_teacher(self) -> keras.Model:
        """Return a copy, with weights of its own, of what answers as the source does; see `answer_source`."""
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
    """Return the source's log-probabilities of what comes into the backbone, float32 [n, classes of the source].

    Raises:
        ValueError: There is no source head.
    """
    if source_head is None:
        raise ValueError("Only a network with a source head answers as the source does.")
    return keras.ops.log(source_head(backbone.output) + _TINY)
