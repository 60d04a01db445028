"""Heads on the depths of one backbone, all from one extraction: accuracy, ROC AUC, seconds to fit, size.

    python benchmarks/heads.py [--source elpv] [--seeds 5] [--configurations 100]

A seed draws another split (75/25, stratified) and other folds. A depth is the last block alone, or the last three
normalised side by side; whether the three are better is said by a paired t test over the seeds. `--configurations N`
fits N configurations of heads on the cached features instead, and says how long all took.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import numpy as np
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from tlkeras import assembly
from tlkeras.data.checks import inspect
from tlkeras.mapping.heads import make_head
from tlkeras.mapping.kernel import KernelSpace
from tlkeras.recipe import load_recipe

DEPTHS = {"last block": {}, "last three blocks": {"features.taps": [-3, -2, -1]}}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ridge": ("ridge", {}),
    "svm": ("svm", {}),
    "centroid": ("centroid", {}),
    "lda": ("lda", {}),
    "cosine": ("cosine", {}),
    "kernel rbf": ("kernel", {}),
    "kernel polynomial": ("kernel", {"space": KernelSpace("polynomial", degree=2)}),
    "deep": ("deep", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="elpv", choices=["elpv", "sklearn-digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--configurations", type=int)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    options = parser.parse_args()
    depths = {name: _read(options.source, options.size, change) for name, change in DEPTHS.items()}
    if options.configurations:
        _time_configurations(*depths["last block"], options.configurations)
        return
    print("| head | depth | accuracy | ROC AUC | seconds to fit | head, MB |\n|---|---|---|---|---|---|")
    for head in options.heads:
        of_depth = {name: _measure(head, X, y, options.seeds, name) for name, (X, y) in depths.items()}
        last, fused = (np.array([row[1] for row in rows]) for rows in of_depth.values())
        if options.seeds > 1:
            p = ttest_rel(fused, last).pvalue
            print(f"|  | three against one | | {np.mean(fused - last):+.4f}, p = {p:.2g} | | |")


def _read(source: str, size: int, change: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    recipe = load_recipe("quickstart", {"data.source": source, "backbone.size": size, **change})
    inspection = inspect(assembly.read_examples(recipe))
    (task,) = inspection.examples.tasks
    with assembly.extract_features(recipe, assembly.build_prefix(recipe), inspection) as features:
        return np.asarray(features.outputs[0]), inspection.examples.targets[task.name][features.kept]


def _measure(
    name: str, X: np.ndarray, y: np.ndarray, seeds: int, depth: str
) -> list[tuple[float, float, float, float]]:
    kind, options = HEADS[name]
    rows = []
    for seed in range(seeds):
        fit, held = train_test_split(np.arange(len(y)), test_size=0.25, stratify=y, random_state=seed)
        seeded = {} if kind == "deep" else {"seed": seed}
        start = time.perf_counter()
        head = make_head(kind, **options, **seeded).fit(X[fit], y[fit])
        seconds = time.perf_counter() - start
        probabilities = head.predict_proba(X[held])
        scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
        auc = roc_auc_score(y[held], scores, multi_class="ovr")
        megabytes = sum(layer.count_params() for layer in head.to_layers()) * 4 / 1e6
        rows.append((float((probabilities.argmax(1) == y[held]).mean()), float(auc), seconds, megabytes))
    accuracy, auc, seconds, megabytes = zip(*rows, strict=True)
    print(
        f"| {name} | {depth} | {_say(accuracy)} | {_say(auc)} | {_say(seconds, 1)} | {megabytes[0]:.1f} |", flush=True
    )
    return rows


def _time_configurations(X: np.ndarray, y: np.ndarray, count: int) -> None:
    """Fit configurations that differ in kind, weights of classes, kernel and width; each chooses its own strength."""
    weights = (None, "balanced")
    grid: list[tuple[str, dict[str, Any]]] = [
        (kind, {"class_weight": weight, "seed": seed})
        for seed, kind, weight in itertools.product(range(5), ("ridge", "lda", "cosine", "centroid", "linear"), weights)
    ]
    grid += [
        ("kernel", {"space": KernelSpace(kernel, components=size, gamma=gamma), "class_weight": weight})
        for kernel, size, gamma, weight in itertools.product(
            ("rbf", "polynomial"), (100, 200, 400), (2e-4, 5e-4, 1e-3, 2e-3, "median"), weights
        )
    ]
    fit, held = train_test_split(np.arange(len(y)), test_size=0.25, stratify=y, random_state=0)
    start, accuracies = time.perf_counter(), []
    for kind, options in grid[:count]:
        head = make_head(kind, **options).fit(X[fit], y[fit])
        accuracies.append(float((head.predict(X[held]) == y[held]).mean()))
    seconds = time.perf_counter() - start
    print(
        f"{len(accuracies)} configurations in {seconds:.0f} s; accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
    )


def _say(values: tuple[float, ...], digits: int = 4) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
