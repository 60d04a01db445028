"""The content of a run's report: metrics, mistakes with their images, curves, reproducibility."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tlkeras.config.recipe import bootstrap_options
from tlkeras.errors import BackboneError, RunError, TlkerasError
from tlkeras.evaluation import errors, selective
from tlkeras.evaluation.attribution import METHODS, AttributionMethod, Explainer, check_sanity
from tlkeras.evaluation.calibration import CalibrationResult, evaluate_calibration
from tlkeras.evaluation.comparison import PairedDifference, compare_probabilities
from tlkeras.evaluation.evaluate import QUICK, EvaluationResult, evaluate, is_quick
from tlkeras.evaluation.learning_curve import LearningCurveResult, learning_curve
from tlkeras.evaluation.metrics import measure_accuracy
from tlkeras.evaluation.other_data import (
    RobustnessResult,
    StoredEvaluation,
    measure_robustness,
    read_external_evaluations,
)
from tlkeras.evaluation.run_data import Reproducibility, RunData, read_reproducibility
from tlkeras.finetuning.schedule import BASELINE
from tlkeras.results import Result, to_plain
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, load_predictions, read_probes, take
from tlkeras.training import builders

_SANITY_IMAGES = 6
_MOST_POINTS = 1000
_NEIGHBOURS = 3
_DEFAULT_MISTAKES = 24
_EXTRA_PHASES = ("extract activations", "fine-tune", "measure")


@dataclass(frozen=True)
class ReportOptions:
    """The content of a report."""

    images: int = 24  # mistakes shown with an explanation each; 0 for none
    method: AttributionMethod = "grad_cam"  # of the explanations
    corrupted: int = 48  # images for the corruption test; 0 for none
    learning_curve: bool = False  # whether heads are fitted on parts of the training images
    conformal: float | None = None  # error rate of prediction sets; None for none
    accuracy: float | None = None  # target accuracy of automatic predictions; None: half as many errors


@dataclass(frozen=True)
class GainOverProbe(Result):
    """What a run gained over a linear head on the same frozen features."""

    method: str  # what it did instead, such as "fine-tuning"
    differences: dict[str, PairedDifference]  # by metric
    minutes: float | None  # of fine-tuning; None where the backbone stayed frozen
    parameters: int | None  # as many as fine-tuning trained
    minutes_per_point: float | None  # minutes per gained point (0.01) of the main metric; None where nothing was gained
    unchanged: bool  # no epoch of fine-tuning was better than the head that it started from, which was kept

    @property
    def metric(self) -> str:
        """The main metric: "accuracy", "exact_match" or "r2"."""
        return next(name for name in ("accuracy", "exact_match", "r2") if name in self.differences)


@dataclass(frozen=True)
class AttributionSanity(Result):
    """Method and layer of the attribution maps."""

    method: str
    layer: str
    # fraction of layers randomized, and the rank correlation of the maps with the first ones, per step
    sanity: list[tuple[float, float]]


@dataclass(frozen=True)
class RegressionPoints(Result):
    """True and predicted numbers of some images."""

    truth: list[float]
    predicted: list[float]


@dataclass(frozen=True)
class RegressionReport(Result):
    """Besides the metrics of a regression task: its gain over a linear probe, some points, and the largest errors."""

    gain_over_probe: GainOverProbe | None
    points: RegressionPoints
    errors: list[errors.RegressionError]


@dataclass(frozen=True)
class ClassificationReport(Result):
    """What a report shows of a classification task besides its metrics."""

    gain_over_probe: GainOverProbe | None
    calibration: CalibrationResult
    unseen: str  # the split that scalings, thresholds and sets are fitted on: "validation", "training" or "" for none
    top_losses: list[errors.TopLoss]
    label_issues: list[errors.LabelIssueRow]  # labels that look wrong among the held-out images
    training_label_issues: list[errors.LabelIssueRow]  # the same among the training images
    confusions: errors.ConfusionMatrix | None  # None for a multi-label task
    confused: list[errors.ConfusionPair]
    label_mistakes: list[errors.LabelMistakes]  # of a multi-label task
    risk_coverage: selective.SelectiveResult
    prediction_sets: selective.ConformalResult | None = None  # of a task with one class per image, if asked for
    label_sets: Sequence[selective.LabelConformalResult] = ()  # of a multi-label task, if asked for
    attribution: AttributionSanity | None = None
    robustness: RobustnessResult | None = None
    learning_curve: LearningCurveResult | None = None


TaskReport = ClassificationReport | RegressionReport


@dataclass(frozen=True)
class Report(Result):
    """The content of the report of one run."""

    run: str
    evaluation: EvaluationResult
    tasks: dict[str, TaskReport]
    other_data: list[StoredEvaluation]
    reproducibility: Reproducibility
    notes: list[str]  # what could not be computed, and why
    images: dict[str, np.ndarray]  # by name of the image, as the model sees it, uint8 [h, w, 3]
    maps: dict[tuple[str, str], np.ndarray]  # by task and name of the image, its attribution map, float32 [h, w]

    def to_dict(self) -> dict[str, Any]:
        """All attributes but the images and maps."""
        return {name: to_plain(value) for name, value in vars(self).items() if name not in ("images", "maps")}


def compute_report(run: Run, options: ReportOptions) -> Report:
    """The report of a run; its content but for images is written into the run as report.json.

    What cannot be computed, because images are missing or the network has no feature map, is left out with a note.

    Raises:
        RunError: The run keeps no predictions, or an option cannot be used.
    """
    _check_options(options)
    evaluation = evaluate(run)
    computation = _Computation(RunData(run), options)
    tasks = {
        predictions.task.name: computation.report_task(predictions, output)
        for output, predictions in enumerate(load_predictions(run))
    }
    data, notes = computation.data, [QUICK] if is_quick(run.name) else []
    notes += computation.notes
    if data.images_error:
        notes.append(f"The run's images cannot be read any more: {data.images_error}")
    others, made = read_external_evaluations(run), read_reproducibility(data)
    report = Report(run.name, evaluation, tasks, others, made, notes, computation.images, computation.maps)
    run.write_json("report.json", report.to_dict())
    return report


def _check_options(options: ReportOptions) -> None:
    problems = [
        f"{name} is not between 0 and 1. Received: {value}."
        for name, value in (("conformal", options.conformal), ("accuracy", options.accuracy))
        if value is not None and not 0 < value < 1
    ]
    if options.method not in METHODS:
        problems.append(f"unknown method {options.method!r}. Choose from {', '.join(METHODS)}.")
    if problems:
        raise RunError.from_problems("Invalid options:", problems)


class _Computation:
    """Computes the parts of a report, and collects notes, images and maps on the way."""

    def __init__(self, data: RunData, options: ReportOptions):
        self.data, self.options = data, options
        self.bootstrap = bootstrap_options(data.recipe)
        self.notes: list[str] = []
        self.images: dict[str, np.ndarray] = {}
        self.maps: dict[tuple[str, str], np.ndarray] = {}

    def report_task(self, predictions: Predictions, output: int) -> TaskReport:
        """The report of a task, which is the model's output of that index."""
        if not predictions.task.has_classes:
            return self._report_regression(predictions)
        unseen, split = self.data.find_unseen(predictions.task)
        is_multilabel, options, bootstrap = predictions.task.is_multilabel, self.options, self.bootstrap
        report = ClassificationReport(
            gain_over_probe=self._compare_with_linear_probe(predictions),
            calibration=evaluate_calibration(predictions, unseen, bootstrap.bootstrap_samples, bootstrap.seed),
            unseen=split,
            top_losses=errors.top_losses(predictions, options.images or _DEFAULT_MISTAKES),
            label_issues=errors.label_issues(predictions),
            training_label_issues=errors.label_issues(unseen) if unseen is not None and split == "training" else [],
            confusions=None if is_multilabel else errors.confusion_matrix(predictions),
            confused=errors.most_confused(predictions),
            label_mistakes=errors.count_label_mistakes(predictions) if is_multilabel else [],
            risk_coverage=selective.evaluate_selective(predictions, unseen, options.accuracy),
        )
        alpha = options.conformal
        if alpha is not None and unseen is None:
            self.notes.append("Conformal sets need a validation split: train with data.validation.")
        elif alpha is not None and unseen is not None and is_multilabel:
            report = replace(report, label_sets=selective.conformal_label_sets(predictions, unseen, alpha))
        elif alpha is not None and unseen is not None:
            report = replace(report, prediction_sets=selective.conformal_prediction_sets(predictions, unseen, alpha))
        if options.images:
            report = self._add_images(report, predictions, output)
        if options.corrupted and self.data.dataset is not None:
            report = replace(report, robustness=self._evaluate_corruptions(predictions, output))
        if options.learning_curve:
            report = replace(report, learning_curve=self._compute_learning_curve(predictions))
        return report

    def _report_regression(self, predictions: Predictions) -> RegressionReport:
        rows = _spread(len(predictions), _MOST_POINTS)
        largest = errors.largest_errors(predictions, self.options.images or _DEFAULT_MISTAKES)
        if self.options.images:
            self._decode(error.key for error in largest)
        points = RegressionPoints(predictions.targets[rows].tolist(), predictions.probabilities[rows, 0].tolist())
        return RegressionReport(self._compare_with_linear_probe(predictions), points, largest)

    def _compare_with_linear_probe(self, predictions: Predictions) -> GainOverProbe | None:
        """Gain over a linear head on the same features, and its cost; None where the run's own head is linear."""
        probe = read_probes(self.data.run).get(predictions.task.name)
        if probe is None:
            return None
        options, manifest = self.bootstrap, self.data.run.manifest
        differences = compare_probabilities(predictions, probe, resamples=options.bootstrap_samples, seed=options.seed)
        tuned, head = manifest.get("finetuning", {}), manifest.get("head", {})
        fitted = f"adaptation by {head['method']}" if head.get("method") else f"a {head.get('kind')} head"
        minutes = sum(manifest.get("phases", {}).get(phase, 0.0) for phase in _EXTRA_PHASES) / 60
        gain = GainOverProbe(
            method="fine-tuning" if tuned else fitted,
            differences=differences,
            minutes=minutes if tuned else None,
            parameters=tuned.get("trained_parameters"),
            minutes_per_point=None,
            unchanged=tuned.get("best_epoch") == BASELINE,
        )
        gained = differences[gain.metric].value
        return replace(gain, minutes_per_point=minutes / (100 * gained)) if tuned and gained > 0 else gain

    def _add_images(self, report: ClassificationReport, predictions: Predictions, output: int) -> ClassificationReport:
        """The report with images of the mistakes, their attribution maps, and the most similar training images."""
        issues = [*report.label_issues, *report.training_label_issues]
        self._decode([loss.key for loss in report.top_losses] + [issue.key for issue in issues])
        shown = [loss for loss in report.top_losses if loss.key in self.images]
        if not shown:
            return report
        attribution = self._explain(predictions.task.name, shown, output)
        nearest = self._find_nearest(predictions, shown)
        losses = [replace(loss, nearest=nearest.get(loss.key, ())) for loss in report.top_losses]
        return replace(report, attribution=attribution, top_losses=losses)

    def _explain(self, task: str, losses: Sequence[errors.TopLoss], output: int) -> AttributionSanity | None:
        images = np.stack([self.images[loss.key] for loss in losses])
        classes, method = [loss.class_index for loss in losses], self.options.method
        few = slice(0, _SANITY_IMAGES if method != "occlusion" else 1)
        try:
            explainer = Explainer(self.data.model, output)
            maps = explainer.explain(images, classes, method)
            sanity = check_sanity(explainer, images[few], classes[few], method=method)
        except BackboneError as error:
            self.notes.append(str(error))
            return None
        self.maps |= {(task, loss.key): found for loss, found in zip(losses, maps, strict=True)}
        return AttributionSanity(method, explainer.layer, sanity)

    def _find_nearest(
        self, predictions: Predictions, losses: Sequence[errors.TopLoss]
    ) -> dict[str, list[errors.SimilarImage]]:
        try:
            train, test = self.data.features["train"], self.data.features["test"]
        except (KeyError, TlkerasError) as error:
            self.notes.append(f"The nearest training images are not shown: {error}")
            return {}
        task, rows = predictions.task, {key: row for row, key in enumerate(test.keys.tolist())}
        keys = [loss.key for loss in losses if loss.key in rows]
        if not keys:
            return {}
        indices, cosines = errors.find_nearest(test.X[[rows[key] for key in keys]], train.X, _NEIGHBOURS)
        labels = task.format(task.members(train.targets[task.name]))
        nearest = {
            key: [
                errors.SimilarImage(str(train.keys[row]), labels[row], cosine)
                for row, cosine in zip(of_key, cosines_of_key, strict=True)
            ]
            for key, of_key, cosines_of_key in zip(keys, indices.tolist(), cosines.tolist(), strict=True)
        }
        self._decode(similar.key for of_key in nearest.values() for similar in of_key)
        return nearest

    def _decode(self, keys: Iterable[str]) -> None:
        for key in dict.fromkeys(keys):
            if key not in self.images and (image := self.data.decode(key)) is not None:
                self.images[key] = image

    def _evaluate_corruptions(self, predictions: Predictions, output: int) -> RobustnessResult | None:
        """Accuracy under corruptions on held-out images spread over all; None where their files are missing."""
        rows = _spread(len(predictions), self.options.corrupted).tolist()
        decoded = {row: self.data.decode(str(predictions.keys[row])) for row in rows}
        images = {row: image for row, image in decoded.items() if image is not None}
        if not images:
            return None
        part = take(predictions, np.array(list(images)))
        part = part if part.weights.any() else replace(part, weights=np.ones(len(part)))
        pixels, engine = np.stack(list(images.values())), builders.feature_engine(self.data.recipe)
        accuracy = partial(measure_accuracy, part)
        return measure_robustness(self.data.model, pixels, accuracy, output=output, engine=engine)

    def _compute_learning_curve(self, predictions: Predictions) -> LearningCurveResult | None:
        name = predictions.task.name
        train, test = self.data.features.get("train"), self.data.features.get("test")
        if train is None or test is None:
            return None
        train = train.take(predictions.task.is_labelled(train.targets[name]))
        rows = {key: row for row, key in enumerate(predictions.keys.tolist())}
        known = np.array([key in rows for key in test.keys.tolist()], dtype=bool)
        order = np.array([rows[key] for key in test.keys[known].tolist()], dtype=int)
        if len(order) < len(predictions):
            self.notes.append("The learning curve is left out: some held-out images are missing.")
            return None
        make_head, held_out = partial(self.data.make_linear_head, name), take(predictions, order)
        resamples, seed = self.bootstrap.bootstrap_samples, self.bootstrap.seed
        return learning_curve(make_head, train, test.X[known], held_out, resamples=resamples, seed=seed)


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` indices, spread evenly, int64 [m]."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
