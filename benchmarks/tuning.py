"""A search with `tlkeras tune` next to the same search as KerasTuner's users write it: seconds, and memory per trial.

    python benchmarks/tuning.py [--trials 100] [--epochs 10] [--plain-trials 2] [--suffix-trials 3]

Solar cells (ELPV), EfficientNet-Lite0 at 224 px. First the head: width, learning rate and dropout over a frozen
backbone. Ours runs whole, from an empty cache; KerasTuner's, with the frozen backbone inside each model, runs
`--plain-trials` trials of one epoch each and is extrapolated: an epoch as measured, times epochs, times trials, and the
building of a model once per trial. Then learning-rate ratio and layer decay of a suffix: the same search with
and without cached activations. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import psutil

from tlkeras.tuning.report import TuningResult

WIDTHS = [64, 128, 256, 512]
SUFFIX = {"name": "top", "unfreeze": "3 blocks", "epochs": 1, "learning_rate": 3e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain-trials", type=int, default=2)
    parser.add_argument("--suffix-trials", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TLKERAS_CACHE"] = str(Path(folder) / "cache")
        compare_heads(arguments, Path(folder))
        if arguments.suffix_trials:
            compare_suffixes(arguments, Path(folder))


def compare_heads(arguments: argparse.Namespace, folder: Path) -> None:
    space = {
        "head.widths": [[width] for width in WIDTHS],
        "head.dropout": {"min": 0.0, "max": 0.7},
        "training.learning_rate": {"min": 1e-4, "max": 1e-2, "sampling": "log"},
    }
    changes = {"head": {"kind": "deep", "widths": [64]}, "training.epochs": arguments.epochs}
    started = time.perf_counter()
    with Memory() as memory:
        result = search(space, changes, arguments.trials, folder / "heads")
    ours = time.perf_counter() - started
    seconds, build, epoch = run_plain(arguments.plain_trials)
    plain = arguments.trials * (build + arguments.epochs * epoch)
    best = min(trial.score("loss") for trial in result.trials)
    print(f"{arguments.trials} trials of {arguments.epochs} epochs; the best validation loss {best:.4f}\n")
    print("| search | seconds | |\n|---|---|---|")
    print(f"| `tlkeras tune`, from an empty cache | {ours:.0f} | measured |")
    source = f"extrapolated from {arguments.plain_trials} trials of one epoch, {seconds:.0f} s"
    print(f"| KerasTuner, frozen backbone in the model | {plain:.0f} | {source} |")
    print(f"| ratio | {plain / ours:.0f} | |")
    print(f"\nMiB in use, medians of ten spans of the search: {', '.join(memory.list_spans(10))}\n", flush=True)


def search(space: dict[str, Any], changes: dict[str, Any], trials: int, runs: Path) -> TuningResult:
    import tlkeras

    tuning = {"max_trials": trials, "confirm_top": 1, "confirm_seeds": 1, "space": space}
    overrides = {"name": "searched", "backbone.size": 224, "data.validation": 0.15, **changes, "tuning": tuning}
    return tlkeras.tune("quickstart", overrides, train_best=False, runs=runs)


class Memory:
    """Memory of this process, sampled ten times a second."""

    def __enter__(self) -> Memory:
        self.values: list[float] = []
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.1):
            self.values.append(process.memory_info().rss / 2**20)

    def list_spans(self, count: int) -> list[str]:
        """Medians of `count` equal spans of time, as text."""
        return [f"{np.median(span):.0f}" for span in np.array_split(self.values, count) if len(span)]


def run_plain(trials: int) -> tuple[float, float, float]:
    """Seconds of all trials as KerasTuner's users write them, of building one, and of one epoch."""
    import keras
    import keras_tuner
    import tensorflow as tf

    from tlkeras.backbones.builder import build_backbone
    from tlkeras.config.recipe import load_recipe
    from tlkeras.data.decoding import decode
    from tlkeras.training import builders

    recipe = load_recipe("quickstart", {"data.validation": 0.15})
    dataset = builders.split_dataset(recipe, builders.read_dataset(recipe))
    targets = dataset.targets[dataset.tasks[0].name]

    def read(split: str) -> tf.data.Dataset:
        rows = dataset.rows(split)
        files = tf.data.Dataset.from_tensor_slices((dataset.paths[rows].astype(str), targets[rows]))
        images = files.map(lambda path, target: (decode(tf.io.read_file(path), 224, "stretch"), target), 2)
        return images.batch(64).cache().prefetch(2)  # pixels in memory, as a careful user would do it

    built: list[float] = []

    def make(hyperparameters: keras_tuner.HyperParameters) -> keras.Model:
        started = time.perf_counter()
        backbone = build_backbone("efficientnet_lite0", size=224, weights="packaged")
        backbone.trainable = False
        x = keras.layers.GlobalAveragePooling2D()(backbone(backbone.input, training=False))
        x = keras.layers.Dense(hyperparameters.Choice("width", WIDTHS), activation="relu")(x)
        x = keras.layers.Dropout(hyperparameters.Float("dropout", 0, 0.7))(x)
        model = keras.Model(backbone.input, keras.layers.Dense(2, activation="softmax")(x))
        rate = hyperparameters.Float("rate", 1e-4, 1e-2, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        built.append(time.perf_counter() - started)
        return model

    train, validation = read("train"), read("validation")
    for stream in (train, validation):
        for _ in stream:  # decoding is not compared
            pass
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(make, "val_loss", trials, directory=folder, project_name="plain", seed=0)
        built.clear()
        started = time.perf_counter()
        tuner.search(train, validation_data=validation, epochs=1, verbose=0)
        seconds = time.perf_counter() - started
    building = sum(built) / trials
    return seconds, building, (seconds - sum(built)) / trials


def compare_suffixes(arguments: argparse.Namespace, folder: Path) -> None:
    space = {
        "finetuning.stages.top.backbone_lr_multiplier": {"min": 0.05, "max": 1.0, "sampling": "log"},
        "finetuning.stages.top.layer_decay": {"min": 0.5, "max": 1.0},
    }
    seconds = {}
    for cache in ("auto", "off"):
        changes = {"finetuning": {"stages": [SUFFIX], "cache": cache}}
        started = time.perf_counter()
        search(space, changes, arguments.suffix_trials, folder / cache)
        seconds[cache] = time.perf_counter() - started
    print(f"{arguments.suffix_trials} trials of one epoch of the last three blocks; features of the head were cached\n")
    print("| search of ratio and layer decay | seconds | ratio |\n|---|---|---|")
    print(f"| end to end | {seconds['off']:.0f} | 1.0 |")
    ratio = seconds["off"] / seconds["auto"]
    print(f"| from the deepest cut that all trials share | {seconds['auto']:.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
