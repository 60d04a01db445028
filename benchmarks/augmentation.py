"""Milliseconds of one core per augmented image, in `tf.data`: tlkeras next to Keras' own layers.

    python benchmarks/augmentation.py [--images 200] [--rounds 5] [--size 224]

Photographs (scikit-image's "chelsea", a window of its own for each) go through one thread; the contenders take turns,
and medians over all rounds are printed as a Markdown table. CPU time of the process is measured, less that of the
bare stream. Keras' layers get single images, so that they too draw for each; batches, for which RandAugment draws its
operations once, are measured as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import skimage.data
import tensorflow as tf

from tlkeras.data.augmentation.policies import POLICIES, make_policy
from tlkeras.data.augmentation.views import make_all_views_fn, make_view_fn, number_views

BATCH = 10
WARM_UP = 10
BARE = "bare stream"


def make_stream(size: int) -> tf.data.Dataset:
    """An endless stream of (index, image uint8 [size, size, 3])."""
    photograph = skimage.data.chelsea()
    windows = [photograph[at : at + size, at : at + size] for at in range(0, len(photograph) - size, 5)]
    return tf.data.Dataset.from_tensor_slices(np.stack(windows)).repeat().enumerate()


def run_on_one_thread(stream: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return stream.with_options(options)


def build_contenders(size: int, keys: np.ndarray) -> dict[str, tuple[tf.data.Dataset, int]]:
    """Streams by name, each with the number of images per step."""
    stream = make_stream(size)
    numbers = np.arange(len(keys))
    contenders = {BARE: (stream, 1)}
    for name in POLICIES:
        augment = make_view_fn(make_policy(name), keys, numbers)
        contenders[f"tlkeras {name}"] = stream.map(_indexed(augment)), 1
    augment = make_all_views_fn(number_views(make_policy("rand_augment"), BATCH), keys)
    contenders[f"tlkeras rand_augment, {BATCH} views of each image"] = stream.map(_indexed(augment)), BATCH
    layer = keras.layers.RandAugment(value_range=(0, 255))
    contenders["Keras RandAugment"] = stream.map(lambda index, image: layer(image[None], training=True)[0]), 1
    in_batches = keras.layers.RandAugment(value_range=(0, 255))
    batches = stream.batch(BATCH).map(lambda index, images: in_batches(images, training=True))
    contenders[f"Keras RandAugment, batches of {BATCH}"] = batches, BATCH
    return contenders


def _indexed(augment: Callable) -> Callable:
    return lambda index, image: augment(image, index)


def measure(contenders: dict[str, tuple[tf.data.Dataset, int]], images: int, rounds: int) -> dict[str, float]:
    """Milliseconds per image of each contender, medians over rounds in which all take turns."""
    iterators = {name: iter(run_on_one_thread(stream)) for name, (stream, _) in contenders.items()}
    for iterator in iterators.values():  # first steps trace
        for _ in range(WARM_UP):
            next(iterator)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, iterator in iterators.items():
            steps = max(1, images // contenders[name][1])
            started = time.process_time()
            for _ in range(steps):
                next(iterator)
            times[name].append((time.process_time() - started) / (steps * contenders[name][1]) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (1 << 14, 2))
    times = measure(build_contenders(arguments.size, keys), arguments.images, arguments.rounds)
    bare = times.pop(BARE)
    reference = times["tlkeras rand_augment"] - bare
    print(f"| one core, {arguments.size}x{arguments.size} | ms per image | of tlkeras rand_augment |")
    print("|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value - bare:.2f} | {(value - bare) / reference:.1f} |")


if __name__ == "__main__":
    main()
