"""Domain adaptation: every method on frozen features, over seeds, with source only and the target's bound.

    python benchmarks/domains.py [--shifts mono-poly ...] [--methods coral ...] [--seeds 5] [--epochs 10] [--scores]
    python benchmarks/domains.py --tuned none dann mmd [--shifts mono-poly ...] [--seeds 5]

A seed draws the fifth of the source that validates, the quarter of the target for evaluation, and initial weights.
Other target images are used without labels; the bound alone learns from these labels. `chosen by` is the accuracy of
the method that a score without target labels picks in each seed; the oracle picks by accuracy itself.

`--tuned` trains whole runs of the recipe `elpv_domains` in which these methods fine-tune the upper nine blocks, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, shift
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import tlkeras
from tlkeras.adaptation.adversarial import AdaptationOptions
from tlkeras.adaptation.domain_head import ADAPTATIONS, ALIGNERS, METHODS, DomainAdaptedHead
from tlkeras.config.recipe import load_recipe
from tlkeras.data.inspection import validate_images
from tlkeras.heads.linear import LinearHead
from tlkeras.training import builders

SCORES = ("source", "importance", "deep_embedded_validation", "entropy", "information")
CORRECTED = ("none", "coral")
SHIFTS = ("mono-poly", "poly-mono", "inverted", "blurred")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", nargs="+", default=SHIFTS, choices=SHIFTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--scores", action="store_true", help="also A-distances, and model selection without labels")
    parser.add_argument("--json")
    parser.add_argument("--tuned", nargs="+", choices=("none", *ADAPTATIONS))
    options = parser.parse_args()
    if options.tuned:
        compare_tuned(options)
        return
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in options.shifts}
    domains = {name: read(name) for name in options.shifts}
    for seed in range(options.seeds):
        for name in options.shifts:
            found[name].append(run(domains[name], seed, options))
            if options.json:
                Path(options.json).write_text(json.dumps(found))
            print(f"{name}, seed {seed}: done", flush=True)
    for name, runs in found.items():
        _, ys, _, yt = domains[name]
        print(f"\n### {name}: {len(ys):,} to {len(yt):,} images; classes {share(ys)} to {share(yt)}\n")
        print_table(runs)


def compare_tuned(options: argparse.Namespace) -> None:
    """Print metrics of runs whose network is fine-tuned across solar cells of two types."""
    stage = {"name": "top", "unfreeze": "9 blocks", "epochs": 6, "learning_rate": 2e-4, "warmup": 1}
    changes = {
        "finetuning": {"stages": [stage], "ema": 0.99},
        "augmentation.policy": "dihedral",
        "backbone.size": 224,
    }
    print("| shift | method | accuracy | ROC AUC | minutes |\n|---|---|---|---|---|")
    for shift_name in (name for name in options.shifts if name in ("mono-poly", "poly-mono")):
        source, target = shift_name.split("-")
        for method in options.tuned:
            chosen = {
                **changes,
                "domain_adaptation.source": source,
                "domain_adaptation.target": target,
                "domain_adaptation.method": method,
            }
            with tempfile.TemporaryDirectory() as runs:
                results = [
                    tlkeras.evaluate(
                        tlkeras.train(
                            "elpv_domains", set={**chosen, "data.seed": seed, "training.seed": seed}, runs=runs
                        )
                    )
                    for seed in range(options.seeds)
                ]
            metrics = [format_mean([of.metrics[name].value for of in results]) for name in ("accuracy", "roc_auc")]
            minutes = statistics.median(sum(of.phases.values()) / 60 for of in results)
            print(f"| {shift_name} | {method} | {' | '.join(metrics)} | {minutes:.1f} |", flush=True)


def read(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and classes of the source, and of the target."""
    if name in ("mono-poly", "poly-mono"):
        X, y, kinds = read_elpv()
        source, target = (kinds == kind for kind in name.split("-"))
        return X[source], y[source], X[target], y[target]
    images, y = load_digits(return_X_y=True)
    half = np.random.default_rng(0).permutation(len(y)) < len(y) // 2
    other = 16 - images if name == "inverted" else blur(images)
    return tuple(
        values.astype(kind)
        for values, kind in zip((images[half], y[half], other[~half], y[~half]), (np.float32, int) * 2, strict=True)
    )


def read_elpv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of EfficientNet-Lite0, defects, and types of cells."""
    recipe = load_recipe("elpv_domains", {"domain_adaptation": None})
    dataset = validate_images(builders.read_dataset(recipe))
    experiment = builders.Experiment(recipe, dataset, builders.build_feature_extractor(recipe))
    with builders.extract_features(experiment) as features:
        X = np.asarray(features.outputs[0])
    return X, dataset.targets["defect"][features.kept], dataset.domains[features.kept].astype(str)


def blur(images: np.ndarray) -> np.ndarray:
    """Digits one pixel to the right, out of focus, at half the contrast, with noise."""
    random = np.random.default_rng(1)
    moved = [gaussian_filter(shift(image, (0, 1), order=1), 0.7) / 2 for image in images.reshape(-1, 8, 8)]
    return (np.stack(moved) + random.normal(0, 0.5, (len(images), 8, 8))).reshape(len(images), -1)


def run(domains: tuple[np.ndarray, ...], seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Metrics and scores by method, of one seed."""
    Xs, ys, Xt, yt = domains
    random = np.random.default_rng(seed)
    validation, evaluated = random.random(len(ys)) < 0.2, random.random(len(yt)) < 0.25
    train, held = (Xs[~validation], ys[~validation]), (Xs[validation], ys[validation], np.ones(validation.sum()))
    unlabelled, test = Xt[~evaluated], (Xt[evaluated], yt[evaluated])
    adaptation, results = AdaptationOptions(epochs=options.epochs, seed=seed), {}
    for method in options.methods:
        for correction in ("none", "confusion", "likelihood") if method in CORRECTED else ("none",):
            head = DomainAdaptedHead(
                method, make_head, correction=correction, options=adaptation, scored=options.scores
            )
            head.fit(*train, target=unlabelled, validation=held)
            name = method if correction == "none" else f"{method}, {correction}"
            results[name] = {**measure(head, *test), **head.scores_}
            results[name] |= {"a_distance": head.distances_["after"]} if head.distances_ else {}
    bound = make_head().fit(unlabelled, yt[~evaluated])
    return results | {"target's labels (bound)": measure(bound, *test)}


def make_head() -> LinearHead:
    """The head of all aligners and of the bound, with the strength that is nearly always chosen on such features."""
    return LinearHead(C=0.01)


def measure(head: DomainAdaptedHead | LinearHead, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Metrics on target images."""
    p = head.predict_proba(X)
    area = roc_auc_score(y, p[:, 1]) if p.shape[1] == 2 else roc_auc_score(y, p, multi_class="ovr")
    predictions = p.argmax(axis=1)
    return {
        "accuracy": float((predictions == y).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(y, predictions)),
        "roc_auc": float(area),
    }


def print_table(runs: list[dict[str, dict[str, float]]]) -> None:
    names = ("accuracy", "balanced_accuracy", "roc_auc", "a_distance")
    print(
        "| method | accuracy | against source only | balanced accuracy | ROC AUC | A-distance |\n"
        "|---|---|---|---|---|---|"
    )
    for method in runs[0]:
        cells = [format_mean([of[method].get(name) for of in runs]) for name in names]
        gain = format_mean([100 * (of[method]["accuracy"] - of["none"]["accuracy"]) for of in runs], "+.1f")
        label = "source only" if method == "none" else method
        kind = " (deep)" if method in METHODS and method not in ALIGNERS else ""
        print(f"| {label}{kind} | {cells[0]} | {gain} | {' | '.join(cells[1:])} |")
    if "source" not in runs[0]["none"]:
        return
    print("\n| chosen by | accuracy |\n|---|---|")
    for score in (*SCORES, "accuracy"):
        picked = [max((m for m in of if m in METHODS), key=lambda m: of[m][score]) for of in runs]
        label = "oracle (target labels)" if score == "accuracy" else score.replace("_", " ")
        accuracy = format_mean([of[method]["accuracy"] for of, method in zip(runs, picked, strict=True)])
        print(f"| {label} | {accuracy} ({', '.join(picked)}) |")


def format_mean(values: list[float | None], form: str = ".3f") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):{form}} ± {spread:{form.lstrip('+')}}"


def share(y: np.ndarray) -> str:
    if len(np.unique(y)) > 2:
        return f"{len(np.unique(y))}, even"
    return f"{np.mean(y == 1):.1%} defective"


if __name__ == "__main__":
    main()
