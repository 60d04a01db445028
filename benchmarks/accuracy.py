"""How good the recipes on ELPV are: mean and spread of the test figures over seeds, never the best.

    python benchmarks/accuracy.py [--seeds 5] [--recipes quickstart deep_head elpv_paper elpv_finetune] [--runs FOLDER]

A seed draws another split and other initial weights. The features are computed once for all. `against a linear head`
is the difference in ROC AUC from a linear head on the same frozen features, where the recipe's is another one, and in
how many seeds the paired bootstrap finds it above 0 on the pictures held out. `--runs` keeps the runs, and goes on from
those of the seeds that are there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import tlkeras
from tlkeras.evaluation.comparison import compare_probabilities
from tlkeras.records import read_answers, read_probes
from tlkeras.runs import find_run

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["quickstart", "deep_head", "elpv_paper"])
    parser.add_argument("--runs")
    options = parser.parse_args()
    columns = ("recipe", *FIGURES, "against a linear head", "minutes")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(options.runs or scratch)
            results = [measure(recipe, seed, root / f"{recipe}-{seed}") for seed in range(options.seeds)]
        cells = [_say([result["metrics"][name]["value"] for result in results]) for name in FIGURES]
        gains = [result["gain"] for result in results if result["gain"]]
        better = sum(gain["better"] is True for gain in gains)
        cells.append(f"{_say([gain['value'] for gain in gains])}, {better} of {len(gains)}" if gains else "-")
        minutes = statistics.median(sum(result["phases"].values()) / 60 for result in results)
        print(f"| {recipe} | {' | '.join(cells)} | {minutes:.1f} |")


def measure(recipe: str, seed: int, runs: Path) -> dict[str, Any]:
    """Return a recipe's figures of one seed, its phases, and what it gains in ROC AUC over a linear head."""
    if not runs.is_dir():
        tlkeras.train(recipe, {"data.seed": seed, "training.seed": seed}, runs=runs)
    run = find_run("latest", runs)
    answers, probe = read_answers(run)[0], next(iter(read_probes(run).values()), None)
    compared = None if probe is None else compare_probabilities(answers, probe, resamples=1000)["roc_auc"]
    figures = tlkeras.evaluate("latest", runs=runs)
    print(f"{recipe}, seed {seed}: {figures['metrics']['roc_auc']['value']:.4f}, gain {compared}", file=sys.stderr)
    return {"metrics": figures["metrics"], "phases": run.manifest["phases"], "gain": compared}


def _say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
