"""How good the recipes on ELPV are: mean and spread of the test figures over seeds, never the best.

    python benchmarks/accuracy.py [--seeds 5] [--recipes quickstart deep_head elpv_paper]

A seed draws another split and other initial weights. The features are computed once for all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import tlkeras

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["quickstart", "deep_head", "elpv_paper"])
    options = parser.parse_args()
    print(f"| recipe | {' | '.join(FIGURES)} | seconds to fit |\n|---{'|---' * (len(FIGURES) + 1)}|")
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as runs:
            results = [
                tlkeras.train(recipe, {"data.seed": seed, "training.seed": seed}, runs=runs)
                for seed in range(options.seeds)
            ]
        cells = [_say([result["metrics"][name]["value"] for result in results]) for name in FIGURES]
        seconds = statistics.median(result["phases"]["fit head"] for result in results)
        print(f"| {recipe} | {' | '.join(cells)} | {seconds:.1f} |")


def _say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
