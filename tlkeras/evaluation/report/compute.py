"""All that a report of a run shows, computed: figures, mistakes and their images, curves, how it was made."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tlkeras.config.recipe import recipe_to_yaml
from tlkeras.errors import BackboneError, RunError, TlkerasError
from tlkeras.evaluation import errors, evaluate, selective
from tlkeras.evaluation.attribution import METHODS, AttributionMethod, Explainer, check_sanity
from tlkeras.evaluation.calibration import describe_calibration
from tlkeras.evaluation.comparison import compare_probabilities
from tlkeras.evaluation.learning_curve import learning_curve
from tlkeras.evaluation.other_data import list_elsewhere
from tlkeras.evaluation.robustness import measure_robustness
from tlkeras.evaluation.run_data import RunData
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, load_predictions, read_probes, take
from tlkeras.training import builders

_SANE_IMAGES = 6
_MOST_POINTS = 1000
_NEIGHBOURS = 3
_EXTRA_PHASES = ("extract activations", "fine-tune", "measure")


@dataclass(frozen=True)
class ReportOptions:
    """What a report goes into.

    Attributes:
        images: Mistakes shown, with an explanation each; 0 for none.
        method: Of the explanations.
        corrupted: Images that are worsened to see what answers are worth then; 0 for none.
        learning_curve: Whether heads are fitted on parts of the training images.
        conformal: Error rate of prediction sets; None for none.
        accuracy: Wanted of the answers that no person looks at; None: half as many errors.
    """

    images: int = 24
    method: AttributionMethod = "grad_cam"
    corrupted: int = 48
    learning_curve: bool = False
    conformal: float | None = None
    accuracy: float | None = None


@dataclass
class Report:
    """What was computed of one run.

    Attributes:
        run: Its name.
        figures: What `figures.evaluate` returns.
        tasks: By name, what else is shown of each task.
        elsewhere: Figures on other images, of each source that the run was measured on.
        made: How the run was made.
        notes: What could not be computed, and why.
        images: By name of the image, as the model sees it, uint8 [h, w, 3].
        maps: By name of the image, what speaks for the answer, float [h, w].
    """

    run: str
    figures: dict[str, Any]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    elsewhere: list[dict[str, Any]] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def check_options(options: ReportOptions) -> None:
    """Make sure before the work that options can be used.

    Raises:
        RunError: Some cannot; all are named.
    """
    problems = [
        f"{name} lies between 0 and 1. Received: {value}."
        for name, value in (("conformal", options.conformal), ("accuracy", options.accuracy))
        if value is not None and not 0 < value < 1
    ]
    if options.method not in METHODS:
        problems.append(f"the method is one of {', '.join(METHODS)}. Received: {options.method!r}.")
    if problems:
        raise RunError.from_problems("A report needs options that can be used:", problems)


def compute_report(run: Run, options: ReportOptions) -> Report:
    """Compute what a report of a run shows, and keep what is no image as report.json in the run.

    What cannot be computed, because images are gone or the network has no map, is left out with a note.

    Raises:
        RunError: The run keeps no answers, or an option cannot be used.
    """
    check_options(options)
    material = RunData(run)
    settings = material.recipe.evaluation
    report = Report(run.name, evaluate.evaluate_run(run, resamples=settings.bootstrap_samples, seed=settings.seed))
    for place, predictions in enumerate(load_predictions(run)):
        report.tasks[predictions.task.name] = _compute_task(material, predictions, place, options, report)
    report.elsewhere = list_elsewhere(run)
    if material.gone:
        report.notes.append(f"The images of the run cannot be looked at again: {material.gone}")
    report.made = reproducibility_info(material)
    names = ("figures", "tasks", "elsewhere", "made", "notes")
    kept = {name: getattr(report, name) for name in names}
    run.write_json("report.json", {"run": run.name, **kept})
    return report


def _compute_number(
    material: RunData, predictions: Predictions, options: ReportOptions, report: Report
) -> dict[str, Any]:
    """Return what is shown of a number: how near it comes, and where it is farthest off."""
    rows = np.unique(np.linspace(0, len(predictions) - 1, min(_MOST_POINTS, len(predictions))).astype(int))
    largest = errors.list_errors(predictions, options.images or 24)
    if options.images:
        _decode(material, [error["key"] for error in largest], report)
    return {
        "worth": _compare_with_linear_probe(material, predictions),
        "points": {
            "truth": predictions.targets[rows].tolist(),
            "predicted": predictions.probabilities[rows, 0].tolist(),
        },
        "errors": largest,
    }


def _compute_task(
    material: RunData, predictions: Predictions, place: int, options: ReportOptions, report: Report
) -> dict[str, Any]:
    if not predictions.task.has_classes:
        return _compute_number(material, predictions, options, report)
    unseen, unseen_is = material.find_unseen(predictions.task)
    losses = errors.top_losses(predictions, options.images or 24)
    result: dict[str, Any] = {
        "worth": _compare_with_linear_probe(material, predictions),
        "calibration": describe_calibration(predictions, unseen),
        "unseen": unseen_is,
        "losses": losses,
        "suspects": errors.label_issues(predictions),
        "training_suspects": errors.label_issues(unseen) if unseen is not None and unseen_is == "training" else [],
    }
    result |= _describe_classes(predictions) if predictions.targets.ndim == 1 else _describe_labels(predictions)
    result["trade"] = selective.describe_trade(predictions, unseen, options.accuracy)
    result |= _describe_sets(predictions, unseen, options, report)
    if options.images:
        _show_mistakes(material, predictions, place, result, options, report)
    if options.corrupted and material.inspection is not None:
        result["robustness"] = _evaluate_corruptions(material, predictions, place, options.corrupted)
    if options.learning_curve:
        result["learning"] = _compute_learning_curve(material, predictions, report)
    return result


def _compare_with_linear_probe(material: RunData, predictions: Predictions) -> dict[str, Any] | None:
    """Return by how much the run is better than a linear head on the same features, and what that took."""
    probe = read_probes(material.run).get(predictions.task.name)
    if probe is None:
        return None
    settings, manifest = material.recipe.evaluation, material.run.manifest
    differences = compare_probabilities(predictions, probe, resamples=settings.bootstrap_samples, seed=settings.seed)
    tuned = manifest.get("finetuning", {})
    minutes = sum(manifest.get("phases", {}).get(phase, 0.0) for phase in _EXTRA_PHASES) / 60
    gained = next(differences[name]["value"] for name in ("accuracy", "exact_match", "r2") if name in differences)
    return {
        "what": "fine-tuning" if tuned else f"a {manifest.get('head', {}).get('kind')} head",
        "differences": differences,
        "minutes": minutes if tuned else None,
        "parameters": tuned.get("trained_parameters"),
        "minutes_per_point": minutes / (100 * gained) if tuned and gained > 0 else None,
    }


def _describe_classes(predictions: Predictions) -> dict[str, Any]:
    confusions = errors.count_confusions(predictions)
    order = errors.order_classes(confusions)
    return {
        "confusions": {
            "classes": [predictions.task.class_names[index] for index in order.tolist()],
            "counts": confusions[np.ix_(order, order)].tolist(),
            "left_out": len(confusions) - len(order),
        },
        "confused": errors.most_confused(predictions),
    }


def _describe_labels(predictions: Predictions) -> dict[str, Any]:
    return {
        "label_mistakes": errors.count_label_mistakes(predictions),
        "confused": errors.most_confused_labels(predictions),
    }


def _describe_sets(
    predictions: Predictions, unseen: Predictions | None, options: ReportOptions, report: Report
) -> dict[str, Any]:
    if options.conformal is None:
        return {}
    if unseen is None:
        report.notes.append("Conformal sets need a validation split: train with data.validation.")
        return {}
    if predictions.targets.ndim == 1:
        return {"sets": selective.conformal_prediction_sets(predictions, unseen, options.conformal)}
    return {"label_sets": selective.measure_label_sets(predictions, unseen, options.conformal)}


def _show_mistakes(
    material: RunData,
    predictions: Predictions,
    place: int,
    result: dict[str, Any],
    options: ReportOptions,
    report: Report,
) -> None:
    """Add the images of mistakes, what speaks for the answers, and the training images that are most like them."""
    losses = result["losses"]
    wanted = [loss["key"] for loss in losses]
    wanted += [suspect["key"] for name in ("suspects", "training_suspects") for suspect in result[name]]
    _decode(material, wanted, report)
    seen = [loss for loss in losses if loss["key"] in report.images]
    if not seen:
        return
    images = np.stack([report.images[loss["key"]] for loss in seen])
    classes = [loss["class"] for loss in seen]
    try:
        explainer = Explainer(material.model, place)
        shown = explainer.explain(images, classes, options.method)
        sane = slice(0, _SANE_IMAGES if options.method != "occlusion" else 1)
        sanity = check_sanity(explainer, images[sane], classes[sane], method=options.method)
        result["attribution"] = {"method": options.method, "layer": explainer.layer, "sanity": sanity}
        task = predictions.task.name
        report.maps |= {(task, loss["key"]): found for loss, found in zip(seen, shown, strict=True)}
    except BackboneError as error:
        report.notes.append(str(error))
    _add_neighbours(material, predictions, seen, report)


def _decode(material: RunData, keys: Sequence[str], report: Report) -> None:
    for key in dict.fromkeys(keys):
        if key not in report.images and (image := material.decode(key)) is not None:
            report.images[key] = image


def _add_neighbours(material: RunData, predictions: Predictions, losses: list[dict[str, Any]], report: Report) -> None:
    try:
        train, test = material.features["train"], material.features["test"]
    except (KeyError, TlkerasError) as error:
        report.notes.append(f"The nearest training images are not shown: {error}")
        return
    task = predictions.task
    rows = {key: row for row, key in enumerate(test.keys.tolist())}
    known = [loss for loss in losses if loss["key"] in rows]
    if not known:
        return
    nearest, cosines = errors.find_nearest(test.X[[rows[loss["key"]] for loss in known]], train.X, _NEIGHBOURS)
    labels = task.format(task.members(train.targets[task.name]))
    for loss, places, alike in zip(known, nearest.tolist(), cosines.tolist(), strict=True):
        loss["nearest"] = [
            {"key": str(train.keys[row]), "label": labels[row], "cosine": cosine}
            for row, cosine in zip(places, alike, strict=True)
        ]
        _decode(material, [neighbour["key"] for neighbour in loss["nearest"]], report)


def _evaluate_corruptions(material: RunData, predictions: Predictions, place: int, most: int) -> dict[str, Any] | None:
    """Return what corruptions cost, on at most so many held-out images, spread over all."""
    rows = np.unique(np.linspace(0, len(predictions) - 1, min(most, len(predictions))).astype(int))
    found = [(row, material.decode(str(predictions.keys[row]))) for row in rows.tolist()]
    kept = [(row, image) for row, image in found if image is not None]
    if not kept:
        return None
    part = take(predictions, np.array([row for row, _ in kept]))
    truth = part.task.members(part.targets)

    def judge(probabilities: np.ndarray) -> float:
        right = (part.task.decide(probabilities) == truth).all(axis=1)
        return float(part.weights @ right / part.weights.sum()) if part.weights.any() else float(right.mean())

    images = np.stack([image for _, image in kept])
    return measure_robustness(material.model, images, judge, output=place, engine=material.recipe.features.engine)


def _compute_learning_curve(material: RunData, predictions: Predictions, report: Report) -> dict[str, Any] | None:
    train, test = material.features.get("train"), material.features.get("test")
    if train is None or test is None:
        return None
    train = train.take(predictions.task.is_labelled(train.targets[predictions.task.name]))
    place = {key: row for row, key in enumerate(predictions.keys.tolist())}
    known = np.array([key in place for key in test.keys.tolist()], dtype=bool)
    rows = np.array([place[key] for key in test.keys[known].tolist()], dtype=int)
    if len(rows) < len(predictions):
        report.notes.append("The learning curve is left out: some held-out images are gone.")
        return None
    return learning_curve(
        partial(material.make_linear_head, predictions.task.name),
        (train.X, train.targets[predictions.task.name], train.weights),
        test.X[known],
        take(predictions, rows),
        resamples=material.recipe.evaluation.bootstrap_samples,
    )


def reproducibility_info(material: RunData) -> dict[str, Any]:
    """Return all that is needed to make a run again."""
    run, recipe = material.run, material.recipe
    manifest = run.manifest
    return {
        "created": manifest.get("created", ""),
        "finished": manifest.get("finished", ""),
        "resumed": len(manifest.get("resumed", [])),
        "command": f"tlkeras train {run.path / 'recipe.yaml'}",
        "recipe": recipe_to_yaml(recipe),
        "source": recipe.data.source,
        "examples": manifest.get("examples", {}),
        "rejected": manifest.get("rejected", 0),
        "fingerprint": manifest.get("fingerprint", ""),
        "parameters": manifest.get("parameters"),
        "phases": manifest.get("phases", {}),
        "memory": manifest.get("memory", {}),
        "features": manifest.get("features", {}),
        "head": manifest.get("head", {}),
        "finetuning": manifest.get("finetuning"),
        "history": _read_history(run),
        "environment": run.read_json("environment.json"),
        "data": manifest.get("data", {}),
        "licences": builders.list_licences(recipe, manifest.get("data", {})),
    }


def _read_history(run: Run) -> list[dict[str, Any]]:
    try:
        text = run.read_bytes("history.csv").decode("utf-8", "replace")
    except RunError:
        return []
    return [{key: _parse(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text, newline=""))]


def _parse(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if np.isfinite(number) else text
    return text
