"""A model whose probabilities have been brought nearer to what they say, as one graph."""

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
    """Return the scaling of each task, fitted on images that were not trained on, and a sentence on them.

    A number has none.

    Raises:
        RunError: The run keeps no answers on such images.
    """
    material, counts = RunData(run), []
    scalings: list[LogitScaling | None] = []
    for predictions in load_predictions(run):
        if not predictions.task.has_classes:
            scalings.append(None)
            continue
        unseen, where = material.find_unseen(predictions.task)
        if unseen is None:
            raise RunError(
                "Calibration needs answers on images that were neither trained on nor measured on.",
                f"none for {predictions.task.name!r} in {run.name}",
                "Train with a validation split, such as --set data.validation=0.1.",
            )
        scalings.append(fit_scaling(unseen, method))
        counts.append(f"{len(unseen):,} {where} images")
    return scalings, f"Calibrated by {method} scaling, fitted on {', '.join(counts)}."


def build_scalings(model: keras.Model, scalings: Sequence[LogitScaling | None]) -> keras.Model:
    """Return the model with each output's logits scaled and shifted, in the same variables.

    Args:
        model: From images to probabilities, one output per task.
        scalings: One per output; None leaves it as it is.
    """
    tensors = [
        model.outputs[place] if scaling is None else _scale(model, place, scaling)
        for place, scaling in enumerate(scalings)
    ]
    return keras.Model(model.input, keras.tree.pack_sequence_as(model.output, tensors), name=model.name)


def _scale(model: keras.Model, place: int, scaling: LogitScaling) -> Any:
    scores, are_probabilities = find_scores(model, place)
    if are_probabilities:  # logits that no layer shows
        logarithm = keras.ops.log(scores + _TINY)
        scores = logarithm - keras.ops.log(1 - scores + _TINY) if scaling.several else logarithm
    elif not scaling.several:  # scales that differ by class see the constant that softmax does not
        scores = keras.ops.log_softmax(scores)
    scaled = keras.layers.Rescaling(scaling.scale.tolist(), scaling.shift.tolist(), name=f"calibration_{place}")(scores)
    activation = "sigmoid" if scaling.several else "softmax"
    return keras.layers.Activation(activation, dtype="float32", name=f"calibrated_{place}")(scaled)
