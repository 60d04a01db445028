"""What a backbone costs on this machine, measured in a process of its own: nothing else is in its memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_ALONE = 15
_BATCH = 32
_SECONDS = 2.0
_STEPS = 4


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is measured.

    Attributes:
        backbone: A name of the catalog; its weights do not matter here.
        size: Side of the images, pixels.
        classes: Answers of the head.
        unfreeze: Blocks that a step of fine-tuning trains.
        batch: Images per step.
    """

    backbone: str
    size: int
    classes: int
    unfreeze: int
    batch: int = _BATCH


@dataclass(frozen=True)
class BenchmarkResult:
    """What it costs.

    Attributes:
        milliseconds: Of one image asked alone, the median.
        images_per_second: Of many images.
        megabytes: Of memory at its peak while answering, the program's own included; None where it cannot be read.
        step_seconds: Of a step of fine-tuning from kept activations, the median.
        step_megabytes: Of memory at its peak while fine-tuning.
    """

    milliseconds: float
    images_per_second: float
    megabytes: float | None
    step_seconds: float
    step_megabytes: float | None


def measure_costs(question: BenchmarkRequest) -> BenchmarkResult | str:
    """Return the costs, or in words why they could not be measured."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "tlkeras.diagnostics.recommend.benchmark_main", json.dumps(asdict(question))],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode == 0:
        return BenchmarkResult(**json.loads(done.stdout.splitlines()[-1]))
    how = f"killed by signal {-done.returncode} (too little memory?)" if done.returncode < 0 else "it failed"
    return f"{how}: {' '.join(done.stderr.strip().splitlines()[-1:])}"


def measure_here(question: BenchmarkRequest) -> BenchmarkResult:
    """Measure in this process."""
    import keras
    import numpy as np

    from tlkeras.backbones.builder import build_backbone
    from tlkeras.features.engines import make_engine
    from tlkeras.features.pooling import pool

    backbone = build_backbone(question.backbone, size=question.size, weights="none")
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, question.size, question.size, 3), np.uint8)
    engine = make_engine(pool(backbone, "average"))
    index = np.arange(_BATCH)
    alone = _time(lambda: list(engine.run([(index[:1], images[:1])])), _ALONE)
    whole = _time(lambda: list(engine.run([(index, images)])), 1)
    many = max(2, round(_SECONDS / whole))
    rate = many * _BATCH / _time(lambda: list(engine.run((index, images) for _ in range(many))), 1)
    megabytes = read_peak()
    step = _time_step(backbone, question)
    keras.backend.clear_session()
    return BenchmarkResult(1000 * alone, rate, megabytes, step, read_peak())


def _time_step(backbone: Any, question: BenchmarkRequest) -> float:
    """Return the seconds of a step that trains the last blocks, and a head, from what the first ones gave."""
    import keras
    import numpy as np

    from tlkeras.backbones.blocks import find_blocks, split
    from tlkeras.features.pooling import pool_tensor

    blocks = find_blocks(backbone)
    frozen = len(blocks) - question.unfreeze
    suffix = split(backbone, blocks[frozen - 1].cut)[1] if frozen > 0 else backbone
    answers = keras.layers.Dense(question.classes)(pool_tensor(suffix.output, "average"))
    model = keras.Model(suffix.input, answers)
    model.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    values = random.random((question.batch, *model.input_shape[1:]), np.float32)
    targets = random.integers(0, question.classes, question.batch)
    return _time(lambda: model.train_on_batch(values, targets), _STEPS)


def _time(call: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def read_peak() -> float | None:
    """Return the most memory that this process has held, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
