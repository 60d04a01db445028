"""What a run is wrong about, and what speaks for an answer: confusions, top losses, attribution maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.errors import DataError, RunError, suggest
from tlkeras.evaluation import errors
from tlkeras.evaluation.attribution import METHODS, AttributionMethod, Explainer
from tlkeras.evaluation.report.charts import overlay
from tlkeras.evaluation.run_data import RunData
from tlkeras.inference.images import list_images
from tlkeras.inference.predict import Predictor
from tlkeras.plotting.notebook import Plot, render_images
from tlkeras.results import HIDDEN, Table
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, load_predictions


@dataclass(frozen=True)
class HeldOutMistake(errors.TopLoss):
    """A wrong prediction, with the image as the model sees it, uint8 [h, w, 3], where its file still exists."""

    pixels: np.ndarray | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)


class HeldOutMistakes(Table[HeldOutMistake]):
    """Wrong predictions, worst first; a notebook shows their images."""

    def _repr_html_(self) -> str:
        shown = [(one.pixels, f"{one.prediction} {one.probability:.0%}, is {one.label}: {one.key}") for one in self]
        images = [(pixels, text) for pixels, text in shown if pixels is not None]
        return render_images(images) if images else super()._repr_html_()


def count_confusions(run: str | Path | Run = "latest", *, runs: str | Path = RUNS) -> errors.ConfusionMatrix:
    """How often each class was predicted for each other one, on held-out images, of the run's first task.

    RunError if there is no such run, or its images have several labels or numbers.
    """
    predictions = _load(open_run(run, runs))
    if predictions.task.is_multilabel:
        rule = "Images with several labels have no confusion matrix."
        raise RunError(rule, predictions.task.name, "See `per_class` and `top_losses`.")
    return errors.confusion_matrix(predictions)


def find_top_losses(run: str | Path | Run = "latest", n: int = 9, *, runs: str | Path = RUNS) -> HeldOutMistakes:
    """The `n` wrong predictions with the largest log loss, worst first, of the run's first task.

    RunError if there is no such run, or it predicts numbers.
    """
    opened = open_run(run, runs)
    losses, data = errors.top_losses(_load(opened), n), RunData(opened)
    return HeldOutMistakes(HeldOutMistake(**vars(loss), pixels=data.decode(loss.key)) for loss in losses)


def explain(
    run: str | Path | Run,
    image: Any,
    label: str | None = None,
    *,
    method: AttributionMethod = "grad_cam",
    runs: str | Path = RUNS,
) -> Plot:
    """An image with a map of what speaks for a class laid over it, as large as the model sees it.

    BackboneError if the model has no layer with a map; DataError if the image cannot be read, or there are several;
    RunError if there is no such class.

    Args:
        run: As in `open_run`.
        image: A path, bytes, an image of Pillow, or an array uint8 [height, width, 3].
        label: The class; by default the predicted one.
        method: "grad_cam", "grad_cam++" or "occlusion".
    """
    predictor = Predictor(run, runs=runs)
    if method not in METHODS:
        raise RunError("Unknown method of explanation.", repr(method), f"Choose one of {', '.join(METHODS)}.")
    task = predictor.tasks[0]
    named, _ = list_images(image)
    if len(named) > 1:
        raise DataError("One image is explained at a time.", f"{len(named):,} images", "Call `explain` for each.")
    pixels = predictor.decode(named[0])
    if label is None:
        (outputs, *_) = predictor.compute(pixels[None])
        index = int(outputs[0].argmax())
    elif label in task.class_names:
        index = list(task.class_names).index(label)
    else:
        raise RunError("Unknown class.", repr(label), suggest(label, task.class_names))
    heat = Explainer(predictor.model).explain(pixels[None], [index], method)[0]
    return Plot.of_pixels(overlay(pixels, heat))


def _load(run: Run) -> Predictions:
    predictions = load_predictions(run)[0]
    if not predictions.task.has_classes:
        raise RunError("This run predicts numbers, not classes.", run.name, "See its report: `run.report()`.")
    return predictions
