"""What a training writes down for later stages: pictures and their sides, what was answered on which, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlkeras.data.headers import Finding, printable, read_picture
from tlkeras.data.tables import Examples
from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import RunError
from tlkeras.runs import Run

SAMPLES = 16
SIDES = {"test": "predictions.npz", "validation": "validation.npz"}
"""Where the answers on each side lie that was not trained on."""

PROBE = "probe.npz"
"""Where the answers of a linear head on the same frozen features lie, if the run's model is another one."""


@dataclass(frozen=True)
class Answers:
    """What a model said of pictures, of one task, and what is true of them.

    Attributes:
        task: What was asked.
        keys: Names of the pictures, str [n].
        targets: As the task has them, int64 [n] or int8 [n, k].
        probabilities: float [n, k].
        weights: Sample weights, float [n].
        prior: How common each class is in training, float [k].
        slices: What pictures can be told apart by ("group", "domain", "stratum"), str [n] each; "" for nothing.
    """

    task: Task
    keys: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray
    prior: np.ndarray
    slices: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.targets)


def write_pictures(
    run: Run, examples: Examples, sides: np.ndarray, digests: Sequence[str], rejected: Sequence[Finding]
) -> None:
    """Keep the task, the side, the label and the digest of each picture, and what was left out."""
    (task,) = examples.tasks
    labels = task.write(task.members(examples.targets[task.name]))
    keys = [printable(key) for key in examples.keys]
    run.write_json("classes.json", {task.name: list(task.class_names)})
    run.update_manifest(fingerprint=_digest_data(digests, labels, sides), **task.facts)
    run.write_table(
        "splits.csv",
        ("picture", "side", "label", "weight", "group", "domain", "sha256"),
        zip(keys, sides, labels, examples.weights.tolist(), examples.groups, examples.domains, digests, strict=True),
    )
    run.write_table(
        "rejected.csv", ("path", "code", "reason"), [(printable(bad.path), bad.code, bad.reason) for bad in rejected]
    )


def write_answers(
    run: Run, examples: Examples, sides: Mapping[str, np.ndarray], probabilities: Mapping[str, np.ndarray]
) -> None:
    """Keep the answers on pictures that were not trained on, and a few of these pictures themselves.

    Args:
        sides: Rows of each side, int64 (n,).
        probabilities: By side, float32 (n, k); "test" must be there.
    """
    (task,) = examples.tasks
    prior = _measure_prior(examples, task, sides["train"])
    for side, of_side in probabilities.items():
        rows = sides[side]
        run.write_arrays(
            SIDES[side],
            keys=np.array([printable(key) for key in examples.keys[rows]], dtype=str),
            targets=examples.targets[task.name][rows],
            probabilities=of_side,
            weights=examples.weights[rows],
            prior=prior,
            group=examples.groups[rows].astype(str),
            domain=examples.domains[rows].astype(str),
            stratum=examples.strata[rows].astype(str),
        )
    (answers,) = read_answers(run, "test", [task])
    _write_predictions(run, answers)
    _keep_samples(run, examples.paths[sides["test"]], answers.keys.tolist(), answers.probabilities)


def read_task(run: Run) -> Task:
    """Return what a run predicts.

    Raises:
        RunError: The run does not say.
    """
    (task,) = read_tasks(run)
    return task


def read_tasks(run: Run) -> list[Task]:
    """Return all that a run predicts, in its order.

    Raises:
        RunError: The run does not say.
    """
    separator = run.manifest.get("separator")
    return [make_task(name, classes, separator) for name, classes in run.read_json("classes.json").items()]


def read_answers(run: Run, side: str = "test", tasks: Sequence[Task] | None = None) -> list[Answers]:
    """Return what a run answered on a side, "test" or "validation", per task.

    Raises:
        RunError: It did not answer there, or its files are damaged.
    """
    stored = run.read_arrays(SIDES[side])
    count = len(stored["targets"])
    nothing = np.full(count, "")
    keys = stored.get("keys", np.arange(count).astype(str))  # runs made by older versions have none
    slices = {name: stored.get(name, nothing) for name in ("group", "domain", "stratum")}
    return [
        Answers(task, keys, stored["targets"], stored["probabilities"], stored["weights"], stored["prior"], slices)
        for task in (read_tasks(run) if tasks is None else tasks)
    ]


def read_probe(run: Run) -> np.ndarray | None:
    """Return what a linear head says of the held-out pictures, float32 [n, k]; None where the run's own head is one."""
    if not (run.path / PROBE).exists():
        return None
    return run.read_arrays(PROBE)["probabilities"]


def has_answers(run: Run, side: str) -> bool:
    """Whether a run keeps answers on a side."""
    return (run.path / SIDES[side]).exists()


def check_answers(answers: Answers) -> None:
    """Make sure that all probabilities are finite.

    Raises:
        RunError: Some are not; the first such pictures are named.
    """
    bad = ~np.isfinite(answers.probabilities).all(axis=1)
    if bad.any():
        some = ", ".join(answers.keys[bad][:3].tolist())
        raise RunError(
            "Every probability of a run must be a finite number.",
            f"{int(bad.sum()):,} pictures with NaN or infinity, such as {some}",
            "The training diverged: lower the learning rate and train again.",
        )


def _measure_prior(examples: Examples, task: Task, train: np.ndarray) -> np.ndarray:
    """Return how common each class is in training, float64 (k,)."""
    weights = examples.weights[train].astype(np.float64)
    return weights @ task.members(examples.targets[task.name][train]) / weights.sum()


def _digest_data(digests: Sequence[str], labels: Sequence[str], sides: np.ndarray) -> str:
    """Return a SHA-256 of what was learned and measured on: contents, labels and sides, whatever the files' names."""
    lines = sorted(f"{digest}\t{side}\t{label}" for digest, side, label in zip(digests, sides, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _write_predictions(run: Run, answers: Answers) -> None:
    task, probabilities = answers.task, answers.probabilities
    labels, said = task.write(task.members(answers.targets)), task.write(task.decide(probabilities))
    names, told = task.tell(probabilities)
    columns = (answers.keys.tolist(), labels, said, told, answers.weights.tolist())
    run.write_table(
        "predictions.csv",
        ("picture", "label", "prediction", *names, "weight"),
        (
            (key, label, answer, *(f"{probability:.6f}" for probability in row), weight)
            for key, label, answer, row, weight in zip(*columns, strict=True)
        ),
    )


def _keep_samples(run: Run, paths: np.ndarray, keys: Sequence[str], probabilities: np.ndarray) -> None:
    """Copy some held-out pictures, spread over all of them, so that an export can be proved anywhere."""
    samples = []
    for number, row in enumerate(np.unique(np.linspace(0, len(paths) - 1, SAMPLES).astype(int))):
        file = f"samples/{number:02d}"
        with run.replacing(file) as aside:
            aside.write_bytes(read_picture(paths[row]))
        samples.append({"file": file, "key": keys[row], "probabilities": probabilities[row].tolist()})
    run.write_json("samples.json", samples)
