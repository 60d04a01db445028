"""Calibration as part of a model's graph: logits scaled before the last activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tlkeras.errors import RunError
from tlkeras.evaluation.attribution import find_scores
from tlkeras.evaluation.calibration import LogitScaling, ScalingMethod, fit_scaling
from tlkeras.evaluation.run_data import RunData
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import load_predictions

_TINY = 1e-30  # float32 has it


def find_scalings(run: Run, method: ScalingMethod) -> tuple[list[LogitScaling | None], str]:
    """Scaling of each task, fitted on images not trained on (None for a regression), and a note; RunError if none."""
    run_data, counts = RunData(run), []
    scalings: list[LogitScaling | None] = []
    for predictions in load_predictions(run):
        if not predictions.task.has_classes:
            scalings.append(None)
            continue
        unseen, where = run_data.find_unseen(predictions.task)
        if unseen is None:
            raise RunError(
                f"{run.name} has no predictions of {predictions.task.name!r} to fit a calibration on.",
                "no images that were neither trained on nor evaluated on",
                "Train with a validation split, such as --set data.validation=0.1.",
            )
        scalings.append(fit_scaling(unseen, method))
        counts.append(f"{len(unseen):,} {where} images")
    return scalings, f"Calibrated by {method} scaling, fitted on {', '.join(counts)}."


def build_scalings(model: keras.Model, scalings: Sequence[LogitScaling | None]) -> keras.Model:
    """The model with the logits of each output scaled and shifted, unless its scaling is None; variables are shared."""
    tensors = [
        model.outputs[index] if scaling is None else _scale(model, index, scaling)
        for index, scaling in enumerate(scalings)
    ]
    return keras.Model(model.input, keras.tree.pack_sequence_as(model.output, tensors), name=model.name)


def _scale(model: keras.Model, index: int, scaling: LogitScaling) -> Any:
    scores, are_probabilities = find_scores(model, index)
    if are_probabilities:  # no layer gives the logits
        logarithm = keras.ops.log(scores + _TINY)
        scores = logarithm - keras.ops.log(1 - scores + _TINY) if scaling.is_multilabel else logarithm
    elif not scaling.is_multilabel:  # scales that differ by class see the constant that softmax does not
        scores = keras.ops.log_softmax(scores)
    scaled = keras.layers.Rescaling(scaling.scale.tolist(), scaling.shift.tolist(), name=f"calibration_{index}")(scores)
    activation = "sigmoid" if scaling.is_multilabel else "softmax"
    return keras.layers.Activation(activation, dtype="float32", name=f"calibrated_{index}")(scaled)
