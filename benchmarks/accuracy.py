"""How good the recipes on ELPV are: mean and spread of the test figures over seeds, never the best.

    python benchmarks/accuracy.py [--seeds 5] [--recipes quickstart deep_head elpv_paper elpv_finetune] [--runs FOLDER]
                                   [--held-to COLUMN]

A seed draws another split and other initial weights. The features are computed once for all. `against a linear head`
is the difference in ROC AUC from a linear head on the same frozen features, where the recipe's is another one, and in
how many seeds the paired bootstrap finds it above 0 on the images held out. `--runs` keeps the runs, and goes on from
those of the seeds that are there. `--held-to` measures the same answers against another column of ELPV with the same
classes, weighed as before: the figures of Deitsch et al. do not tell what a cell of probability 1/3 was taken for in
their test. It is defective in `any_defect` and functional in `defect`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tlkeras
from tlkeras.data.sources.folders import read_table
from tlkeras.evaluation import metrics
from tlkeras.evaluation.comparison import compare_probabilities
from tlkeras.runs.directory import find_run
from tlkeras.runs.predictions import Predictions, load_predictions, read_probes

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["quickstart", "deep_head", "elpv_paper"])
    parser.add_argument("--runs")
    parser.add_argument("--held-to", metavar="COLUMN")
    options = parser.parse_args()
    columns = ("recipe", *FIGURES, "against a linear head", "minutes")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(options.runs or scratch)
            results = [
                measure(recipe, seed, root / f"{recipe}-{seed}", options.held_to) for seed in range(options.seeds)
            ]
        cells = [_say([result["figures"][name] for result in results]) for name in FIGURES]
        gains = [result["gain"] for result in results if result["gain"]]
        better = sum(gain.better is True for gain in gains)
        cells.append(f"{_say([gain.value for gain in gains])}, {better} of {len(gains)}" if gains else "-")
        minutes = statistics.median(sum(result["phases"].values()) / 60 for result in results)
        print(f"| {recipe} | {' | '.join(cells)} | {minutes:.1f} |")


def measure(recipe: str, seed: int, runs: Path, column: str | None) -> dict[str, Any]:
    """Return a recipe's figures of one seed, its phases, and what it gains in ROC AUC over a linear head.

    Args:
        recipe: Its name.
        seed: Of the split and of the training.
        runs: A folder of this seed's own; where it is there, so is the run.
        column: Of ELPV, that answers are measured against; None: what the recipe trains for.
    """
    if not runs.is_dir():
        tlkeras.train(recipe, set={"data.seed": seed, "training.seed": seed}, runs=runs)
    run = find_run("latest", runs)
    answers, probe = load_predictions(run)[0], next(iter(read_probes(run).values()), None)
    if column:
        answers = relabel(answers, column)
    compared = None if probe is None else compare_probabilities(answers, probe, resamples=1000)["roc_auc"]
    measured = metrics.bootstrap_metrics(answers.targets, answers.probabilities, answers.weights, resamples=0)
    figures = {name: measured[name].value for name in FIGURES}
    print(f"{recipe}, seed {seed}: {figures['roc_auc']:.4f}, gain {compared}", file=sys.stderr)
    return {"figures": figures, "phases": run.manifest["phases"], "gain": compared}


def relabel(answers: Predictions, column: str) -> Predictions:
    """Return answers whose targets are another column's of ELPV."""
    table = read_table("elpv")
    labels = dict(zip(table.keys, table.columns[column], strict=True))
    names = answers.task.class_names
    return replace(answers, targets=np.array([names.index(labels[key]) for key in answers.keys]))


def _say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
