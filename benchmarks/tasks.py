"""Two tasks on one network beside one network each: defects and types of solar cells, fine-tuned.

    python benchmarks/tasks.py [--seeds 3] [--weightings fixed uncertainty pcgrad]

EfficientNet-Lite0 at 224 pixels, the upper nine blocks for six epochs, eight orientations of each image. A seed draws
the split, which is the same for all, and initial weights. Minutes are those of training and what it computes; of the
networks of one task they are added up. Activations that are kept are computed by whoever comes first, the two tasks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import tlkeras

TASKS = ("defect", "cell_type")
STAGE = {
    "name": "top",
    "unfreeze": "9 blocks",
    "epochs": 6,
    "learning_rate": 3e-4,
    "backbone_lr_multiplier": 1.0,
    "warmup": 1,
}
CHANGES = {
    "data.label": None,
    "data.test": 0.25,
    "backbone.size": 224,
    "augmentation.policy": "dihedral",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weightings", nargs="+", default=["fixed"], choices=("fixed", "uncertainty", "pcgrad"))
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for weighting in options.weightings:
            rows.setdefault(f"both, {weighting}", []).append(train(TASKS, seed, weighting))
        alone = [train((task,), seed, "fixed") for task in TASKS]
        rows.setdefault("each alone", []).append(
            {**alone[0], **alone[1], "minutes": sum(of["minutes"] for of in alone)}
        )
    names = list(next(iter(rows.values()))[0])
    print(f"| networks | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for name, results in rows.items():
        print(f"| {name} | {' | '.join(say([result[of] for result in results]) for of in names)} |")


def train(tasks: tuple[str, ...], seed: int, weighting: str) -> dict[str, float]:
    """Return accuracy and ROC AUC of each task, and minutes."""
    columns = {task: {"column": task} for task in tasks}
    seeds = {"data.seed": seed, "training.seed": seed}
    tuning = {"finetuning": {"stages": [STAGE], "ema": 0.99, "weighting": weighting}}
    with tempfile.TemporaryDirectory() as runs:
        result = tlkeras.evaluate(
            tlkeras.train("quickstart", set={**CHANGES, **tuning, **seeds, "data.tasks": columns}, runs=runs)
        )
    found = result.tasks
    figures = {f"{task}: {name}": found[task].metrics[name].value for task in tasks for name in ("accuracy", "roc_auc")}
    return figures | {"minutes": sum(result.phases[name] for name in ("extract activations", "fine-tune")) / 60}


def say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
