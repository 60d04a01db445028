"""A run as a SavedModel in the layout that TF Serving loads, BASE/<version>/, with all that a server wants beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.backbones.graph import max_batch_size, run_in_parts
from tlkeras.data.tasks import Task
from tlkeras.errors import ExportError
from tlkeras.evaluation.calibration import ScalingMethod
from tlkeras.exporting import model_card, versions
from tlkeras.exporting.calibration import build_scalings, find_scalings
from tlkeras.exporting.formats import CALIBRATED, FORMATS, ConversionInputs, check_forms
from tlkeras.exporting.held_out import BATCH, HeldOut, read_held_out, read_training
from tlkeras.exporting.inference_graph import InferenceModel, make_network
from tlkeras.exporting.loaded_model import LoadedSavedModel
from tlkeras.exporting.parity import (
    REFERENCE,
    AcceptanceCriteria,
    ParityResult,
    PredictFn,
    compare,
    list_failures,
    measure_size,
)
from tlkeras.exporting.signatures import Preprocessing, name_main, write_signatures
from tlkeras.exporting.warmup import run_warmup_requests, write_warmup
from tlkeras.features.handcrafted.layer import list_handcrafted
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import read_tasks

TOLERANCE = 1e-3
"""What a probability may differ by from the one that the run wrote down, whose features may have had 16 bits."""

MAX_DROP = 0.01
"""What accuracy other forms may lose unless the gate says otherwise."""

SAVED_MODEL = "SavedModel"
_COMPARED = 64
_NO_GATE = AcceptanceCriteria()


@dataclass(frozen=True)
class ExportInputs:
    """What an export is made of."""

    run: Run
    model: keras.Model
    tasks: list[Task]
    entry: Preprocessing
    held_out: HeldOut
    calibration: str = ""


def export(
    run: str | Path | Run = "latest",
    to: str | Path | None = None,
    *,
    formats: Sequence[str] = (),
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    calibrate: ScalingMethod | None = None,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """The next SavedModel version of a run below `to`, proved against the run's own predictions.

    Args:
        run: A name, a path, `latest`, or a `Run`.
        to: Folder of the versions; saved_models/RECIPE if not given.
        formats: Other forms to write into the version: litert-float32, litert-float16, litert-int8, openvino, onnx.
        min_accuracy: Publish nothing whose accuracy on held-out images is lower.
        max_drop: Publish nothing that loses more accuracy than this against the run's own model.
        calibrate: Build temperature or vector scaling into the model.
        runs: Folder of the run directories.

    Returns:
        What `export_run` returns.
    """
    opened = open_run(run, runs)
    target = Path(to) if to else Path("saved_models") / opened.name.rpartition("-")[0]
    gate = AcceptanceCriteria(min_accuracy=min_accuracy, max_drop=max_drop)
    return export_run(opened, target, forms=formats, gate=gate, calibrate=calibrate)


def export_run(
    run: Run,
    target: Path,
    *,
    forms: Sequence[str] = (),
    gate: AcceptanceCriteria = _NO_GATE,
    calibrate: ScalingMethod | None = None,
) -> dict[str, Any]:
    """Write the next version of a run's model below `target`, proved against the run's own predictions.

    The version is written under a name that TF Serving ignores, loaded as TF Serving loads it, compared on held-out
    images, and only then renamed to the next integer. Nothing that exists is touched.

    Args:
        target: A new or empty folder, or one of versions.
        forms: Other forms to write into the version, of `tlkeras.exporting.formats.FORMATS`.
        gate: What must hold beside the agreement with the run. Other forms may lose `MAX_DROP` of accuracy unless it
            says otherwise.
        calibrate: Build a scaling of this kind into the model, so that probabilities mean what they say; what it is
            compared with are the run's own answers, scaled alike.

    Returns:
        `path`, `version`, `name`, `signatures`, `images` compared, `difference` (the largest one in a probability
        from the run's own answers), `parity` (a row per form and task), `fast`, `notes`, `warmup` (requests), `docker`.

    Raises:
        ExportError: The target is somebody else's, or the export answers otherwise than the run or not well enough.
        ResourceError: The folder cannot be written or the disk is full.
        RunError: The run holds no model that can be read, or keeps no images.
    """
    versions.check_target(target)
    check_forms(forms)
    source = _read_source(run, calibrate)
    network = make_network(source.model, source.tasks, _take_images(source, _COMPARED)[1])
    with versions.writing_aside(target) as aside:
        write_signatures(network, source.tasks, source.entry, aside)
        with LoadedSavedModel(aside) as served:
            opened = _write_forms(source, forms, aside)
            rows, difference = _prove(source, served, opened, aside, gate)
            facts = _gather_facts(source, network, rows, served, difference)
            requests = _write_beside(source, served, aside, target, rows, facts)
        version = versions.publish(aside, target, {"run": str(run.path), "difference": difference})
        model_card.write_config(target)
    return {
        "path": str(target / str(version)),
        "version": version,
        "warmup": requests,
        "docker": model_card.write_docker_line(target),
        **facts,
    }


def _read_source(run: Run, calibrate: ScalingMethod | None = None) -> ExportInputs:
    facts = run.manifest["image"]
    tasks, entry = read_tasks(run), Preprocessing(facts["size"], facts["resize"])
    model = load_model(run)
    if list_handcrafted(model):
        raise ExportError(
            "A model must consist of TensorFlow operations to be exported.",
            f"{run.name} with handcrafted features, which Python computes",
            "`tlkeras predict` and `evaluate` work from the run; to export, train without features.handcrafted.",
        )
    held_out = read_held_out(run, tasks)
    if calibrate is None:
        return ExportInputs(run, model, tasks, entry, held_out)
    scalings, sentence = find_scalings(run, calibrate)
    predicted = [
        of_task if scaling is None else scaling.apply(of_task)
        for scaling, of_task in zip(scalings, held_out.probabilities, strict=True)
    ]
    model = build_scalings(order_outputs(model, [task.name for task in tasks]), scalings)
    return ExportInputs(run, model, tasks, entry, replace(held_out, probabilities=predicted), sentence)


def _take_images(source: ExportInputs, most: int) -> tuple[list[bytes], np.ndarray]:
    """Return the first held-out images, as bytes and decoded."""
    encoded: list[bytes] = []
    parts: list[np.ndarray] = []
    for batch, images in source.held_out.batches(source.entry):
        encoded += batch
        parts.append(images)
        if len(encoded) >= most:
            break
    return encoded[:most], np.concatenate(parts)[:most]


def _write_forms(source: ExportInputs, names: Sequence[str], aside: Path) -> dict[str, PredictFn]:
    """Write other forms of the model; return what asks each of them."""
    if not names:
        return {}
    images = read_training(source.run, source.entry, CALIBRATED)
    calibration = images if len(images) else _take_images(source, CALIBRATED)[1]
    material = ConversionInputs(source.model, source.tasks, calibration)
    opened = {}
    for name in names:
        form = FORMATS[name]
        path = aside / form.file
        path.parent.mkdir(exist_ok=True)
        try:
            form.write(material, path)
            opened[name] = form.open(path, material.outputs)
        except OSError:
            raise
        except Exception as error:  # converters raise whatever their many layers do
            raise ExportError(
                f"The model must have the form {name}.",
                f"{type(error).__name__}: {str(error)[:300]}",
                "Nothing was published. Leave that format out.",
            ) from error
    return opened


def _prove(
    source: ExportInputs,
    served: LoadedSavedModel,
    opened: Mapping[str, PredictFn],
    path: Path,
    gate: AcceptanceCriteria,
) -> tuple[list[ParityResult], float]:
    """Return the parity table and the largest difference from what the run wrote down.

    Raises:
        ExportError: Something is too far off; all of it is named.
    """
    files = {name: path / FORMATS[name].file for name in opened}
    sizes = {name: measure_size(file if file.suffix == ".tflite" else file.parent) for name, file in files.items()}
    sizes |= {
        REFERENCE: measure_size(source.run.path / "model.keras"),
        SAVED_MODEL: measure_size(path) - sum(sizes.values()),
    }
    forms = {REFERENCE: _ask_keras(source), SAVED_MODEL: _ask_served(served, source.tasks), **opened}
    rows, predictions = compare(forms, sizes, source.held_out, source.tasks, source.entry)
    worst = 0.0
    predicted = zip(source.tasks, source.held_out.probabilities, predictions[SAVED_MODEL], strict=True)
    for task, expected, received in predicted:
        differences = task.measure_difference(expected, received)
        worst = max(worst, float(differences.max()))
        if not worst <= TOLERANCE:
            raise ExportError(
                f"An export must answer as its run did, to {TOLERANCE:g} in every probability.",
                f"a difference of {worst:.2g} on {source.held_out.keys[int(differences.argmax())]}",
                "Nothing was published. Was the run made with another version of tlkeras?",
            )
    drop = MAX_DROP if gate.max_drop is None else gate.max_drop
    gates = {name: AcceptanceCriteria(FORMATS[name].tolerance, gate.min_accuracy, drop) for name in opened}
    problems = list_failures(rows, {SAVED_MODEL: gate, **gates})
    if problems:
        raise ExportError.from_problems("An export must pass its gates; nothing was published:", problems)
    return rows, worst


def _ask_keras(source: ExportInputs) -> PredictFn:
    model, size = order_outputs(source.model, [task.name for task in source.tasks]), max_batch_size(source.model, BATCH)
    function = tf.function(lambda images: model(images, training=False), autograph=False, reduce_retracing=True)
    return lambda encoded, images: run_in_parts(lambda part: function(tf.constant(part)), images, size)


def _ask_served(served: LoadedSavedModel, tasks: Sequence[Task]) -> PredictFn:
    names = [name_main(tasks, task) for task in tasks]

    def ask(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        predictions = served.run("serving_default", image_bytes=np.array(encoded, dtype=object))
        return [predictions[name] for name in names]

    return ask


def _gather_facts(
    source: ExportInputs,
    network: InferenceModel,
    rows: Sequence[ParityResult],
    served: LoadedSavedModel,
    difference: float,
) -> dict[str, Any]:
    lacking = source.held_out.note and f"Note: {source.held_out.note}."
    notes = [note for note in (source.calibration, network.note, lacking) if note]
    return {
        "run": source.run.name,
        "image": {"size": source.entry.size, "resize": source.entry.fit},
        "signatures": list(served.signatures),
        "images": len(source.held_out),
        "difference": difference,
        "parity": [row.as_dict() for row in rows],
        "fast": network.is_fast,
        "notes": notes,
    }


def _write_beside(
    source: ExportInputs,
    served: LoadedSavedModel,
    aside: Path,
    target: Path,
    rows: Sequence[ParityResult],
    facts: dict[str, Any],
) -> int:
    """Write what stands beside the SavedModel; return how many requests warm it up, all replayed."""
    name = model_card.make_name(target)
    encoded, images = _take_images(source, model_card.MAX_BATCH_SIZE)
    requests = write_warmup(aside, served, name, encoded, images, model_card.MAX_BATCH_SIZE)
    run_warmup_requests(aside, served)
    model_card.write_labels(aside, source.tasks)
    model_card.write_batching(aside)
    model_card.write_card(aside, source.run, name, rows, facts)
    (aside / model_card.FACTS).write_text(json.dumps({"name": name, **facts}, indent=2) + "\n", encoding="utf-8")
    return requests
