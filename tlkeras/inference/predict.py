"""Predictions of a run's model for images."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tlkeras import progress
from tlkeras.backbones import kerashub, test_time_augmentation  # noqa: F401 (its layers register with Keras)
from tlkeras.backbones.graph import max_batch_size
from tlkeras.backbones.keras_files import check_archive
from tlkeras.data.headers import InvalidImage, Rendering, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.issues import describe_warnings
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.tasks import Task
from tlkeras.errors import BackboneError, RunError
from tlkeras.features import pooling  # noqa: F401
from tlkeras.features.handcrafted import layer  # noqa: F401
from tlkeras.heads import layers  # noqa: F401
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.results import (
    ClassProbability,
    ImagePrediction,
    PredictionResult,
    TaskPrediction,
    expand_paths,
    list_notes,
    list_unreadable,
)
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks


def load_model(run: Run) -> keras.Model:
    """A run's model: uint8 images [n, size, size, 3] to probabilities [n, k]; RunError if there is none to be read."""
    path = run.path / "model.keras"
    if not path.exists():
        raise RunError(
            f"The run {run.name} has no model to predict with or to export.",
            f"no {path}",
            "It was removed, or the recipe's features or head cannot become a network: `tlkeras evaluate` still works.",
        )
    try:
        check_archive(path)
        return keras.models.load_model(path, compile=False)
    except BackboneError as error:
        raise RunError(f"The run's model is not safe to load: {error.rule}", error.received, error.way_out) from error
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise RunError(f"Cannot read the model {path}.", error) from error


def predict(
    run: str | Path | Run, images: Sequence[str | Path], *, top: int = 3, batch_size: int = 32, runs: str | Path = RUNS
) -> PredictionResult:
    """Classes and probabilities of image files, or of all images below folders.

    DataError if no image was given, or some do not exist; all are named at once. Other files are listed as unreadable.

    Args:
        run: As in `open_run`.
        top: Classes per image.
        batch_size: Images computed together, at most.
    """
    opened = open_run(run, runs)
    paths, unreadable = expand_paths(images)
    rendering = Rendering.of(opened.manifest["image"])
    limit = rendering.max_pixels  # pipes are never opened, bombs never unpacked
    seen = {path: read_header_and_digest(path, limit) for path in paths}
    headers = {path: found[1] for path, found in seen.items() if not isinstance(found, InvalidImage)}
    unreadable += [found for found in seen.values() if isinstance(found, InvalidImage)]
    paths = [path for path in paths if path in headers]
    facts, tasks = opened.manifest["image"], read_tasks(opened)
    model = order_outputs(load_model(opened), [task.name for task in tasks])
    batch_size = max_batch_size(model, batch_size)
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with progress.progress_bar("Predict", len(paths), "images") as advance:
        for indices, batch in make_image_dataset(paths, facts["size"], rendering, batch_size):
            outputs = keras.tree.flatten(model(batch, training=False))
            predictions = zip(*(output.numpy() for output in outputs), strict=True)
            found.update(zip(indices.numpy().tolist(), predictions, strict=True))
            advance(len(batch))
    unreadable += [read_error(paths[index], rendering) for index in range(len(paths)) if index not in found]
    predicted = [(paths[index], found[index]) for index in sorted(found)]
    notes = [note for path, _ in predicted for note in list_notes(path, headers[path])]
    return PredictionResult(
        opened.name,
        tasks[0].threshold,
        tuple(_describe_image(path, outputs, tasks, top) for path, outputs in predicted),
        list_unreadable(unreadable),
        tuple(describe_warnings(notes)),
    )


def _describe_image(path: str, outputs: Sequence[np.ndarray], tasks: Sequence[Task], top: int) -> ImagePrediction:
    described = {task.name: _describe_task(output, task, top) for task, output in zip(tasks, outputs, strict=True)}
    return ImagePrediction(path=to_printable(path), tasks=described, **vars(described[tasks[0].name]))


def _describe_task(probabilities: np.ndarray, task: Task, top: int) -> TaskPrediction:
    """The prediction of one task from its output for one image, float32 [k]."""
    if not task.has_classes:
        return TaskPrediction(label=task.format(probabilities[None])[0], value=float(probabilities[0]))
    order = np.argsort(-probabilities, kind="stable")[:top]
    best = tuple(ClassProbability(task.class_names[index], float(probabilities[index])) for index in order)
    members = task.decide(probabilities[None])
    (label,), (labels,) = task.format(members), task.list_names(members)
    return TaskPrediction(label=label, probability=best[0].probability, labels=tuple(labels), top=best)
