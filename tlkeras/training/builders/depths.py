"""From a recipe to the features of images at each depth of its backbone."""

from __future__ import annotations

import keras
import numpy as np

from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.features.extraction import average_positions, extract_activations
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS, source_log_probabilities
from tlkeras.features.handcrafted.layer import list_handcrafted
from tlkeras.features.pooling import pool_tensor
from tlkeras.training.builders.data import open_cache
from tlkeras.training.builders.experiment import Experiment


def extract_depths(experiment: Experiment) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of the experiment's images at each depth, float32 (n, d), in one pass, and the readable positions.

    Depths are the blocks of the backbone up to where the recipe cuts it, averaged over positions, then handcrafted
    features, whose codebooks were learned before, then `POOLED`, the features that heads are fitted on. Where the
    extractor has a source head, `SOURCE_LOGITS` are the logarithms of its probabilities.
    """
    recipe, extractor = experiment.recipe, experiment.extractor
    blocks = [] if recipe.backbone.name == NO_BACKBONE else find_blocks(extractor.backbone)
    tensors = {block.name: pool_tensor(block.cut.tensor, "average") for block in blocks}
    tensors |= {layer.name.removeprefix("handcrafted_"): layer.output for layer in list_handcrafted(extractor.pooled)}
    tensors[POOLED] = extractor.pooled.output
    if extractor.source_head is not None:
        tensors[SOURCE_LOGITS] = source_log_probabilities(extractor.backbone, extractor.source_head)
    entry = extractor.pooled.input
    facts = [
        {"backbone": recipe.backbone.name, "model": fingerprint(keras.Model(entry, tensor))}
        for tensor in tensors.values()
    ]
    with extract_activations(
        keras.Model(entry, list(tensors.values()), name=extractor.pooled.name),
        experiment.dataset,
        facts,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=[recipe.features.precision if name == POOLED else "float32" for name in tensors],
    ) as found:
        matrices = [average_positions(np.asarray(output, np.float32)) for output in found.outputs]
        return dict(zip(tensors, matrices, strict=True)), found.kept
