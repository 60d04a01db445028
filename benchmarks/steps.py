"""Time of a training step of the upper blocks, with and without the cheaper operations, and with Muon.

    python benchmarks/steps.py [--backbone efficientnet_lite0] [--size 300] [--blocks 9] [--batch 32] [--steps 20]

All take turns on the same random activations, from random weights, with frozen batch norm. Medians, and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from unittest import mock

import keras
import numpy as np

from tlkeras.backbones.builder import build_backbone
from tlkeras.config.schema.finetuning import SoftmaxConfig
from tlkeras.features.pooling import pool
from tlkeras.finetuning import ConvMuon, scale_learning_rates, stage_runner
from tlkeras.finetuning.losses import make_loss
from tlkeras.finetuning.network import Network
from tlkeras.finetuning.schedule import Stage
from tlkeras.finetuning.stage_runner import Objective, StageRunner

WARM_UP = 3
WAYS: Mapping[str, tuple[bool, Callable[[], keras.optimizers.Optimizer]]] = {
    "layers' own operations": (False, keras.optimizers.AdamW),
    "cheaper ones": (True, keras.optimizers.AdamW),
    "cheaper ones and Muon instead of AdamW": (True, ConvMuon),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    takers = [make_taker(options, short, make) for short, make in WAYS.values()]
    times: list[list[float]] = [[] for _ in takers]
    for step in range(WARM_UP + options.steps):
        for taken, take in zip(times, takers, strict=True):
            started = time.perf_counter()
            take()
            if step >= WARM_UP:
                taken.append(time.perf_counter() - started)
    medians = [statistics.median(taken) * 1000 for taken in times]
    print("| | ms per step | of the first |\n|---|---|---|")
    for name, median in zip(WAYS, medians, strict=True):
        print(f"| {name} | {median:.0f} | {median / medians[0]:.2f} |")


def make_taker(
    options: argparse.Namespace, short: bool, make_optimizer: Callable[[], keras.optimizers.Optimizer]
) -> Callable[[], None]:
    """A function that takes a step; its first call traces."""
    backbone = build_backbone(options.backbone, size=options.size, weights="none")
    head = [keras.layers.Dense(2, name="logits"), keras.layers.Softmax(name="probabilities")]
    network = Network(backbone, pool(backbone, "average"), head, "network")
    stage = Stage(name="top", unfreeze=f"{options.blocks} blocks", epochs=1, learning_rate=1e-4)
    cut = network.blocks[-options.blocks - 1].cut
    optimizer = scale_learning_rates(make_optimizer())
    optimizer.build(network.list_trainable([stage]))
    work = StageRunner(network, stage, cut.name, optimizer, Objective(make_loss(SoftmaxConfig())))
    random = np.random.default_rng(0)
    inputs = random.normal(size=(options.batch, *cut.shape)).astype(np.float16)
    targets = np.eye(2, dtype=np.float32)[random.integers(0, 2, options.batch)]
    weights = np.ones(options.batch, np.float32)

    def take() -> None:
        within = (
            nullcontext() if short else mock.patch.object(stage_runner, "use_fused_cpu_ops", lambda *_: nullcontext())
        )
        with within:
            work.train(inputs, targets, weights, (0, 0))

    return take


if __name__ == "__main__":
    main()
