"""What a training stores for later stages: images and their splits, predictions, samples."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlkeras.data.headers import Issue, read_image, to_printable
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task, make_task, prefix_with_task
from tlkeras.errors import RunError
from tlkeras.runs.directory import Run

SAMPLES = 16
PREDICTION_FILES = {"test": "predictions.npz", "validation": "validation.npz"}  # of each held-out split
LINEAR_PROBE_FILE = "probe.npz"  # predictions of a linear head on the same frozen features, if the model is another
FUSION = "fusion.npz"  # predictions of heads on each part of fused features, joined by each of `FUSION_RULES`
FUSION_RULES = ("mean", "stacking")


@dataclass(frozen=True)
class Predictions:
    """Predictions of one task, and the true targets."""

    task: Task  # what is predicted
    keys: np.ndarray  # names of the images, str [n]
    targets: np.ndarray  # as the task has them, int64 [n] or int8 [n, k]
    probabilities: np.ndarray  # float [n, k]
    weights: np.ndarray  # sample weights, float [n]
    prior: np.ndarray  # how common each class is in training, float [k]
    slices: Mapping[str, np.ndarray]  # "group", "domain" and "stratum" of each image, str [n]; "" for none

    def __len__(self) -> int:
        return len(self.targets)


def write_images(run: Run, dataset: Dataset, rejected: Sequence[Issue]) -> None:
    """Keep the tasks, the split, the labels and the digest of each image, one digest of all, and what was left out."""
    tasks = dataset.tasks
    labels = {prefix_with_task(tasks, task, "label"): task.format_targets(dataset.targets[task.name]) for task in tasks}
    keys = [to_printable(key) for key in dataset.keys]
    run.write_json("classes.json", {task.name: list(task.class_names) for task in tasks})
    facts = zip(dataset.digests.tolist(), dataset.split, *labels.values(), strict=True)
    content = "\n".join(sorted(map("\t".join, facts)))  # whatever the names of the files
    run.update_manifest(
        fingerprint=hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest(),
        rejected=len(rejected),
        tasks={task.name: task.get_config() for task in tasks},
        **tasks[0].get_config(),
    )
    roles = {"group": dataset.groups, "domain": dataset.domains, "sha256": dataset.digests}
    columns = {"weight": dataset.weights.tolist(), **roles}
    rows = zip(keys, dataset.split, *labels.values(), *columns.values(), strict=True)
    run.write_table("splits.csv", ("image", "split", *labels, *columns), rows)
    left_out = [(to_printable(bad.path), bad.code, bad.reason) for bad in rejected]
    run.write_table("rejected.csv", ("path", "code", "reason"), left_out)


def save_predictions(run: Run, dataset: Dataset, probabilities: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Keep predictions by split (also "test") and task, float32 (n, k), and a few of the images themselves."""
    tasks = dataset.tasks
    for split, of_split in probabilities.items():
        rows = dataset.rows(split)
        of_tasks: dict[str, np.ndarray] = {}
        for task in tasks:
            known = dataset.targets[task.name][dataset.rows("train")]
            weights = dataset.weights[dataset.rows("train")].astype(np.float64) * task.is_labelled(known)
            prior = weights @ task.to_indicator(known) / weights.sum()  # of each class, or the mean of a number
            targets = dataset.targets[task.name][rows]
            arrays = {"targets": targets, "probabilities": of_split[task.name], "prior": prior}
            of_tasks |= {prefix_with_task(tasks, task, what): values for what, values in arrays.items()}
        slices = {"group": dataset.groups, "domain": dataset.domains, "stratum": dataset.strata}
        texts = {name: values[rows].astype(str) for name, values in slices.items()}
        keys = np.array([to_printable(key) for key in dataset.keys[rows]], dtype=str)
        run.write_arrays(PREDICTION_FILES[split], **of_tasks, keys=keys, weights=dataset.weights[rows], **texts)
    tested = dataset.take(dataset.rows("test"))
    _write_predictions(run, tested, probabilities["test"])
    _keep_samples(run, tested, probabilities["test"])


def write_probes(run: Run, tasks: Sequence[Task], probabilities: Mapping[str, np.ndarray]) -> None:
    """Keep test probabilities of linear heads on the same frozen features, by task, float32 (n, k)."""
    arrays = {prefix_with_task(tasks, task, "probabilities"): probabilities[task.name] for task in tasks}
    run.write_arrays(LINEAR_PROBE_FILE, **arrays)


def write_fusion(run: Run, tasks: Sequence[Task], fused: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Keep test probabilities of late fusion, by task and rule, float (n, k); a task may have none."""
    arrays = {
        prefix_with_task(tasks, task, rule): predicted.astype(np.float32)
        for task in tasks
        for rule, predicted in fused[task.name].items()
    }
    if arrays:
        run.write_arrays(FUSION, **arrays)


def read_fusion(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities of late fusion for the images of `load_predictions`, float32 [n, k], by task and rule."""
    return _read_labelled(run, FUSION, FUSION_RULES)


def _read_labelled(run: Run, file: str, kinds: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of a file by task and kind, for the test images whose target is known; nothing without the file."""
    if not (run.path / file).exists():
        return {}
    tasks, stored, held_out = read_tasks(run), run.read_arrays(file), run.read_arrays(PREDICTION_FILES["test"])
    return {
        task.name: {
            kind: stored[name][task.is_labelled(held_out[prefix_with_task(tasks, task, "targets")])]
            for kind in kinds
            if (name := prefix_with_task(tasks, task, kind)) in stored
        }
        for task in tasks
    }


def read_tasks(run: Run) -> list[Task]:
    """The tasks of a run, in its order; RunError if the run does not say."""
    facts = run.manifest.get("tasks", {})
    return [make_task(name, classes, **facts.get(name, {})) for name, classes in run.read_json("classes.json").items()]


def load_predictions(run: Run, split: str = "test", tasks: Sequence[Task] | None = None) -> list[Predictions]:
    """Predictions of a run per task, for the images of a split ("test" or "validation") whose target is known.

    RunError if it has none of that split, or its files are damaged.
    """
    stored, tasks = run.read_arrays(PREDICTION_FILES[split]), read_tasks(run) if tasks is None else tasks
    count = len(stored["targets"])
    nothing = np.full(count, "")
    keys = stored.get("keys", np.arange(count).astype(str))  # runs made by older versions have none
    slices = {name: stored.get(name, nothing) for name in ("group", "domain", "stratum")}
    predictions = []
    for task in tasks:
        arrays = {what: stored[prefix_with_task(tasks, task, what)] for what in ("targets", "probabilities", "prior")}
        every = Predictions(task=task, keys=keys, weights=stored["weights"], slices=slices, **arrays)
        predictions.append(take(every, task.is_labelled(every.targets)))
    return predictions


def take(predictions: Predictions, rows: np.ndarray) -> Predictions:
    slices = {name: values[rows] for name, values in predictions.slices.items()}
    arrays = {name: getattr(predictions, name)[rows] for name in ("keys", "targets", "probabilities", "weights")}
    return replace(predictions, slices=slices, **arrays)


def read_probes(run: Run) -> dict[str, np.ndarray]:
    """Probabilities of linear heads for the images of `load_predictions`, float32 [n, k], by task, if stored apart."""
    stored = _read_labelled(run, LINEAR_PROBE_FILE, ["probabilities"])
    return {task: of_task["probabilities"] for task, of_task in stored.items()}


def has_predictions(run: Run, split: str) -> bool:
    """Whether a run keeps predictions of a split."""
    return (run.path / PREDICTION_FILES[split]).exists()


def check_finite(predictions: Predictions) -> None:
    """Make sure that all probabilities are finite; RunError if some are not; the first such images are named."""
    bad = ~np.isfinite(predictions.probabilities).all(axis=1)
    if bad.any():
        some = ", ".join(predictions.keys[bad][:3].tolist())
        received = f"{int(bad.sum()):,} images with NaN or infinity, such as {some}"
        way_out = "The training diverged: lower the learning rate and train again."
        raise RunError("The run predicts numbers that are not finite.", received, way_out)


def _write_predictions(run: Run, dataset: Dataset, probabilities: Mapping[str, np.ndarray]) -> None:
    tasks = dataset.tasks
    columns: dict[str, Sequence[object]] = {"image": [to_printable(key) for key in dataset.keys]}
    for task in tasks:
        predictions = probabilities[task.name]
        names, told = task.table_columns(predictions)
        of_task = {
            "label": task.format_targets(dataset.targets[task.name]),
            "prediction": task.format(task.decide(predictions)),
            **{name: [f"{value:.6f}" for value in of_name] for name, of_name in zip(names, told.T, strict=True)},
        }
        columns |= {prefix_with_task(tasks, task, what): values for what, values in of_task.items()}
    columns["weight"] = dataset.weights.tolist()
    run.write_table("predictions.csv", tuple(columns), zip(*columns.values(), strict=True))


def _keep_samples(run: Run, dataset: Dataset, probabilities: Mapping[str, np.ndarray]) -> None:
    """Copy some held-out images, spread over all of them, so that an export can be proved anywhere."""
    samples = []
    for number, row in enumerate(np.unique(np.linspace(0, len(dataset) - 1, SAMPLES).astype(int)).tolist()):
        file = f"samples/{number:02d}"
        with run.replacing(file) as aside:
            aside.write_bytes(read_image(dataset.paths[row]))
        sample = {"file": file, "key": to_printable(dataset.keys[row])}
        for task in dataset.tasks:
            name = prefix_with_task(dataset.tasks, task, "probabilities")
            sample[name] = probabilities[task.name][row].tolist()
        samples.append(sample)
    run.write_json("samples.json", samples)
