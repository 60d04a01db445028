"""What a run's model says about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras import progress
from tlkeras.backbones import kerashub_layers, test_time_augmentation
from tlkeras.backbones.graph import max_batch_size
from tlkeras.backbones.safe_loading import check_archive
from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.sources.folders import list_images
from tlkeras.data.tasks import Task
from tlkeras.errors import BackboneError, DataError, RunError
from tlkeras.features import pooling
from tlkeras.features.handcrafted import layer
from tlkeras.heads import layers
from tlkeras.heads.heads import order_outputs
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks


def load_model(run: Run) -> keras.Model:
    """Return a run's model: uint8 images (n, size, size, 3) to probabilities (n, k).

    Raises:
        RunError: The run holds no model that can be read, or one that could run code or reach outside its file.
    """
    path = run.path / "model.keras"
    if not path.exists():
        raise RunError(
            "A run must hold a model to predict with or to export.",
            f"no {path}",
            "It was removed, or the recipe's features or head cannot become a network: `tlkeras evaluate` still works.",
        )
    try:
        check_archive(path)
        known = pooling.LAYERS | layer.LAYERS | layers.LAYERS | kerashub_layers.LAYERS | test_time_augmentation.LAYERS
        return keras.models.load_model(path, compile=False, custom_objects=known)
    except BackboneError as error:
        raise RunError(f"A run's model must be harmless: {error.rule}", error.received, error.way_out) from error
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise RunError("A run must hold a readable model.keras.", f"{path} ({error})") from error


def predict(
    run: str | Path | Run,
    images: Sequence[str | Path],
    *,
    top: int = 3,
    batch_size: int = 32,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """Classes and probabilities of image files, or of all images below folders.

    Args:
        run: A name, a path, `latest`, or a `Run`.
        images: Files and folders.
        top: Classes per image.
        batch_size: Images computed together, at most.
        runs: Folder of the run directories.

    Returns:
        `predictions`: one row per readable image, in the order given: path, `labels` that it is said to have (one
        class, or every label with a probability of `threshold` or more), `label` (the same as one text, as
        the source writes it), `top` pairs of label and probability, and the first `probability` of these, all of the
        first task, and `tasks`, the same of each by name, where there are several; a number is a `label` and a `value`;
        `threshold`, None where only the best class counts; `unreadable`: path and reason of the others.

    Raises:
        DataError: No image was given, or one does not exist; all are named at once.
    """
    opened = open_run(run, runs)
    paths, unreadable = _examine(expand_paths(images))
    facts, tasks = opened.manifest["image"], read_tasks(opened)
    model = order_outputs(load_model(opened), [task.name for task in tasks])
    batch_size = max_batch_size(model, batch_size)
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with progress.progress_bar("Predict", len(paths), "images") as advance:
        for indices, batch in make_image_dataset(paths, facts["size"], facts["resize"], batch_size):
            predictions = zip(
                *(output.numpy() for output in keras.tree.flatten(model(batch, training=False))), strict=True
            )
            found.update(zip(indices.numpy().tolist(), predictions, strict=True))
            advance(len(batch))
    unreadable += [read_error(paths[index]) for index in range(len(paths)) if index not in found]
    return {
        "run": opened.name,
        "threshold": tasks[0].threshold,
        "predictions": [
            {"path": to_printable(paths[index]), **_describe_all(found[index], tasks, top)} for index in sorted(found)
        ],
        "unreadable": [{"path": to_printable(bad.path), "reason": bad.reason} for bad in unreadable],
    }


def _examine(paths: Sequence[str]) -> tuple[list[str], list[InvalidImage]]:
    """Keep the paths whose headers promise an image; pipes are never opened, bombs never unpacked."""
    seen = {path: read_header_and_digest(path) for path in paths}
    rejected = [found for found in seen.values() if isinstance(found, InvalidImage)]
    return [path for path in paths if not isinstance(seen[path], InvalidImage)], rejected


def expand_paths(images: Sequence[str | Path]) -> list[str]:
    """Return image files, and those below folders, in order.

    Raises:
        DataError: No image was given, or one does not exist; all are named at once.
    """
    paths: list[str] = []
    problems = []
    for image in map(Path, images):
        if image.is_dir():
            paths.extend(list_images(image))
        elif image.exists():
            paths.append(str(image))
        else:
            problems.append(f"{image} does not exist")
    if problems:
        raise DataError.from_problems("Every image must be a file or a folder:", problems)
    if not paths:
        raise DataError("There must be at least one image.", "none")
    return paths


def _describe_all(predictions: Sequence[np.ndarray], tasks: Sequence[Task], top: int) -> dict[str, Any]:
    described = {task.name: _describe(of_task, task, top) for task, of_task in zip(tasks, predictions, strict=True)}
    first = described[tasks[0].name]
    return {**first, "tasks": described} if len(tasks) > 1 else first


def _describe(probabilities: np.ndarray, task: Task, top: int) -> dict[str, Any]:
    if not task.has_classes:
        return {"label": task.format(probabilities[None])[0], "value": float(probabilities[0])}
    order = np.argsort(-probabilities, kind="stable")[:top]
    best = [{"label": task.class_names[index], "probability": float(probabilities[index])} for index in order]
    members = task.decide(probabilities[None])
    (label,), (labels,) = task.format(members), task.list_names(members)
    return {
        "label": label,
        "probability": best[0]["probability"],
        "labels": labels,
        "top": best,
    }
