"""What a training writes down for later stages: pictures and their sides, answers on held-out pictures, samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlkeras.data.headers import Finding, printable, read_picture
from tlkeras.data.tables import Examples
from tlkeras.data.tasks import Task, make_task
from tlkeras.runs import Run

SAMPLES = 16


def write_pictures(run: Run, examples: Examples, sides: np.ndarray, rejected: Sequence[Finding]) -> None:
    """Keep the task, the side and the label of each picture, and what was left out."""
    (task,) = examples.tasks
    labels = task.write(task.members(examples.targets[task.name]))
    keys = [printable(key) for key in examples.keys]
    run.write_json("classes.json", {task.name: list(task.class_names)})
    run.update_manifest(**task.facts)
    run.write_table(
        "splits.csv",
        ("picture", "side", "label", "weight", "group"),
        zip(keys, sides, labels, examples.weights.tolist(), examples.groups, strict=True),
    )
    run.write_table(
        "rejected.csv", ("path", "code", "reason"), [(printable(bad.path), bad.code, bad.reason) for bad in rejected]
    )


def write_predictions(
    run: Run, examples: Examples, train: np.ndarray, test: np.ndarray, probabilities: np.ndarray
) -> None:
    """Keep the answers on the held-out pictures, and a few of these pictures themselves.

    Args:
        train: Rows of the training side, int64 (n,).
        test: Rows of the held-out side, int64 (m,).
        probabilities: Of the held-out pictures, float32 (m, k).
    """
    (task,) = examples.tasks
    targets, weights = examples.targets[task.name], examples.weights
    members = task.members(targets)
    prior = weights[train].astype(np.float64) @ members[train] / weights[train].sum(dtype=np.float64)
    run.write_arrays(
        "predictions.npz", targets=targets[test], probabilities=probabilities, weights=weights[test], prior=prior
    )
    keys = [printable(key) for key in examples.keys[test]]
    labels, answers = task.write(members[test]), task.write(task.decide(probabilities))
    names, told = task.tell(probabilities)
    run.write_table(
        "predictions.csv",
        ("picture", "label", "prediction", *names, "weight"),
        (
            (key, label, answer, *(f"{probability:.6f}" for probability in row), weight)
            for key, label, answer, row, weight in zip(keys, labels, answers, told, weights[test].tolist(), strict=True)
        ),
    )
    _keep_samples(run, examples.paths[test], keys, probabilities)


def read_task(run: Run) -> Task:
    """Return what a run predicts.

    Raises:
        RunError: The run does not say.
    """
    ((name, classes),) = run.read_json("classes.json").items()
    return make_task(name, classes, run.manifest.get("separator"))


def _keep_samples(run: Run, paths: np.ndarray, keys: Sequence[str], probabilities: np.ndarray) -> None:
    """Copy some held-out pictures, spread over all of them, so that an export can be proved anywhere."""
    samples = []
    for number, row in enumerate(np.unique(np.linspace(0, len(paths) - 1, SAMPLES).astype(int))):
        file = f"samples/{number:02d}"
        with run.replacing(file) as aside:
            aside.write_bytes(read_picture(paths[row]))
        samples.append({"file": file, "key": keys[row], "probabilities": probabilities[row].tolist()})
    run.write_json("samples.json", samples)
