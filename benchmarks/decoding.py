"""Images decoded and brought to 224 pixels, per core-second: tlkeras, Keras, and the bare decoder.

    python benchmarks/decoding.py [--rounds 5] [--size 224]

Three kinds of files are written to a temporary folder: ELPV's grey PNGs (300x300), the same images as JPEGs, and
photographs of 4000x3000 (scikit-image's "chelsea", enlarged, with sensor noise). Every contender reads them with one
thread; the contenders take turns, and the medians over all rounds are printed as a Markdown table with their ratios.
CPU time of the process is what counts. tlkeras averages areas when it shrinks, where Keras interpolates and aliases.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import skimage.data
import tensorflow as tf
from PIL import Image

from tlkeras.data.pipeline import make_image_dataset
from tlkeras.data.sources.folders import read_table

BATCH = 5
WARM_UP = 5
COPIES = 20  # hard links, so that no stream starts again while it is measured
Contender = Callable[[Path, int], tf.data.Dataset]


def write_images(root: Path) -> list[str]:
    """Write the sets of images; their names."""
    cells = read_table("elpv").paths[:: 2624 // 200][:200]
    noise = np.random.default_rng(0)
    photograph = np.asarray(Image.fromarray(skimage.data.chelsea()).resize((4000, 3000), Image.Resampling.BICUBIC))
    sets: dict[str, Callable[[], Iterator[Image.Image]]] = {
        "PNG 300x300 grey": lambda: (Image.open(path) for path in cells),
        "JPEG 300x300 grey": lambda: (Image.open(path) for path in cells),
        "JPEG 300x300 colour": lambda: (
            Image.fromarray(np.roll(skimage.data.chelsea(), shift, axis=1)[:, :300]) for shift in range(0, 450, 2)
        ),
        "JPEG 4000x3000 colour": lambda: (
            Image.fromarray(np.clip(photograph + noise.normal(0, 4, photograph.shape), 0, 255).astype(np.uint8))
            for _ in range(12)
        ),
    }
    for name, make in sets.items():
        folder = root / name / "class"
        folder.mkdir(parents=True)
        for number, image in enumerate(make()):
            path = folder / f"{number:04d}.{name[:4].strip().lower()}"
            image.save(path, quality=90)
            for copy in range(1, COPIES):
                os.link(path, path.with_stem(f"{path.stem}-{copy}"))
    return list(sets)


def run_tlkeras(folder: Path, size: int) -> tf.data.Dataset:
    paths = sorted(str(path) for path in folder.glob("class/*"))
    return make_image_dataset(paths, size, "stretch", BATCH, workers=1)


def run_keras(folder: Path, size: int) -> tf.data.Dataset:
    return _on_one_thread(
        keras.utils.image_dataset_from_directory(
            str(folder), labels=None, image_size=(size, size), batch_size=BATCH, shuffle=False, verbose=False
        )
    )


def run_bare(folder: Path, size: int) -> tf.data.Dataset:
    paths = sorted(str(path) for path in folder.glob("class/*"))
    decode = tf.io.decode_png if folder.name.startswith("PNG") else tf.io.decode_jpeg
    stream = tf.data.Dataset.from_tensor_slices(paths)
    return _on_one_thread(stream.map(lambda path: decode(tf.io.read_file(path)), num_parallel_calls=1).batch(BATCH))


def _on_one_thread(stream: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return stream.with_options(options)


CONTENDERS: dict[str, Contender] = {"tlkeras": run_tlkeras, "Keras": run_keras, "bare decoder": run_bare}


def measure(streams: dict[str, tf.data.Dataset], batches: int, rounds: int) -> dict[str, float]:
    """Images per core-second of each stream, medians over rounds in which they take turns."""
    iterators = {name: iter(stream) for name, stream in streams.items()}
    speeds: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, iterator in iterators.items():
            for _ in range(WARM_UP):  # what was decoded ahead
                next(iterator)
            start = time.process_time()
            for _ in range(batches):
                next(iterator)
            speeds[name].append(batches * BATCH / (time.process_time() - start))
            settle()
    return {name: statistics.median(values) for name, values in speeds.items()}


def settle() -> None:
    """Wait until no stream decodes ahead any more."""
    used = -1.0
    while time.process_time() - used > 0.01:
        used = time.process_time()
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = write_images(Path(folder))
        print(f"| images per core-second, {arguments.size} | {' | '.join(CONTENDERS)} | to Keras | to bare |")
        print("|---|" + "---|" * (len(CONTENDERS) + 2))
        for name in names:
            streams = {title: run(Path(folder) / name, arguments.size) for title, run in CONTENDERS.items()}
            speeds = measure(streams, 3 if "4000" in name else 40, arguments.rounds)
            ours, usual, bare = (speeds[title] for title in CONTENDERS)
            values = " | ".join(f"{speed:,.0f}" for speed in speeds.values())
            print(f"| {name} | {values} | {ours / usual:.2f} | {ours / bare:.2f} |", flush=True)


if __name__ == "__main__":
    main()
