"""The held-out images of a run, to prove an export on: all that are still there, else the samples it kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tlkeras.config.recipe import load_recipe
from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.tasks import Task, prefix_with_task
from tlkeras.errors import RunError, TlkerasError
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.runs.directory import Run
from tlkeras.training import builders

MOST = 256
BATCH = 32


@dataclass(frozen=True)
class HeldOut:
    """Held-out images with what is true of them and what the run said.

    Attributes:
        keys: Names, as the run's tables have them.
        paths: Files.
        targets: Per task, as the task has them.
        weights: float [n].
        probabilities: What the run itself answered, per task, float32 [n, k].
        note: Why these are fewer than all; "" where they are all.
    """

    keys: list[str]
    paths: list[str]
    targets: list[np.ndarray]
    weights: np.ndarray
    probabilities: list[np.ndarray]
    note: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, entry: Preprocessing) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield the bytes of some images, and the same decoded, uint8 [b, size, size, 3]."""
        for start in range(0, len(self.paths), BATCH):
            encoded = [Path(path).read_bytes() for path in self.paths[start : start + BATCH]]
            yield encoded, entry.decode(tf.constant(encoded)).numpy()


def read_held_out(run: Run, tasks: list[Task], most: int = MOST) -> HeldOut:
    """Return at most `most` held-out images, spread over all.

    Raises:
        RunError: The run keeps no images, or not what it answered.
    """
    samples = run.read_json("samples.json")
    if not samples:
        raise RunError("A run must keep some held-out images to prove an export on.", f"none in {run.path}")
    stored = run.read_arrays("predictions.npz")
    keys = _read_keys(run)
    files, note = _find_files(run, keys)
    if not files:
        files = {sample["key"]: str(run.path / sample["file"]) for sample in samples}
    rows = np.array([row for row, key in enumerate(keys) if key in files], dtype=np.int64)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    targets, predictions = (
        [stored[prefix_with_task(tasks, task, what)] for task in tasks] for what in ("targets", "probabilities")
    )
    for sample in samples:  # what was kept beside the image is what the export is held to
        if (place := np.flatnonzero(np.asarray(keys) == sample["key"])).size:
            for task, of_task in zip(tasks, predictions, strict=True):
                of_task[place[0]] = sample[prefix_with_task(tasks, task, "probabilities")]
    return HeldOut(
        [keys[row] for row in rows.tolist()],
        [files[keys[row]] for row in rows.tolist()],
        [of_task[rows] for of_task in targets],
        stored["weights"][rows],
        [of_task[rows] for of_task in predictions],
        note,
    )


def read_training(run: Run, entry: Preprocessing, most: int) -> np.ndarray:
    """Return at most `most` decoded images of the training split, spread over all: uint8 [n, size, size, 3].

    There are none where the source is gone.
    """
    text = run.read_bytes("splits.csv").decode("utf-8", "replace")
    keys = [row["image"] for row in csv.DictReader(io.StringIO(text, newline="")) if row["split"] == "train"]
    chosen = [keys[place] for place in np.unique(np.linspace(0, len(keys) - 1, most).astype(int))] if keys else []
    files, _ = _find_files(run, chosen)
    if not files:
        return np.zeros((0, entry.size, entry.size, 3), np.uint8)
    return entry.decode(tf.constant([Path(path).read_bytes() for path in files.values()])).numpy()


def _read_keys(run: Run) -> list[str]:
    """Return the keys of the held-out images, in the order of the run's answers."""
    text = run.read_bytes("predictions.csv").decode("utf-8", "replace")
    return [row["image"] for row in csv.DictReader(io.StringIO(text, newline=""))]


def _find_files(run: Run, keys: list[str]) -> tuple[dict[str, str], str]:
    """Return the files of held-out images that are still at the source, by key, and what is to be said of them."""
    try:
        recipe = load_recipe(str(run.path / "recipe.yaml"))
        dataset = builders.read_dataset(builders.locate_source(recipe, run.manifest.get("cwd", "")))
        found = {
            to_printable(key): path for key, path in zip(dataset.keys.tolist(), dataset.paths.tolist(), strict=True)
        }
    except TlkerasError:
        return {}, "the source of the images is gone: compared on the samples that the run keeps"
    there = {
        key: found[key]
        for key in keys
        if key in found and not isinstance(read_header_and_digest(found[key]), InvalidImage)
    }
    if len(there) < len(keys):
        return there, f"{len(keys) - len(there):,} of {len(keys):,} held-out images are gone"
    return there, ""
