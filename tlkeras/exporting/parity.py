"""Comparison of exported models with the run's own on its held-out images, and the criteria for publishing them."""

import statistics
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import height_and_width
from tlkeras.config.recipe import bootstrap_options, load_recipe
from tlkeras.config.schema import EvaluationConfig
from tlkeras.data.headers import InvalidImage, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.tasks import Task, prefix_with_task
from tlkeras.errors import RunError, TlkerasError
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.metrics import bootstrap_metrics
from tlkeras.evaluation.run_data import read_csv
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.progress import progress_bar
from tlkeras.results import Result
from tlkeras.runs.directory import Run
from tlkeras.training import builders

BATCH = 32
REFERENCE = "Keras model of the run"
_MAX_IMAGES, _TIMED_CALLS = 256, 9

PredictFn = Callable[[list[bytes], np.ndarray], list[np.ndarray]]
"""From images, as bytes and as uint8 [n, h, w, 3], to the probabilities [n, k] of each task."""


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
        """Yield the bytes of some images, and the same decoded, uint8 [b, h, w, 3]."""
        return (self._read(self.paths[start : start + BATCH]) for start in range(0, len(self), BATCH))

    def first(self, count: int) -> tuple[list[bytes], np.ndarray]:
        """At most `count` images, as bytes and decoded, uint8 [n, h, w, 3]."""
        return self._read(self.paths[:count])

    def _read(self, paths: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
        encoded = [self.preprocessing.read(path) for path in paths]
        return encoded, self.preprocessing.decode(tf.constant(encoded)).numpy()


def read_held_out(run: Run, tasks: list[Task], preprocessing: Preprocessing) -> HeldOut:
    """At most 256 held-out images of a run, evenly spread: of all that still exist, else the samples that it stores.

    RunError if the run stores no samples, or no predictions.
    """
    samples = run.read_json("samples.json")
    if not samples:
        raise RunError(f"{run.name} stores no held-out images to compare an export with.", f"none in {run.path}")
    stored = run.read_arrays("predictions.npz")
    keys = [row["image"] for row in read_csv(run, "predictions.csv")]
    files, note = _find_files(run, keys)
    if not files:
        files = {sample["key"]: str(run.path / sample["file"]) for sample in samples}
    rows = np.array([row for row, key in enumerate(keys) if key in files], dtype=np.int64)
    if len(rows) > _MAX_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_IMAGES).astype(np.int64)]
    targets = [stored[prefix_with_task(tasks, task, "targets")][rows] for task in tasks]
    predictions = [stored[prefix_with_task(tasks, task, "probabilities")] for task in tasks]
    for sample in samples:  # the prediction stored with a sample is the one that the export must reproduce
        if (found := np.flatnonzero(np.asarray(keys) == sample["key"])).size:
            for task, of_task in zip(tasks, predictions, strict=True):
                of_task[found[0]] = sample[prefix_with_task(tasks, task, "probabilities")]
    names = [keys[row] for row in rows.tolist()]
    paths, own = [files[name] for name in names], [of_task[rows] for of_task in predictions]
    groups = stored["group"][rows] if "group" in stored else np.full(len(rows), "")
    bootstrap = bootstrap_options(run.require("recipe.yaml"))
    return HeldOut(preprocessing, names, paths, targets, stored["weights"][rows], own, groups, bootstrap, note)


def read_training_images(run: Run, preprocessing: Preprocessing, count: int) -> np.ndarray:
    """At most `count` images of the training split, evenly spread: uint8 [n, h, w, 3]; none without a source."""
    keys = [row["image"] for row in read_csv(run, "splits.csv") if row["split"] == "train"]
    chosen = [keys[row] for row in np.unique(np.linspace(0, len(keys) - 1, count).astype(int))] if keys else []
    files, _ = _find_files(run, chosen)
    if not files:
        return np.zeros((0, *height_and_width(preprocessing.size), 3), np.uint8)
    return preprocessing.decode(tf.constant([preprocessing.read(path) for path in files.values()])).numpy()


def _find_files(run: Run, keys: list[str]) -> tuple[dict[str, str], str]:
    """Files of the images that are still at the source, by key, and a note on those that are not."""
    try:
        recipe = load_recipe(str(run.path / "recipe.yaml"))
        dataset = builders.read_dataset(builders.locate_source(recipe, run.manifest.get("cwd", "")))
        limit = dataset.rendering.max_pixels
        found = dict(zip(map(to_printable, dataset.keys.tolist()), dataset.paths.tolist(), strict=True))
    except TlkerasError:
        return {}, "the source of the images is gone: compared on the samples stored in the run"
    known = {key: found[key] for key in keys if key in found}
    seen = {key: read_header_and_digest(path, limit) for key, path in known.items()}
    present = {key: path for key, path in known.items() if not isinstance(seen[key], InvalidImage)}
    gone = len(keys) - len(present)
    return present, f"{gone:,} of {len(keys):,} held-out images are gone" if gone else ""


@dataclass(frozen=True)
class AcceptanceCriteria:
    """Conditions for publishing a model."""

    tolerance: float | None = None  # largest difference in a probability from the model of the run; None: any
    min_accuracy: float | None = None  # lowest accuracy on the images compared; None: any
    max_drop: float | None = None  # largest loss of accuracy against the model of the run; None: any


@dataclass(frozen=True)
class ParityResult(Result):
    """Agreement of one format of the model with the run's, on one task."""

    form: str
    task: str
    difference: float  # largest in a probability from the Keras model; of a regression over the largest value
    agreement: float  # fraction of images with the same prediction as the Keras model's
    accuracy: Estimate  # accuracy (exact match of several labels, R2 of a regression) with its 95 % interval
    megabytes: float  # size on disk
    milliseconds: float  # time of one image, alone, from uint8 to probabilities: the median


def compare_formats(
    models: Mapping[str, PredictFn], sizes: Mapping[str, float], held_out: HeldOut, tasks: Sequence[Task]
) -> tuple[list[ParityResult], dict[str, list[np.ndarray]]]:
    """A row per model and task that compares with the first model; the probabilities [n, k] of each task, by model."""
    parts: dict[str, list[list[np.ndarray]]] = {name: [] for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    with progress_bar("Comparing", len(held_out), "images") as advance:
        for encoded, images in held_out.batches():
            for name, predict in models.items():
                parts[name].append(predict(encoded, images))
                times[name] += _time_one(predict, encoded, images) if len(times[name]) < _TIMED_CALLS else []
            advance(len(encoded))
    predictions = {
        name: [np.concatenate(of_task) for of_task in zip(*batches, strict=True)] for name, batches in parts.items()
    }
    reference = predictions[next(iter(models))]
    rows = []
    for name, of_model in predictions.items():
        milliseconds = statistics.median(times[name]) * 1e3
        for task, targets, expected, found in zip(tasks, held_out.targets, reference, of_model, strict=True):
            difference = float(task.measure_difference(expected, found).max())
            agreement = float(task.same_decision(expected, found).mean())
            accuracy = _measure_accuracy(task, targets, found, held_out)
            rows.append(ParityResult(name, task.name, difference, agreement, accuracy, sizes[name], milliseconds))
    return rows, predictions


def _measure_accuracy(task: Task, targets: np.ndarray, predictions: np.ndarray, held_out: HeldOut) -> Estimate:
    """Accuracy (R2 of a regression) on images of known target, resampled as the run's metrics are; NaN without any."""
    known = task.is_labelled(targets)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    weights, groups, options = held_out.weights[known], held_out.groups[known], held_out.bootstrap
    metrics = bootstrap_metrics(
        targets[known], predictions[known], weights, options.bootstrap_samples, options.seed, groups
    )
    return next(metrics[name] for name in ("accuracy", "exact_match", "r2") if name in metrics)


def _time_one(predict: PredictFn, encoded: list[bytes], images: np.ndarray) -> list[float]:
    """Seconds per call with a single image; a first call, which prepares, is left out."""
    return timeit.repeat(lambda: predict(encoded[:1], images[:1]), "gc.enable()", number=1, repeat=_TIMED_CALLS + 1)[1:]


def list_failures(rows: Sequence[ParityResult], criteria: Mapping[str, AcceptanceCriteria]) -> list[str]:
    """Sentences on the models that miss their acceptance criteria."""
    reference = {row.task: row for row in reversed(rows) if row.form == REFERENCE}
    problems = []
    for row, limits in ((row, criteria[row.form]) for row in rows if row.form in criteria):
        value, of = row.accuracy.value, f"{row.form}, {row.task!r}"
        drop = reference[row.task].accuracy.value - value
        if limits.tolerance is not None and not row.difference <= limits.tolerance:
            problems.append(f"{of}: a probability differs by {row.difference:.2g}, more than {limits.tolerance:g}")
        if limits.min_accuracy is not None and not value >= limits.min_accuracy:
            problems.append(f"{of}: an accuracy of {value:.4f} is below {limits.min_accuracy:g}")
        if limits.max_drop is not None and not drop <= limits.max_drop + 1e-9:
            problems.append(f"{of}: {drop:.4f} of accuracy is lost, more than {limits.max_drop:g}")
    return problems


def measure_size(path: Path) -> float:
    """Megabytes of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


@dataclass(frozen=True)
class ExportReport(Result):
    """Description of an export and of its comparison with the run, as tlkeras.json stores it."""

    run: str
    image: Preprocessing  # size and resizing of the images
    signatures: list[str]  # names of the SavedModel's signatures
    images: int  # number of held-out images that were compared
    difference: float  # largest difference in a probability from the run's own predictions
    parity: list[ParityResult]
    fast: bool  # whether batch norm is folded and variables are constants
    notes: list[str]  # remarks for the user, as sentences


@dataclass(frozen=True)
class ExportResult(ExportReport):
    """A published version."""

    path: str
    version: int
    warmup: int  # number of warm-up requests, all of which were run
    docker: str  # command that serves the folder of versions with TensorFlow Serving
