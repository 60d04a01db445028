"""Fine-tuning in plain Keras, as a good user writes it today; one line of JSON tells how it went.

`finetuning.py` runs this.

    python benchmarks/keras_finetuning.py TABLE STAGES [--size 224] [--batch-size 32] [--seed 0]

TABLE is a CSV file with the columns `path`, `label` and `split`: train, validation or test. STAGES is a JSON list of
objects with `name`, `blocks` (how many of the uppermost train), `epochs`, `learning_rate` and `warmup` (epochs).

The recipe is that of Keras' own guide to transfer learning, with everything on that makes it fast: images are decoded
once and kept as uint8 in memory, flipped by tf.data and prefetched; no XLA, which is slow on CPUs; one compile per
stage; batch norm in inference mode by `training=False`; warm-up and cosine by Keras' own schedule. Backbone and
weights are tlkeras' as a Keras model, so that both train the same network.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from tlkeras.backbones.blocks import find_blocks
from tlkeras.backbones.builder import build_backbone


class Score(keras.callbacks.Callback):
    """Notes time, core-seconds and the area under the ROC curve on the validation split after every epoch."""

    def __init__(self, images: tf.data.Dataset, targets: np.ndarray):
        super().__init__()
        self.images, self.targets = images, targets
        self.marks: list[tuple[float, float, float]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        auc = measure(self.model, self.images, self.targets)
        self.marks.append((time.time(), time.process_time(), auc))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("stages", type=json.loads)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(train(**vars(parser.parse_args()))))


def train(table: Path, stages: list[dict[str, Any]], size: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Carry out the stages; return the test `auc`, and `marks`: Unix time, core-seconds and validation AUC by epoch."""
    keras.utils.set_random_seed(seed)
    splits = {split: load(table, split, size) for split in ("train", "validation", "test")}
    images, targets = splits["train"]
    training = images.shuffle(len(targets), seed=seed).map(flip, tf.data.AUTOTUNE)
    training = training.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    held_out = {split: stream.batch(64).prefetch(tf.data.AUTOTUNE) for split, (stream, _) in splits.items()}
    score = Score(held_out["validation"], splits["validation"][1])

    backbone = build_backbone("efficientnet_lite0", size=size, weights="packaged")
    inputs = keras.Input((size, size, 3), dtype="uint8")
    features = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(int(targets.max()) + 1, activation="softmax")(features))
    for stage in stages:
        unfreeze(backbone, stage["blocks"])
        optimizer = keras.optimizers.Adam(make_schedule(stage, len(targets) // batch_size), global_clipnorm=1.0)
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
        model.fit(training, epochs=stage["epochs"], callbacks=[score], verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
    return {"marks": score.marks, "auc": measure(model, held_out["test"], splits["test"][1])}


def load(table: Path, split: str, size: int) -> tuple[tf.data.Dataset, np.ndarray]:
    """Return one split's images with their classes, decoded at the first pass, and the classes alone."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["label"] for row in rows})
    chosen = [row for row in rows if row["split"] == split]
    targets = np.array([labels.index(row["label"]) for row in chosen])

    def decode(path: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.cast(tf.round(tf.image.resize(image, (size, size))), tf.uint8), target

    files = tf.data.Dataset.from_tensor_slices(([row["path"] for row in chosen], targets))
    return files.map(decode, tf.data.AUTOTUNE).cache(), targets


def flip(image: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Flip an image from left to right, or not."""
    return tf.image.random_flip_left_right(image), target


def unfreeze(backbone: keras.Model, blocks: int) -> None:
    """Let the uppermost blocks train, and nothing below them."""
    upper = find_blocks(backbone)[-blocks:] if blocks else []
    names = {name for block in upper for name in block.layers}
    backbone.trainable = True
    for layer in backbone.layers:
        layer.trainable = layer.name in names


def make_schedule(stage: dict[str, Any], steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return warm-up and half a cosine over a stage of so many steps per epoch."""
    rising, falling = stage["warmup"] * steps, (stage["epochs"] - stage["warmup"]) * steps
    if not rising:
        return keras.optimizers.schedules.CosineDecay(stage["learning_rate"], falling)
    return keras.optimizers.schedules.CosineDecay(
        0.0, falling, warmup_target=stage["learning_rate"], warmup_steps=rising
    )


def measure(model: keras.Model, images: tf.data.Dataset, targets: np.ndarray) -> float:
    """Return the area under the ROC curve of two classes."""
    return float(roc_auc_score(targets, model.predict(images, verbose=0)[:, 1]))


if __name__ == "__main__":
    main()
