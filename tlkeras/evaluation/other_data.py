"""Evaluation of a run on other images than its own, and on its own corrupted ones."""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from scipy import ndimage

from tlkeras.config.frames import Frame
from tlkeras.config.recipe import Recipe, bootstrap_options, load_recipe
from tlkeras.data.headers import Rendering, to_printable
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import RunError
from tlkeras.evaluation.evaluate import COLUMNS, Evaluation, evaluate_predictions, list_rows
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.run_data import read_csv
from tlkeras.features.engines import EngineBatch, make_engine
from tlkeras.features.extraction import extract_activations
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import load_model
from tlkeras.progress import progress_bar
from tlkeras.results import Result
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, load_predictions, read_tasks, take
from tlkeras.training import builders

EXTERNAL_EVALUATION_DIR = "other_data"


STRENGTHS = 5
_BATCH = 16
_REFERENCE_SIZE = 224  # pixels for which the widths of blur are published


@dataclass(frozen=True)
class RobustnessResult(Result):
    """A metric on clean and on corrupted images."""

    images: int
    clean: float
    corruptions: dict[str, list[float]]  # at strengths 1 to 5


def add_noise(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to an image, uint8 [h, w, 3]."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1]
    return _as_image(image + random.standard_normal(image.shape, dtype=np.float32) * (255 * deviation))


def blur(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Blur an image with a Gaussian, as wide for its size as the published widths for 224 pixels."""
    width = (1, 2, 3, 4, 6)[strength - 1] * min(image.shape[:2]) / _REFERENCE_SIZE
    return ndimage.gaussian_filter(image, (width, width, 0), mode="reflect", truncate=3.0)


def lower_contrast(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Move all values towards each channel's mean."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[strength - 1]
    mean = image.mean(axis=(0, 1), keepdims=True, dtype=np.float32)
    return _as_image((image - mean) * factor + mean)


def compress(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Encode and decode an image as JPEG of low quality."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[strength - 1])
    return np.asarray(Image.open(stream))


def rotate(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Rotate an image by a fixed angle in either direction; the corners are filled by reflection."""
    angle = (5, 10, 15, 20, 30)[strength - 1] * random.choice([-1, 1])
    margin = min(image.shape[:2]) // 4
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    turned = np.asarray(Image.fromarray(padded).rotate(float(angle), Image.Resampling.BILINEAR))
    return turned[margin:-margin, margin:-margin] if margin else turned


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": add_noise,
    "blur": blur,
    "contrast": lower_contrast,
    "JPEG": compress,
    "rotation": rotate,
}
"""Strengths of noise, blur, contrast and JPEG are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), which has
no rotation; here it is 5 to 30 degrees."""


def measure_robustness(
    model: keras.Model,
    images: np.ndarray,
    metric: Callable[[np.ndarray], float],
    *,
    output: int = 0,
    engine: str = "auto",
    seed: int = 0,
) -> RobustnessResult:
    """A metric of a model under each corruption and strength.

    Args:
        model: From images to probabilities.
        images: As the model sees them, uint8 [n, h, w, 3].
        metric: From probabilities of the images, [n, k], to a number such as the accuracy.
        output: Index of the model's output.
        engine: As in `make_engine`.
        seed: Of the noise and of the directions of rotation.
    """
    variants = [("", 0), *((name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1))]
    count = len(images)
    predicted: dict[int, np.ndarray] = {}
    with progress_bar("Corrupting images", len(variants) * count, "images") as advance:
        for index, outputs in make_engine(model, engine).run(_stream(images, variants, seed)):
            predicted.update(zip(index.tolist(), outputs[output], strict=True))
            advance(len(index))
    clean, *values = (
        metric(np.stack([predicted[number * count + row] for row in range(count)])) for number in range(len(variants))
    )
    by_name = {name: values[i * STRENGTHS : (i + 1) * STRENGTHS] for i, name in enumerate(CORRUPTIONS)}
    return RobustnessResult(count, clean, by_name)


def _stream(images: np.ndarray, variants: list[tuple[str, int]], seed: int) -> Iterator[EngineBatch]:
    """Batches of each variant of the images in turn, with their indices among all variants."""
    count = len(images)
    for number, (name, strength) in enumerate(variants):
        random = np.random.default_rng([seed, number])
        for start in range(0, count, _BATCH):
            chosen = images[start : start + _BATCH]
            variant = [CORRUPTIONS[name](image, strength, random) for image in chosen] if name else list(chosen)
            yield np.arange(start, start + len(chosen)) + number * count, np.stack(variant)


def _as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ExternalEvaluationResult(Evaluation):
    """Metrics of a run on images from another source."""

    source: str  # as in `data.source`
    rejected: int  # images that cannot be read
    trained_on: int  # images whose files the run was trained on
    path: str  # of the run


@dataclass(frozen=True)
class StoredEvaluation(Result):
    """A JSON file that `evaluate_on` wrote into a run, and its metrics by task."""

    content: Mapping[str, Any]
    metrics: dict[str, dict[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.content)


def evaluate_on(run: str | Path | Run, source: str | Frame, *, runs: str | Path = RUNS) -> ExternalEvaluationResult:
    """Metrics of a finished run on labelled images from another source; its folder `other_data/` keeps them.

    The run is a name, a path, `latest`, or a `Run`, the source as in `data.source`, or a table in memory. DataError if
    the source cannot be read, or its labels are not the run's; RunError if there is no such run, or no model of it that
    can be read.
    """
    opened = open_run(run, runs)
    recipe, source = builders.name_source(load_recipe(opened.require("recipe.yaml")), source)
    options = bootstrap_options(recipe)
    other = builders.read_other_dataset(recipe, source, read_tasks(opened))
    dataset = validate_images(replace(other, rendering=Rendering.of(opened.manifest["image"])))
    predictions, rows = _predict_dataset(opened, recipe, dataset)
    resamples, seed = options.bootstrap_samples, options.seed
    tasks = {one.task.name: evaluate_predictions(one, resamples=resamples, seed=seed) for one in predictions}
    trained = _read_training_digests(opened)
    result = ExternalEvaluationResult(
        opened.name,
        tasks,
        {"test": len(rows)},
        source,
        rejected=len(dataset) - len(rows) + len(dataset.rejected),
        trained_on=sum(digest in trained for digest in dataset.digests[rows].tolist()),
        path=str(opened.path),
    )
    name = re.sub(r"[^\w.-]+", "-", source).strip("-.")[-60:] or "data"
    content = {key: value for key, value in result.to_dict().items() if key != "path"}
    opened.write_json(f"{EXTERNAL_EVALUATION_DIR}/{name}.json", content)
    opened.write_table(f"{EXTERNAL_EVALUATION_DIR}/{name}.csv", COLUMNS, list_rows(tasks))
    return result


def read_external_evaluations(run: Run) -> list[StoredEvaluation]:
    """What `evaluate_on` has written into a run, by source; files that cannot be read are skipped."""
    found = []
    for path in sorted((run.path / EXTERNAL_EVALUATION_DIR).glob("*.json")):
        try:
            content = run.read_json(f"{EXTERNAL_EVALUATION_DIR}/{path.name}")
        except RunError:
            continue
        metrics = {}
        for task, of_task in (content.get("tasks") or {content["task"]: content}).items():
            metrics[task] = {name: Estimate.from_dict(values) for name, values in of_task["metrics"].items()}
        found.append(StoredEvaluation(content, metrics))
    return found


def _predict_dataset(run: Run, recipe: Recipe, dataset: Dataset) -> tuple[list[Predictions], np.ndarray]:
    """Predictions of a run's model per task, and the rows of the images that could be read, int64 [n]."""
    model = order_outputs(load_model(run), [task.name for task in dataset.tasks])
    priors = [predictions.prior for predictions in load_predictions(run)]
    facts = [{"model": run.name} for _ in model.outputs]
    engine = builders.feature_engine(recipe)
    with extract_activations(model, dataset, facts, engine=engine, dtype="float32") as predicted:
        rows, outputs = predicted.kept, [np.asarray(output) for output in predicted.outputs]
    keys = np.array([to_printable(key) for key in dataset.keys[rows]], dtype=str)
    columns = {"group": dataset.groups, "domain": dataset.domains, "stratum": dataset.strata}
    slices = {name: values[rows].astype(str) for name, values in columns.items()}
    predictions = []
    for task, output, prior in zip(dataset.tasks, outputs, priors, strict=True):
        targets = dataset.targets[task.name][rows]
        every = Predictions(task, keys, targets, output, dataset.weights[rows], prior, slices)
        predictions.append(take(every, task.is_labelled(targets)))
    return predictions, rows


def _read_training_digests(run: Run) -> set[str]:
    """SHA-256 of the files that a run was trained on; none where it did not write them down."""
    try:
        rows = read_csv(run, "splits.csv")
    except RunError:
        return set()
    return {row["sha256"] for row in rows if row["split"] == "train" and "sha256" in row}
