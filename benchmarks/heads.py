"""Heads on the depths of one backbone, all from one extraction: accuracy, ROC AUC, seconds to fit, exported size.

    python benchmarks/heads.py [--source elpv] [--seeds 5] [--maps] [--configurations 100]
    python benchmarks/heads.py --matrix [--draws 10] [--cells 64] [--heads linear ridge]

A seed draws another split (75/25, stratified) and other folds or initial weights. One pass over the images extracts
all blocks. A depth is one block, or several normalised and concatenated; whether several are better than the last one
alone is tested by the corrected paired t test of Nadeau and Bengio (Machine Learning 52, 2003), which allows for splits
that share images. The exported size is that of backbone and head as a SavedModel, with the head of the first seed.
`--maps` adds the heads on the last block's maps. `--configurations N` fits N configurations of heads on the cached
features instead, and prints their total time. `--matrix` prints how heads choose and calibrate on simulated data in
every setting: see `head_matrix.py`; `--cells N` takes N of each head's 128.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from head_matrix import VECTOR_HEADS, print_matrix
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.weights import fingerprint
from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.heads import FitConfig
from tlkeras.data.inspection import validate_images
from tlkeras.exporting.parity import measure_size
from tlkeras.features.extraction import extract_activations
from tlkeras.features.pooling import concatenate_normalized, pool_tensor
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.heads import HEADS, attach_heads, make_head
from tlkeras.training import builders

DEPTHS = {
    "last block": (-1,),
    "sixth from last": (-6,),
    "last three": (-3, -2, -1),
    "every third": (-16, -13, -10, -7, -4, -1),
}
ON_VECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ridge": ("ridge", {}),
    "svm": ("svm", {}),
    "centroid": ("centroid", {}),
    "lda": ("lda", {}),
    "cosine": ("cosine", {}),
    "kernel rbf": ("kernel", {}),
    "kernel polynomial": ("kernel", {"kernel": "polynomial", "degree": 2}),
    "kernel laplacian": ("kernel", {"kernel": "laplacian"}),
    "deep": ("deep", {}),
}
ON_MAPS: dict[str, tuple[str, dict[str, Any]]] = {
    kind: (kind, {}) for kind, head in HEADS.items() if head.input_kind == "map"
}
TEST_SHARE = 0.25


@dataclass(frozen=True)
class BlockFeatures:
    """Features of one pass over the images.

    Attributes:
        X: By depth, inputs of heads, (n, d) or (n, h, w, c).
        y: Classes, (n,).
        models: By depth, from images to inputs of heads.
    """

    X: Mapping[str, np.ndarray]
    y: np.ndarray
    models: Mapping[str, keras.Model]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="elpv", choices=["elpv", "sklearn-digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--limit", type=int, help="of images, to try the script")
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--configurations", type=int)
    parser.add_argument("--heads", nargs="+", choices=[*ON_VECTORS, *ON_MAPS, "kernel"])
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--cells", type=int)
    options = parser.parse_args()
    if options.matrix:
        print_matrix(options.heads or VECTOR_HEADS, options.draws, options.cells)
        return
    features = _extract(options.source, options.size, options.limit, options.maps)
    if options.configurations:
        _time_configurations(features.X["last block"], features.y, options.configurations)
        return
    print("| head | depth | accuracy | ROC AUC | seconds to fit | SavedModel, MB |\n|---|---|---|---|---|---|")
    on_maps = ON_MAPS if options.maps else {}
    for name, (kind, settings) in {**ON_VECTORS, **on_maps}.items():
        if options.heads and name not in options.heads:
            continue
        depths = ["map of the last block"] if name in ON_MAPS else list(DEPTHS)
        accuracies = {depth: _measure(name, kind, settings, features, depth, options.seeds) for depth in depths}
        for depth in depths:
            if depth.startswith(("last three", "every")) and options.seeds > 1:
                _compare(depth, accuracies[depth], accuracies["last block"])


def _extract(source: str, size: int, limit: int | None, maps: bool) -> BlockFeatures:
    """Features of all blocks in one pass, and of the depths made of them."""
    recipe = load_recipe("quickstart", {"data.source": source, "backbone.size": size, "data.limit": limit})
    dataset = validate_images(builders.read_dataset(recipe))
    backbone = builders.build_feature_extractor(recipe).backbone
    blocks = find_blocks(backbone)
    pooled = [pool_tensor(block.cut.tensor, "average") for block in blocks]
    tensors = [*pooled, *([backbone.output] if maps else [])]
    facts = [
        {"backbone": recipe.backbone.name, "model": fingerprint(keras.Model(backbone.input, tensor))}
        for tensor in tensors
    ]
    start = time.perf_counter()
    with extract_activations(
        keras.Model(backbone.input, tensors, name=backbone.name),
        dataset,
        facts,
        cache=builders.open_cache(recipe),
        dtype="float32",
    ) as found:
        values = [np.asarray(output) for output in found.outputs]
        (task,) = dataset.tasks
        y = dataset.targets[task.name][found.kept]
        seconds = time.perf_counter() - start
        print(f"{len(y)} images, {len(tensors)} depths, one pass of {seconds:.0f} s ({found.computed} computed)\n")
    X, models = {}, {}
    for name, indices in DEPTHS.items():
        parts = [values[: len(blocks)][index] for index in indices]
        X[name] = parts[0] if len(parts) == 1 else np.hstack([_unify(part) for part in parts])
        models[name] = keras.Model(backbone.input, concatenate_normalized([pooled[index] for index in indices]))
    if maps:
        X["map of the last block"], models["map of the last block"] = values[-1], backbone
    return BlockFeatures(X, y, models)


def _unify(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _measure(
    name: str, kind: str, settings: dict[str, Any], features: BlockFeatures, depth: str, seeds: int
) -> np.ndarray:
    """Accuracy of each seed, after a row of the table is printed."""
    X, y, rows, megabytes = features.X[depth], features.y, [], 0.0
    for seed in range(seeds):
        fit, held = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=seed)
        seeded = {"fitting": FitConfig(seed=seed)} if issubclass(HEADS[kind], KerasHead) else {"seed": seed}
        start = time.perf_counter()
        head = make_head(kind, **settings, **seeded).fit(X[fit], y[fit])
        seconds = time.perf_counter() - start
        probabilities = head.predict_proba(X[held]).astype(np.float64)
        scores = probabilities[:, 1] if probabilities.shape[1] == 2 else _unify_shares(probabilities)
        auc = roc_auc_score(y[held], scores, multi_class="ovr")
        rows.append((float((probabilities.argmax(1) == y[held]).mean()), float(auc), seconds))
        megabytes = megabytes or _export(attach_heads(features.models[depth], head, "exported"))
    accuracy, auc, seconds = zip(*rows, strict=True)
    cells = [name, depth, _format_mean(accuracy), _format_mean(auc), _format_mean(seconds, 1), f"{megabytes:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return np.array(accuracy)


def _unify_shares(probabilities: np.ndarray) -> np.ndarray:
    """Rows that add up to 1 in float64, as scikit-learn requires."""
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _export(model: keras.Model) -> float:
    with tempfile.TemporaryDirectory(prefix="tlkeras-") as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        return measure_size(Path(folder))


def _compare(depth: str, fused: np.ndarray, last: np.ndarray) -> None:
    """Print whether fused depths are more accurate than the last block alone."""
    differences = fused - last
    share = 1 / len(differences) + TEST_SHARE / (1 - TEST_SHARE)
    error = np.sqrt(share * differences.var(ddof=1))
    p = float(2 * stats.t.sf(abs(differences.mean()) / error, len(differences) - 1)) if error else float("nan")
    better = "more accurate" if differences.mean() > 0 else "not more accurate"
    conclusion = better if p < 0.05 else "no difference is proved"
    print(f"|  | {depth} against the last alone | {differences.mean():+.4f}, p = {p:.2g}: {conclusion} | | | |")


def _time_configurations(X: np.ndarray, y: np.ndarray, count: int) -> None:
    """Fit configurations that differ in kind, weights of classes, kernel and width; each chooses its own strength."""
    weights = (None, "balanced")
    grid: list[tuple[str, dict[str, Any]]] = [
        (kind, {"class_weight": weight, "seed": seed})
        for seed, kind, weight in itertools.product(range(5), ("ridge", "lda", "cosine", "centroid", "linear"), weights)
    ]
    grid += [
        ("kernel", {"kernel": kernel, "components": size, "gamma": gamma, "class_weight": weight})
        for kernel, size, gamma, weight in itertools.product(
            ("rbf", "polynomial"), (100, 200, 400), (2e-4, 5e-4, 1e-3, 2e-3, "median"), weights
        )
    ]
    fit, held = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=0)
    start, accuracies = time.perf_counter(), []
    for kind, options in grid[:count]:
        head = make_head(kind, **options).fit(X[fit], y[fit])
        accuracies.append(float((head.predict(X[held]) == y[held]).mean()))
    seconds = time.perf_counter() - start
    print(
        f"{len(accuracies)} configurations in {seconds:.0f} s; accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
    )


def _format_mean(values: tuple[float, ...], digits: int = 4) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
