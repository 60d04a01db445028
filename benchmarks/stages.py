"""One, two and three stages of gradual unfreezing with the same number of epochs, on ELPV.

    python benchmarks/stages.py [--seeds 5] [--size 128] [--optimizer muon] [--runs FOLDER]

The recipe is `fine_tune`; a seed draws another split, other views and orders. One stage is what `stages: auto` takes:
15 epochs of the upper nine blocks. Two stages begin with 5 epochs of the upper four, three with 5 of the upper two and
5 of the upper five. All share one cache, one optimizer per run, `keep: best` and rates that fall along a cosine in each
stage. `against one stage` is the difference in test ROC AUC and in how many seeds the paired bootstrap finds it above
or below 0. `--runs` keeps the runs, and goes on from those that are there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tlkeras
from tlkeras.evaluation.comparison import compare_probabilities
from tlkeras.evaluation.metrics import bootstrap_metrics
from tlkeras.runs.directory import find_run
from tlkeras.runs.predictions import Predictions, load_predictions

FIGURES = ("accuracy", "roc_auc", "log_loss")
STAGES = {"one": [(9, 15)], "two": [(4, 5), (9, 10)], "three": [(2, 5), (5, 5), (9, 5)]}
"""By name, the upper blocks that are trained in each stage, and its epochs."""


@dataclass(frozen=True)
class Result:
    """Test figures of one run, and its answers."""

    figures: dict[str, float]
    answers: Predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.runs or scratch)
        found: dict[str, list[Result]] = {name: [] for name in STAGES}
        for seed in range(options.seeds):
            for name in STAGES:
                runs = root / f"{name}-{options.optimizer}-{options.size}-{seed}"
                found[name].append(measure(name, seed, options.size, options.optimizer, runs))
                print(name, seed, found[name][-1].figures, file=sys.stderr, flush=True)
    print(f"| stages | {' | '.join(FIGURES)} | against one stage |\n{'|---' * (len(FIGURES) + 2)}|")
    for name, results in found.items():
        cells = [_say([result.figures[figure] for result in results]) for figure in FIGURES]
        print(f"| {name} | {' | '.join(cells)} | {_compare(results, found['one']) if name != 'one' else '-'} |")


def _compare(results: list[Result], others: list[Result]) -> str:
    """Mean difference in ROC AUC, and in how many splits the paired bootstrap is sure of it."""
    pairs = [
        compare_probabilities(one.answers, other.answers.probabilities, resamples=1000)["roc_auc"]
        for one, other in zip(results, others, strict=True)
    ]
    better, worse = (sum(pair.better is verdict for pair in pairs) for verdict in (True, False))
    return f"{_say([pair.value for pair in pairs])}: better in {better}, worse in {worse} of {len(pairs)}"


def measure(name: str, seed: int, size: int, optimizer: str, runs: Path) -> Result:
    """Test figures of a run of its own folder; where it is there, so is the run."""
    if not runs.is_dir():
        stages = [
            {"name": f"top{blocks}", "unfreeze": blocks, "epochs": epochs, "learning_rate": 3e-4}
            | {"backbone_lr_multiplier": 1.0, "warmup": 1 if number == 0 else 0}
            for number, (blocks, epochs) in enumerate(STAGES[name])
        ]
        seeded = {"data.seed": seed, "training.seed": seed, "backbone.size": size}
        tlkeras.train(
            "fine_tune", set={**seeded, "finetuning.stages": stages, "finetuning.optimizer": optimizer}, runs=runs
        )
    answers = load_predictions(find_run("latest", runs))[0]
    measured = bootstrap_metrics(answers.targets, answers.probabilities, answers.weights, resamples=0)
    return Result({figure: measured[figure].value for figure in FIGURES}, answers)


def _say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
