"""The input pipeline: a folder of 100,000 files and the same ones packed, memory, and rows read from the cache.

    python benchmarks/pipeline.py [--files 100000] [--rows 100000] [--rounds 5]

Files are hard links of JPEGs of 96 x 96 in 100 class folders. "First batch" is from the name of the folder to 32
decoded images, libraries loaded, in a process of its own; peak memory is that of a process that streams them all at
32 x 32. Rows are 1,280 float16 numbers, read in random batches as a head reads them; next to it the rate at which Keras
trains a linear head on rows in memory. Prints Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

WIDTH = 1280
CLASSES = 100


def plant(folder: Path, files: int) -> None:
    """Write a hundred images and link them until there are `files` of them."""
    from PIL import Image

    random = np.random.default_rng(0)
    for label in range(CLASSES):
        home = folder / f"class-{label:02d}"
        home.mkdir()
        coarse = random.integers(0, 256, (12, 12, 3), np.uint8)
        first = home / "000000.jpg"
        Image.fromarray(coarse).resize((96, 96)).save(first, quality=90)
        for number in range(1, files // CLASSES):
            os.link(first, home / f"{number:06d}.jpg")


def stream(folder: str) -> None:
    """Print seconds to the first batch, images per second, and this process's peak memory in MiB."""
    from tlkeras.data.pipeline import epoch_permutation, make_image_dataset
    from tlkeras.data.sources.folders import read_table
    from tlkeras.data.tables import build_dataset

    started = time.perf_counter()
    paths = build_dataset(read_table(folder)).paths
    paths = paths[epoch_permutation(len(paths), 0, 0)]
    batches = iter(make_image_dataset(paths.tolist(), 32, "stretch", 32))
    next(batches)
    first = time.perf_counter() - started
    count = 32 + sum(len(index) for index, _ in batches)
    rate = count / (time.perf_counter() - started)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    print(first, rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def measure_folders(files: int) -> None:
    from tlkeras.data.sources.folders import read_table
    from tlkeras.data.sources.tfrecords import write_tfrecords

    print("| files | first batch, seconds | images/s | peak memory |\n|---|---|---|---|")
    for count in (files // 10, files):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "photos")
            folder.mkdir()
            plant(folder, count)
            packed = write_tfrecords(read_table(str(folder)), Path(scratch, "packed")).path
            for source, name in ((str(folder), ""), (packed, ", packed")):
                command = [sys.executable, __file__, "--stream", source]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                first, rate, peak = map(float, done.stdout.split())
                print(f"| {count:,}{name} | {first:.1f} | {rate:,.0f} | {peak:,.0f} MiB |", flush=True)


def measure_rows(count: int, rounds: int) -> None:
    from tlkeras.features.cache import ActivationCache, Namespace
    from tlkeras.features.extraction import CachedActivations
    from tlkeras.finetuning.inputs import ActivationSource

    random = np.random.default_rng(0)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, ActivationCache(folder).open(Namespace({}, (WIDTH,))) as store:
        with store.writer() as writer:
            for start in range(0, count, 4096):
                part = digests[start : start + 4096]
                writer.add(part, random.random((len(part), WIDTH), np.float32))
        rows = CachedActivations(store, store.locate(digests))
        head = make_head()
        rates: dict[str, list[float]] = {"all at once": [], "batches of 64": [], "batches of 512": []}
        rates["Keras' head, batches of 64"] = []
        for _ in range(rounds):
            rates["all at once"].append(time_rate(count, lambda: np.asarray(rows)))
            for size in (64, 512):
                batches = list(random.permutation(count)[: count // size * size].reshape(-1, size))
                source = ActivationSource([rows])
                rates[f"batches of {size}"].append(
                    time_rate(count, lambda source=source, batches=batches: [None for _ in source.stream(batches, 0)])
                )
            X, y = random.random((6400, WIDTH), np.float32), random.integers(0, 10, 6400)
            learn = lambda X=X, y=y: head.fit(X, y, batch_size=64, verbose=0)  # noqa: E731
            rates["Keras' head, batches of 64"].append(time_rate(len(X), learn))
    print("| rows of 1,280 float16 | rows/s, median |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):,.0f} |")


def make_head():
    import keras

    head = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(10)])
    head.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    head.fit(np.zeros((64, WIDTH), np.float32), np.zeros(64, np.int64), verbose=0)
    return head


def time_rate(count: int, work) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        stream(arguments.stream)
        return
    measure_folders(arguments.files)
    print()
    measure_rows(arguments.rows, arguments.rounds)


if __name__ == "__main__":
    main()
