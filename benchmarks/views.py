"""Accuracy with V cached views of each image, against no augmentation and against new views in every epoch.

    python benchmarks/views.py [--views 1 2 4 8] [--seeds 0 1] [--images 900] [--size 160] [--epochs 8]

Solar cells (ELPV): the last four blocks of EfficientNet-Lite0 are fine-tuned. With V views the frozen blocks run V
times per image, in the cache; "new in every epoch" decodes and augments in every epoch, as training without a cache
does. Prints a Markdown table: mean and spread over seeds, seconds of the whole run from an empty cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tlkeras

POLICY = [{"flip": "both"}, {"rotate": 3}, {"zoom": 0.05}, {"translate": 0.02}, {"brightness": 0.1}]


def run(seed: int, choice: dict[str, Any], arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Accuracy, area under the curve and seconds."""
    stages = [{"name": "top", "unfreeze": "4 blocks", "epochs": arguments.epochs, "backbone_lr_multiplier": 0.3}]
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.limit": arguments.images,
            "data.validation": 0.15,
            "data.seed": seed,
            "training.seed": seed,
            "backbone.size": arguments.size,
            "finetuning.stages": stages,
            "finetuning.optimizer": "adamw",
            "finetuning.weight_decay": 0,
            "finetuning.ema": 0,
            "finetuning.loss": {"kind": "softmax"},
            "finetuning.keep": "last",  # not the start, where that was better: views are what is compared
            "cache.root": f"{folder}/cache",
            **choice,
        }
        result = tlkeras.evaluate(tlkeras.train("fine_tune", set=overrides, runs=f"{folder}/runs"))
    metrics = result.metrics
    return metrics["accuracy"].value, metrics["roc_auc"].value, sum(result.phases.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    choices: dict[str, dict[str, Any]] = {"no augmentation": {"augmentation.policy": "none"}}
    for count in arguments.views:
        choices[f"{count} cached"] = {"augmentation.policy": POLICY, "augmentation.views": count}
    choices["new in every epoch"] = {"augmentation.policy": POLICY, "finetuning.cache": "off"}
    print("| views | accuracy | ROC AUC | seconds |\n|---|---|---|---|")
    for name, choice in choices.items():
        figures = [run(seed, choice, arguments) for seed in arguments.seeds]
        accuracies, areas, seconds = zip(*figures, strict=True)
        cells = (f"{statistics.mean(of):.3f} ± {statistics.pstdev(of):.3f}" for of in (accuracies, areas))
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
