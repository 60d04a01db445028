"""A run as a SavedModel in the layout that TF Serving loads: BASE/<version>/."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.data.decoding import decode
from tlkeras.data.tasks import THRESHOLD, LabelsTask, Task
from tlkeras.errors import ExportError, ResourceError, RunError
from tlkeras.prediction import load_model
from tlkeras.records import read_task
from tlkeras.runs import Run

TOLERANCE = 1e-3


def export(run: Run, target: Path) -> dict[str, Any]:
    """Write the next version of a run's model below `target`, proved against the run's own predictions.

    The version is written under a name that TF Serving ignores, reloaded, compared on held-out pictures that the
    run keeps, and only then renamed to the next integer. Nothing that exists is touched.

    Returns:
        `path`, `version`, `signatures`, `pictures` compared and `difference`, the largest one in a probability.

    Raises:
        ExportError: The target is no folder of versions, or the export answers otherwise than the run.
        ResourceError: The folder cannot be written or the disk is full.
    """
    facts = run.manifest["picture"]
    aside = target / f".tmp-{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(load_model(run), facts["size"], facts["resize"], read_task(run), aside)
        difference, pictures = _prove(run, aside)
        _sync(aside)
        version = _publish(aside, target)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise ResourceError(
            f"{target} must be a writable folder on a disk with room.", reason, "Nothing there was changed."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {
        "path": str(target / str(version)),
        "version": version,
        "signatures": ["serving_default", "uint8"],
        "pictures": pictures,
        "difference": difference,
    }


def _write(model: keras.Model, size: int, fit: str, task: Task, path: Path) -> None:
    explain = _explain_labels(task) if isinstance(task, LabelsTask) else _explain_class(task)

    def answer(pictures: tf.Tensor) -> dict[str, tf.Tensor]:
        return explain(model(pictures, training=False))

    def answer_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pictures = tf.map_fn(
            lambda encoded: decode(encoded, size, fit),
            image_bytes,
            fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
        )
        return answer(pictures)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", answer_bytes, [tf.TensorSpec((None,), tf.string, name="image_bytes")])
    archive.add_endpoint("uint8", answer, [tf.TensorSpec((None, size, size, 3), tf.uint8, name="images")])
    archive.write_out(str(path), verbose=False)


def _explain_class(task: Task) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return what adds to probabilities [n, k] the index, int64 [n], and the name, string [n], of the best class."""
    names = tf.constant(list(task.class_names))

    def explain(probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        index = tf.argmax(probabilities, axis=-1)
        return {"probabilities": probabilities, "class_index": index, "label": tf.gather(names, index)}

    return explain


def _explain_labels(task: LabelsTask) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return what adds to probabilities [n, k] the labels found, bool [n, k], and their names in one string each [n].

    A signature cannot return rows of several lengths, so the names stand together as a table would have them.
    """
    names = tf.constant(list(task.class_names))

    def explain(probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        present = probabilities >= THRESHOLD
        found = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(probabilities)), present)
        label = tf.strings.reduce_join(found, axis=1, separator=task.separator)
        return {"probabilities": probabilities, "present": present, "label": label}

    return explain


def _prove(run: Run, path: Path) -> tuple[float, int]:
    """Return the largest difference between the export's probabilities and the run's, and how many were compared."""
    samples = run.read_json("samples.json")
    if not samples:
        raise RunError("A run must keep some held-out pictures to prove an export on.", f"none in {run.path}")
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    differences = []
    for sample in samples:
        encoded = run.read_bytes(sample["file"])
        given = served(image_bytes=tf.constant([encoded]))["probabilities"].numpy()[0]
        differences.append(float(np.abs(given - sample["probabilities"]).max()))
    worst = max(differences)
    if not worst <= TOLERANCE:
        raise ExportError(
            f"An export must answer as its run did, to {TOLERANCE:g} in every probability.",
            f"a difference of {worst:.2g} on {samples[int(np.argmax(differences))]['key']}",
            "Nothing was published. Was the run made with another version of tlkeras?",
        )
    return worst, len(samples)


def _publish(aside: Path, target: Path) -> int:
    """Rename the finished version to the next free integer."""
    version = max((int(path.name) for path in target.iterdir() if path.name.isdecimal()), default=0) + 1
    while True:
        try:
            os.rename(aside, target / str(version))
            return version
        except OSError:
            if not (target / str(version)).exists():
                raise
            version += 1  # another exporter took the number in the meantime


def _sync(folder: Path) -> None:
    """Force every file and folder to the disk, so that a crash cannot leave a half-written version."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir() and os.name == "nt":
            continue  # Windows has no handle for a folder
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
