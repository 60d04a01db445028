"""The held-out images of a run, for comparing an export with it: all that still exist, else the stored samples."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tlkeras.config.recipe import bootstrap_options, load_recipe
from tlkeras.config.schema.evaluation import EvaluationConfig
from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.tasks import Task, prefix_with_task
from tlkeras.errors import RunError, TlkerasError
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.runs.directory import Run
from tlkeras.training import builders

BATCH = 32
_MAX_IMAGES = 256


@dataclass(frozen=True)
class HeldOut:
    """Held-out images with their targets and the run's own predictions."""

    preprocessing: Preprocessing  # from bytes to the images that the model takes
    keys: list[str]  # names, as in the run's tables
    paths: list[str]
    targets: list[np.ndarray]
    weights: np.ndarray  # float [n]
    probabilities: list[np.ndarray]  # the run's own predictions, per task, float32 [n, k]
    groups: np.ndarray  # of each image, str [n]; "" for none
    bootstrap: EvaluationConfig  # of the run's own intervals
    note: str = ""  # why some images are missing; "" where none is

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield the bytes of some images, and the same decoded, uint8 [b, size, size, 3]."""
        for start in range(0, len(self.paths), BATCH):
            encoded = [Path(path).read_bytes() for path in self.paths[start : start + BATCH]]
            yield encoded, self.preprocessing.decode(tf.constant(encoded)).numpy()

    def first(self, count: int) -> tuple[list[bytes], np.ndarray]:
        """At most `count` images, as bytes and decoded, uint8 [n, size, size, 3]."""
        batches = list(itertools.islice(self.batches(), -(-count // BATCH)))
        encoded = [one for batch, _ in batches for one in batch]
        return encoded[:count], np.concatenate([images for _, images in batches])[:count]


def read_held_out(run: Run, tasks: list[Task], preprocessing: Preprocessing) -> HeldOut:
    """At most 256 held-out images of a run, evenly spread; RunError if the run stores no images, or no predictions."""
    samples = run.read_json("samples.json")
    if not samples:
        raise RunError(f"{run.name} stores no held-out images to compare an export with.", f"none in {run.path}")
    stored = run.read_arrays("predictions.npz")
    keys = [row["image"] for row in _read_table(run, "predictions.csv")]
    files, note = _find_files(run, keys)
    if not files:
        files = {sample["key"]: str(run.path / sample["file"]) for sample in samples}
    rows = np.array([row for row, key in enumerate(keys) if key in files], dtype=np.int64)
    if len(rows) > _MAX_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_IMAGES).astype(np.int64)]
    targets, predictions = (
        [stored[prefix_with_task(tasks, task, kind)] for task in tasks] for kind in ("targets", "probabilities")
    )
    for sample in samples:  # the prediction stored with a sample is the one that the export must reproduce
        if (found := np.flatnonzero(np.asarray(keys) == sample["key"])).size:
            for task, of_task in zip(tasks, predictions, strict=True):
                of_task[found[0]] = sample[prefix_with_task(tasks, task, "probabilities")]
    return HeldOut(
        preprocessing,
        [keys[row] for row in rows.tolist()],
        [files[keys[row]] for row in rows.tolist()],
        [of_task[rows] for of_task in targets],
        stored["weights"][rows],
        [of_task[rows] for of_task in predictions],
        stored["group"][rows] if "group" in stored else np.full(len(rows), ""),
        bootstrap_options(run.require("recipe.yaml")),
        note,
    )


def read_training_images(run: Run, preprocessing: Preprocessing, count: int) -> np.ndarray:
    """At most `count` images of the training split, evenly spread: uint8 [n, size, size, 3]; none without a source."""
    keys = [row["image"] for row in _read_table(run, "splits.csv") if row["split"] == "train"]
    chosen = [keys[row] for row in np.unique(np.linspace(0, len(keys) - 1, count).astype(int))] if keys else []
    files, _ = _find_files(run, chosen)
    if not files:
        return np.zeros((0, preprocessing.size, preprocessing.size, 3), np.uint8)
    return preprocessing.decode(tf.constant([Path(path).read_bytes() for path in files.values()])).numpy()


def _read_table(run: Run, name: str) -> list[dict[str, str]]:
    text = run.read_bytes(name).decode("utf-8", "replace")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _find_files(run: Run, keys: list[str]) -> tuple[dict[str, str], str]:
    """Files of the images that are still at the source, by key, and a note on those that are not."""
    try:
        recipe = load_recipe(str(run.path / "recipe.yaml"))
        dataset = builders.read_dataset(builders.locate_source(recipe, run.manifest.get("cwd", "")))
        found = dict(zip(map(to_printable, dataset.keys.tolist()), dataset.paths.tolist(), strict=True))
    except TlkerasError:
        return {}, "the source of the images is gone: compared on the samples stored in the run"
    known = {key: found[key] for key in keys if key in found}
    present = {key: path for key, path in known.items() if not isinstance(read_header_and_digest(path), InvalidImage)}
    gone = len(keys) - len(present)
    return present, f"{gone:,} of {len(keys):,} held-out images are gone" if gone else ""
