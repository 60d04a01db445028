"""Images per second of an export and of Keras' `model.export`, both through TensorFlow 1's loader and Session.

    python benchmarks/exporting.py [--backbone efficientnet_lite0 --weights packaged] [--batches 1 8 32] [--rounds 7]

Each round runs both, one after the other; a ratio is the median over the rounds. The second table measures the bytes
signature alone: decoding and resizing of JPEGs, in parallel within a batch and one after the other.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tlkeras.backbones.builder import build_backbone
from tlkeras.data.decoding import decode
from tlkeras.data.tasks import Task
from tlkeras.exporting.inference_graph import make_inference_model
from tlkeras.exporting.signatures import LoadedSavedModel, Preprocessing, write_signatures
from tlkeras.features.pooling import pool

KERAS, TLKERAS = "`model.export`", "`tlkeras export`"


def main() -> None:
    arguments = parse_arguments()
    model = make_classifier(arguments.backbone, arguments.weights)
    size = model.input_shape[1]
    with tempfile.TemporaryDirectory() as folder:
        contenders = open_contenders(model, Path(folder))
        print(f"{arguments.backbone}, {size} px, {arguments.rounds} rounds\n")
        print("| batch | | images/s | ratio |\n|---|---|---|---|")
        for batch in arguments.batches:
            images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
            calls = {name: partial(predict, images) for name, predict in contenders.items()}
            check_agreement(calls)
            print_rates(str(batch), measure(calls, batch, arguments.rounds))
        print("\n| batch | decoding of 640 x 480 JPEGs | images/s | ratio |\n|---|---|---|---|")
        for batch in arguments.batches:
            encoded = [draw_jpeg(seed) for seed in range(batch)]
            calls = {
                "one after the other": make_decoder(size, 1, encoded),
                "in parallel": make_decoder(size, 32, encoded),
            }
            print_rates(str(batch), measure(calls, batch, arguments.rounds))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def make_classifier(backbone: str, weights: str) -> keras.Model:
    extractor = pool(build_backbone(backbone, weights=weights), "average")
    probabilities = keras.layers.Dense(10, activation="softmax")(extractor.outputs[0])
    return keras.Model(extractor.input, probabilities)


def open_contenders(model: keras.Model, folder: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """From uint8 images to probabilities with each export, through a Session."""
    size = model.input_shape[1]
    model.export(str(folder / "keras"), verbose=False)
    task = Task("label", tuple(map(str, range(10))))
    samples = np.random.default_rng(1).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    network = make_inference_model(model, [task], samples)
    assert network.is_fast, network.note
    write_signatures(network, [task], Preprocessing(size, "stretch"), folder / "tlkeras")
    plain, fast = LoadedSavedModel(folder / "keras"), LoadedSavedModel(folder / "tlkeras")
    (name,) = plain.signatures["serving_default"].inputs
    return {
        KERAS: lambda images: plain.run("serving_default", **{name: images})["output_0"],
        TLKERAS: lambda images: fast.run("uint8", images=images)["probabilities"],
    }


def check_agreement(calls: dict[str, Callable[[], np.ndarray]]) -> None:
    first, second = (call() for call in calls.values())
    assert np.abs(first - second).max() < 1e-5


def measure(calls: dict[str, Callable[[], object]], batch: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    repeats = max(1, 32 // batch)
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            rates[name].append(repeats * batch / (time.perf_counter() - started))
    return rates


def print_rates(batch: str, rates: dict[str, list[float]]) -> None:
    base = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        print(f"| {batch} | {name} | {statistics.median(values):.0f} | {ratio:.2f} |", flush=True)


def draw_jpeg(seed: int) -> bytes:
    """A smooth JPEG with some noise: 640 x 480, about 60 KB."""
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + random.integers(-12, 13, (480, 640, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def make_decoder(size: int, parallel: int, encoded: list[bytes]) -> Callable[[], np.ndarray]:
    """A call that decodes a batch as the bytes signature does, through a Session."""
    image = tf.TensorSpec((size, size, 3), tf.uint8)

    @partial(tf.function, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def decode_all(images: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda one: decode(one, size, "stretch"), images, fn_output_signature=image, parallel_iterations=parallel
        )

    traced = decode_all.get_concrete_function()
    graph = tf.Graph()
    with graph.as_default():
        encoded_input = tf.compat.v1.placeholder(tf.string, (None,))
        pixels = traced(encoded_input)
    run = tf.compat.v1.Session(graph=graph).make_callable(pixels, [encoded_input])
    array = np.array(encoded, dtype=object)
    return lambda: run(array)


if __name__ == "__main__":
    main()
