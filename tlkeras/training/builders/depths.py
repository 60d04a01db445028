"""From a recipe to what each depth of its backbone says of pictures."""

from __future__ import annotations

import keras
import numpy as np

from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import NO_BACKBONE
from tlkeras.data.inspection import Inspection
from tlkeras.features.extraction import average_positions, extract
from tlkeras.features.extractor import FEATURES, SOURCE, Prefix, answer_source
from tlkeras.features.handcrafted.layer import list_handcrafted
from tlkeras.features.pooling import pool_tensor
from tlkeras.training.builders.data import open_cache, take_pictures


def extract_depths(
    recipe: Recipe, prefix: Prefix, inspection: Inspection, rows: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the vectors of pictures at each depth, float32 (n, d), in one pass, and the rows that can be read.

    Depths are the blocks of the backbone up to where the recipe cuts it, averaged over positions, then handcrafted
    features, then "features": what the head eats. Where the prefix has a source head, "source" are the logarithms of
    its probabilities.

    Args:
        prefix: With its codebooks learned.
        rows: Of the inspected pictures, int64 (n,).
    """
    blocks = [] if recipe.backbone.name == NO_BACKBONE else find_blocks(prefix.backbone)
    tensors = {block.name: pool_tensor(block.cut.tensor, "average") for block in blocks}
    tensors |= {layer.name.removeprefix("handcrafted_"): layer.output for layer in list_handcrafted(prefix.pooled)}
    tensors[FEATURES] = prefix.pooled.output
    if prefix.source_head is not None:
        tensors[SOURCE] = answer_source(prefix.backbone, prefix.source_head)
    entry = prefix.pooled.input
    facts = [
        {"backbone": recipe.backbone.name, "model": fingerprint(keras.Model(entry, tensor))}
        for tensor in tensors.values()
    ]
    with extract(
        keras.Model(entry, list(tensors.values()), name=prefix.pooled.name),
        take_pictures(recipe, inspection, rows),
        facts,
        cache=open_cache(recipe),
        engine=recipe.features.engine,
        dtype=[recipe.features.precision if name == FEATURES else "float32" for name in tensors],
    ) as found:
        matrices = [average_positions(np.asarray(output, np.float32)) for output in found.outputs]
        return dict(zip(tensors, matrices, strict=True)), rows[found.kept]
