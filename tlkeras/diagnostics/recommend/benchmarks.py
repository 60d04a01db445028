"""Speed and memory of a backbone on this machine, measured in a process of its own, whose memory holds nothing else.

That process is `python -m tlkeras.diagnostics.recommend.benchmarks REQUEST`, the request as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tlkeras.config.image_size import ImageSize, format_size, height_and_width
from tlkeras.errors import BackboneError
from tlkeras.features.store import peak_memory

_REPEATS, _STEPS = 15, 4
_BATCH = 32
_SECONDS = 2.0


@dataclass(frozen=True)
class BenchmarkRequest:
    backbone: str  # its name in the catalog; random weights are used
    size: ImageSize  # of the images, pixels
    classes: int
    unfreeze: int  # number of blocks, from the last, that a step of fine-tuning trains
    batch: int = _BATCH


@dataclass(frozen=True)
class BenchmarkResult:
    """Speed and memory of one backbone."""

    milliseconds: float  # latency of a batch of one image, the median
    images_per_second: float  # throughput in batches of 32
    megabytes: float | None  # peak memory of the process in inference; None where the system does not report it
    step_seconds: float  # duration of a step of fine-tuning from cached activations, the median
    step_megabytes: float | None  # peak memory of the process in fine-tuning


def measure_costs(request: BenchmarkRequest) -> BenchmarkResult:
    """The costs of a backbone, measured in a new process; BackboneError if that process failed."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    command = [sys.executable, "-m", "tlkeras.diagnostics.recommend.benchmarks", json.dumps(asdict(request))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return BenchmarkResult(**json.loads(done.stdout.splitlines()[-1]))
    end = f"was killed by signal {-done.returncode} (too little memory?)" if done.returncode < 0 else "failed"
    last_line = " ".join(done.stderr.strip().splitlines()[-1:])
    raise BackboneError(
        f"The benchmark of {request.backbone} at {format_size(request.size)} pixels {end}.", last_line or None
    )


def measure_here(request: BenchmarkRequest) -> BenchmarkResult:
    """The costs of a backbone, measured in this process."""
    import keras
    import numpy as np

    from tlkeras.backbones.builder import build_backbone
    from tlkeras.features.engines import make_engine
    from tlkeras.features.pooling import pool

    backbone = build_backbone(request.backbone, size=request.size, weights="none")
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, *height_and_width(request.size), 3), np.uint8)
    engine = make_engine(pool(backbone, "average"))
    index = np.arange(_BATCH)
    one_image = _time(lambda: list(engine.run([(index[:1], images[:1])])), _REPEATS)
    one_batch = _time(lambda: list(engine.run([(index, images)])), 1)
    batches = max(2, round(_SECONDS / one_batch))
    throughput = batches * _BATCH / _time(lambda: list(engine.run((index, images) for _ in range(batches))), 1)
    megabytes = _peak_megabytes()
    step = _time_step(backbone, request)
    keras.backend.clear_session()
    return BenchmarkResult(1000 * one_image, throughput, megabytes, step, _peak_megabytes())


def _time_step(backbone: Any, request: BenchmarkRequest) -> float:
    """Median seconds of a step that trains the last blocks and a head on the activations of the first blocks."""
    import keras
    import numpy as np

    from tlkeras.backbones.blocks import find_blocks, split
    from tlkeras.features.pooling import pool_tensor

    blocks = find_blocks(backbone)
    frozen = len(blocks) - request.unfreeze
    suffix = split(backbone, blocks[frozen - 1].cut)[1] if frozen > 0 else backbone
    logits = keras.layers.Dense(request.classes)(pool_tensor(suffix.output, "average"))
    model = keras.Model(suffix.input, logits)
    model.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    values = random.random((request.batch, *model.input_shape[1:]), np.float32)
    targets = random.integers(0, request.classes, request.batch)
    return _time(lambda: model.train_on_batch(values, targets), _STEPS)


def _time(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one call to warm up."""
    return statistics.median(timeit.repeat(call, "gc.enable()", number=1, repeat=repeats + 1)[1:])


def _peak_megabytes() -> float | None:
    peak = peak_memory()
    return None if peak is None else peak / 1e6


if __name__ == "__main__":
    from tlkeras.lazy_tensorflow import import_tensorflow_quietly

    import_tensorflow_quietly()
    print(json.dumps(asdict(measure_here(BenchmarkRequest(**json.loads(sys.argv[1]))))))
