"""Images per second of frozen feature extraction, decoding included, against Keras `predict` and the bare engine.

    python benchmarks/extraction.py [--images 1024] [--rounds 3]

EfficientNet-Lite0 at 224 with average pooling on the packaged ELPV images (PNG, 300x300, grey). Needs the extra
`quickstart`. The contenders run in turn, so that noise of the machine affects all alike; the table shows medians, and
medians of the ratios within a round. A core-second is one second of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import find_backbone
from tlkeras.data.tables import Dataset
from tlkeras.features.engines import Engine, OpenVinoEngine, make_engine
from tlkeras.features.extraction import extract_activations, stream_images
from tlkeras.features.pooling import pool
from tlkeras.files import sha256

BATCH_SIZE = 32
KERAS, BARE = "Keras predict", "bare OpenVINO, decoded tensors"


def main() -> None:
    arguments = parse_arguments()
    extractor = pool(build_backbone(arguments.backbone, weights=arguments.weights), "average")
    size = extractor.input_shape[1]
    images = find_images(arguments.images)
    contenders: dict[str, Callable[[], object]] = {
        KERAS: lambda: extractor.predict(load_as_keras_does(images, size), verbose=0),
        "tlkeras, tensorflow": measure_engine(extractor, images, make_engine(extractor, "tensorflow")),
        "tlkeras, openvino": measure_engine(extractor, images, engine := make_engine(extractor, "openvino")),
    }
    if isinstance(engine, OpenVinoEngine):
        batches = list(stream_images(images, np.arange(len(images)), size))
        tensors = np.concatenate([batch for _, batch in batches])
        contenders["tlkeras, openvino, decoded tensors"] = lambda: list(engine.run(batches))
        contenders[BARE] = lambda: run_bare(engine, tensors)
    for contender in contenders.values():  # first calls trace and compile
        contender()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    core_rates: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: list[float] = []
    for _ in range(arguments.rounds):
        peaks.append(measure_sgemm())
        for name, contender in contenders.items():
            started, used = time.perf_counter(), time.process_time()
            contender()
            rates[name].append(len(images) / (time.perf_counter() - started))
            core_rates[name].append(len(images) / (time.process_time() - used))
    operations = 2 * find_backbone(arguments.backbone).multiply_adds
    print(f"{arguments.backbone}, {size}x{size}, {len(images)} images, {arguments.rounds} rounds, ", end="")
    print(f"sgemm {statistics.median(peaks) / 1e9:.0f} GFLOP/s, {operations / 1e9:.3f} GFLOP per image\n")
    print_table(rates, core_rates, peaks, operations)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def find_images(count: int) -> Dataset:
    import elpv_dataset

    folder = Path(elpv_dataset.__file__).parent / "data" / "images"
    paths = sorted(folder.glob("*.png"))[:count]
    return Dataset.of_files([str(path) for path in paths], [sha256(path) for path in paths])


def load_as_keras_does(images: Dataset, size: int) -> tf.data.Dataset:
    """Batches decoded as by `keras.utils.image_dataset_from_directory`: decode_image, bilinear resize, prefetch."""

    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.ensure_shape(tf.image.resize(image, (size, size)), (size, size, 3))

    paths = tf.data.Dataset.from_tensor_slices(list(images.paths))
    return paths.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def measure_engine(extractor: keras.Model, images: Dataset, engine: Engine) -> Callable[[], object]:
    """A run from files to activations on disk, with an empty cache."""
    return lambda: extract_activations(extractor, images, [{}], engine=engine).close()


def run_bare(engine: OpenVinoEngine, tensors: np.ndarray) -> None:
    """Run decoded images through OpenVINO's own queue; outputs are dropped."""
    import openvino

    compiled = engine.compiled
    group = compiled.input(0).shape[0]
    queue = openvino.AsyncInferQueue(compiled)
    for start in range(0, len(tensors) - group + 1, group):
        queue.start_async({0: tensors[start : start + group]})
    queue.wait_all()


def measure_sgemm(n: int = 3000) -> float:
    """The machine's float32 operations per second in matrix products, by TensorFlow."""
    matrix = tf.random.normal((n, n))
    tf.linalg.matmul(matrix, matrix).numpy()
    started = time.perf_counter()
    for _ in range(3):
        tf.linalg.matmul(matrix, matrix).numpy()
    return 3 * 2 * n**3 / (time.perf_counter() - started)


def print_table(
    rates: dict[str, list[float]], core_rates: dict[str, list[float]], peaks: list[float], operations: float
) -> None:
    print("| | images/s | x Keras | x bare | of sgemm | images/core-s | x Keras | x bare |")
    print("|---|---|---|---|---|---|---|---|")
    for name, values in rates.items():
        peak = statistics.median(rate * operations / top for rate, top in zip(values, peaks, strict=True))
        print(f"| {name} | {describe(rates, name)} | {peak:.0%} | {describe(core_rates, name)} |")


def describe(rates: dict[str, list[float]], name: str) -> str:
    """Three cells: the median rate, and its ratios to those of Keras and of the bare engine."""

    def ratio(other: str) -> str:
        if other not in rates:
            return "-"
        return f"{statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True)):.2f}"

    return f"{statistics.median(rates[name]):.0f} | {ratio(KERAS)} | {ratio(BARE)}"


if __name__ == "__main__":
    main()
