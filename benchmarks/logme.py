"""Whether LogME ranks the blocks of a backbone as a head's held-out log loss does, with an intercept and without.

    python benchmarks/logme.py [--sources elpv:224 sklearn-digits:64] [--images 300] [--draws 3] [--head ridge]

Feature sets are the averaged maps of all blocks of the quickstart's backbone. A draw takes so many images to score and
to fit on; the log loss is that of all others. Printed is Kendall's tau of the score and minus that log loss, mean of
the draws; 1 is the same order.
"""

from __future__ import annotations

import argparse

import keras
import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.recipe import load_recipe
from tlkeras.data.inspection import validate_images
from tlkeras.features.extraction import extract_activations
from tlkeras.features.pooling import pool_tensor
from tlkeras.heads.heads import make_head
from tlkeras.heads.transferability import measure_logme
from tlkeras.training import builders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["elpv:224", "sklearn-digits:64"])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--head", default="ridge")
    options = parser.parse_args()
    for source in options.sources:
        name, size = source.rsplit(":", 1)
        features, y = extract(name, int(size))
        draws = [_rank(features, y, options.images, options.head, seed) for seed in range(options.draws)]
        with_intercept, without = np.mean(draws, axis=0)
        print(f"{name}: {len(features)} blocks, tau {with_intercept:.2f} with an intercept, {without:.2f} without")


def extract(source: str, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Features (n, d) of all blocks, and classes (n,)."""
    recipe = load_recipe("quickstart", {"data.source": source, "backbone.size": size})
    dataset = validate_images(builders.read_dataset(recipe))
    backbone = builders.build_feature_extractor(recipe).backbone
    tensors = [pool_tensor(block.cut.tensor, "average") for block in find_blocks(backbone)]
    facts = [{"backbone": recipe.backbone.name, "model": fingerprint(keras.Model(backbone.input, t))} for t in tensors]
    model = keras.Model(backbone.input, tensors, name=backbone.name)
    with extract_activations(model, dataset, facts, cache=builders.open_cache(recipe), dtype="float32") as found:
        (task,) = dataset.tasks
        return [np.asarray(output) for output in found.outputs], dataset.targets[task.name][found.kept]


def _rank(features: list[np.ndarray], y: np.ndarray, images: int, kind: str, seed: int) -> tuple[float, float]:
    fit, held = train_test_split(np.arange(len(y)), train_size=images, stratify=y, random_state=seed)
    scores, losses = [], []
    for X in features:
        Z = StandardScaler().fit_transform(X[fit].astype(np.float64))
        scores.append((measure_logme(Z, y[fit]), measure_logme(Z, y[fit], intercept=False)))
        answers = make_head(kind).fit(X[fit], y[fit]).predict_proba(X[held]).astype(np.float64)
        losses.append(log_loss(y[held], answers / answers.sum(axis=1, keepdims=True)))
    first, second = (kendalltau(column, -np.array(losses))[0] for column in zip(*scores, strict=True))
    return float(first), float(second)


if __name__ == "__main__":
    main()
