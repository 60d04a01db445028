"""Export of a run as a SavedModel in the layout that TensorFlow Serving loads: BASE/<version>/."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tlkeras.backbones.graph import max_batch_size, run_in_parts
from tlkeras.data.tasks import Task, explain_order
from tlkeras.errors import ExportError
from tlkeras.evaluation.calibration import ScalingMethod
from tlkeras.exporting import parity, versions
from tlkeras.exporting.formats import CALIBRATION_IMAGES, FORMATS, ConversionInputs, check_formats
from tlkeras.exporting.inference_graph import build_scalings, find_scalings, make_inference_model
from tlkeras.exporting.parity import (
    BATCH,
    REFERENCE,
    AcceptanceCriteria,
    ExportReport,
    ExportResult,
    HeldOut,
    ParityResult,
    PredictFn,
    read_held_out,
    read_training_images,
)
from tlkeras.exporting.signatures import (
    LoadedSavedModel,
    Preprocessing,
    main_output,
    run_warmup_requests,
    write_signatures,
    write_warmup,
)
from tlkeras.features.handcrafted.layer import list_handcrafted
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import load_model
from tlkeras.results import to_plain
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks

TOLERANCE = 1e-3
"""Largest difference in a probability from the run's own predictions, whose features may have had 16 bits."""

MAX_DROP = 0.01  # largest loss of accuracy of other formats where `max_drop` is not given
SAVED_MODEL = "SavedModel"
_COMPARED = 64


@dataclass(frozen=True)
class ExportInputs:
    """A run's model, with the images that the export is compared on."""

    run: Run
    model: keras.Model  # uint8 images to the probabilities of each task, in the order of the tasks
    tasks: list[Task]
    held_out: HeldOut  # images with the run's own predictions
    calibration: str = ""  # a sentence on the scaling that is built into the model; "" where none is


def export(
    run: str | Path | Run = "latest",
    to: str | Path | None = None,
    *,
    formats: Sequence[str] = (),
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    calibrate: ScalingMethod | None = None,
    runs: str | Path = RUNS,
) -> ExportResult:
    """The next SavedModel version of a run below `to`, proved against the run's own predictions.

    The version is written under a name that TensorFlow Serving ignores, loaded as TensorFlow Serving loads it, compared
    on held-out images, and only then renamed to the next integer. Nothing that exists is changed.

    ExportError if the folder holds other files, or the export's predictions differ from the run's or miss a limit;
    ResourceError if the folder cannot be written or the disk is full; RunError if the run has no readable model, or
    stores no images.

    Args:
        run: As in `open_run`.
        to: Folder of the versions, new, empty or with versions; saved_models/RECIPE if not given.
        formats: Other formats to write into the version: litert-float32, litert-float16, litert-int8, openvino, onnx.
        min_accuracy: Publish nothing whose accuracy on held-out images is lower.
        max_drop: Publish nothing that loses more accuracy than this against the run's own model; other formats may
            lose `MAX_DROP` if not given.
        calibrate: Build temperature or vector scaling into the model, with which the run's own predictions are scaled.
    """
    opened = open_run(run, runs)
    target = Path(to) if to else Path("saved_models") / opened.name.rpartition("-")[0]
    versions.check_target(target)
    check_formats(formats)
    inputs = _read_inputs(opened, calibrate)
    model = make_inference_model(inputs.model, inputs.tasks, inputs.held_out.first(_COMPARED)[1])
    criteria = AcceptanceCriteria(min_accuracy=min_accuracy, max_drop=max_drop)
    with versions.staging_folder(target) as folder:
        write_signatures(model, inputs.tasks, inputs.held_out.preprocessing, folder)
        with LoadedSavedModel(folder) as loaded:
            converted = _convert(inputs, formats, folder)
            rows, difference = _check_parity(inputs, loaded, converted, folder, criteria)
            gone = inputs.held_out.note and f"Note: {inputs.held_out.note}."
            notes = [note for note in (inputs.calibration, model.note, gone, *explain_order(inputs.tasks)) if note]
            about = (opened.name, inputs.held_out.preprocessing, list(loaded.signatures), len(inputs.held_out))
            report = ExportReport(*about, difference, rows, model.is_fast, notes)
            requests = _write_extras(inputs, loaded, folder, versions.served_name(target), report)
        version = versions.publish(folder, target, {"run": str(opened.path), "difference": difference})
        versions.write_config(target)
    path, docker = str(target / str(version)), versions.docker_command(target)
    return ExportResult(**vars(report), path=path, version=version, warmup=requests, docker=docker)


def _read_inputs(run: Run, calibrate: ScalingMethod | None = None) -> ExportInputs:
    tasks, preprocessing = read_tasks(run), Preprocessing.of(run.manifest["image"])
    model = order_outputs(load_model(run), [task.name for task in tasks])
    if list_handcrafted(model):
        rule = "Handcrafted features cannot be exported: they are computed in Python, not by TensorFlow."
        way_out = "`tlkeras predict` and `evaluate` work from the run; to export, train without features.handcrafted."
        raise ExportError(rule, run.name, way_out)
    held_out = read_held_out(run, tasks, preprocessing)
    if calibrate is None:
        return ExportInputs(run, model, tasks, held_out)
    scalings, sentence = find_scalings(run, calibrate)
    scaled = [
        of_task if scaling is None else scaling.apply(of_task)
        for scaling, of_task in zip(scalings, held_out.probabilities, strict=True)
    ]
    return ExportInputs(run, build_scalings(model, scalings), tasks, replace(held_out, probabilities=scaled), sentence)


def _convert(inputs: ExportInputs, names: Sequence[str], folder: Path) -> dict[str, PredictFn]:
    """Write other formats of the model; the function that predicts with each of them, by name."""
    if not names:
        return {}
    images = read_training_images(inputs.run, inputs.held_out.preprocessing, CALIBRATION_IMAGES)
    calibration = images if len(images) else inputs.held_out.first(CALIBRATION_IMAGES)[1]
    conversion = ConversionInputs(inputs.model, inputs.tasks, calibration)
    converted = {}
    for name in names:
        path = folder / FORMATS[name].file
        path.parent.mkdir(exist_ok=True)
        try:
            FORMATS[name].write(conversion, path)
            converted[name] = FORMATS[name].open(path, conversion.outputs)
        except OSError:
            raise
        except Exception as error:  # converters raise any type of error
            rule, reason = f"The model could not be converted to {name}.", f"{type(error).__name__}: {str(error)[:300]}"
            raise ExportError(rule, reason, "Nothing was published. Leave that format out.") from error
    return converted


def _check_parity(
    inputs: ExportInputs,
    loaded: LoadedSavedModel,
    converted: Mapping[str, PredictFn],
    folder: Path,
    criteria: AcceptanceCriteria,
) -> tuple[list[ParityResult], float]:
    """The parity table and the largest difference from the run's own predictions."""
    files = {name: folder / FORMATS[name].file for name in converted}
    sizes = {name: parity.measure_size(at if at.suffix == ".tflite" else at.parent) for name, at in files.items()}
    sizes[SAVED_MODEL] = parity.measure_size(folder) - sum(sizes.values())
    sizes[REFERENCE] = parity.measure_size(inputs.run.path / "model.keras")
    own = {REFERENCE: _predict_with_keras(inputs.model), SAVED_MODEL: _predict_with_saved_model(loaded, inputs.tasks)}
    rows, predictions = parity.compare_formats({**own, **converted}, sizes, inputs.held_out, inputs.tasks)
    worst = 0.0
    stored = inputs.held_out.probabilities
    for task, expected, predicted in zip(inputs.tasks, stored, predictions[SAVED_MODEL], strict=True):
        differences = task.measure_difference(expected, predicted)
        worst = max(worst, float(differences.max()))
        if not worst <= TOLERANCE:
            rule = f"The export's predictions differ from the run's by more than {TOLERANCE:g}."
            received = f"a difference of {worst:.2g} on {inputs.held_out.keys[int(differences.argmax())]}"
            raise ExportError(
                rule, received, "Nothing was published. Was the run made with another version of tlkeras?"
            )
    drop = MAX_DROP if criteria.max_drop is None else criteria.max_drop
    of_formats = {name: AcceptanceCriteria(FORMATS[name].tolerance, criteria.min_accuracy, drop) for name in converted}
    problems = parity.list_failures(rows, {SAVED_MODEL: criteria, **of_formats})
    if problems:
        raise ExportError.from_problems("The export misses its acceptance criteria; nothing was published:", problems)
    return rows, worst


def _predict_with_keras(model: keras.Model) -> PredictFn:
    size = max_batch_size(model, BATCH)
    function = tf.function(lambda images: model(images, training=False), autograph=False, reduce_retracing=True)
    return lambda encoded, images: run_in_parts(lambda part: function(tf.constant(part)), images, size)


def _predict_with_saved_model(loaded: LoadedSavedModel, tasks: Sequence[Task]) -> PredictFn:
    names = [main_output(tasks, task) for task in tasks]

    def predict(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        outputs = loaded.run("serving_default", image_bytes=np.array(encoded, dtype=object))
        return [outputs[name] for name in names]

    return predict


def _write_extras(inputs: ExportInputs, loaded: LoadedSavedModel, folder: Path, name: str, report: ExportReport) -> int:
    """Write warm-up requests, labels, settings, card and report next to the SavedModel; the number of requests."""
    encoded, images = inputs.held_out.first(versions.MAX_BATCH_SIZE)
    requests = write_warmup(folder, loaded, name, encoded, images, versions.MAX_BATCH_SIZE)
    run_warmup_requests(folder, loaded)
    versions.write_labels(folder, inputs.tasks)
    versions.write_batching(folder)
    versions.write_card(folder, inputs.run, name, report)
    text = json.dumps({"name": name, **to_plain(report)}, indent=2) + "\n"
    (folder / versions.REPORT).write_text(text, encoding="utf-8")
    return requests
