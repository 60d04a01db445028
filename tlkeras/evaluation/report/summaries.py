"""Sentences and numbers of a report as people read them."""

import math
from collections.abc import Callable, Sequence

from tlkeras.evaluation.calibration import CalibrationResult
from tlkeras.evaluation.evaluate import TaskEvaluation
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.learning_curve import LearningCurveResult
from tlkeras.evaluation.metric_names import METRIC_NAMES
from tlkeras.evaluation.other_data import RobustnessResult
from tlkeras.evaluation.report.compute import AttributionSanity, GainOverProbe
from tlkeras.evaluation.selective import ConformalResult, LabelConformalResult, SelectiveResult

UNDEFINED = "-"
_RELEVANT_LOSS = 0.001  # smaller differences of log loss are noise


def format_number(value: float) -> str:
    """A number with four decimals; a dash for NaN."""
    return UNDEFINED if math.isnan(value) else f"{value:.4f}"


def format_percent(value: float | None) -> str:
    """A fraction in per cent with one decimal; a dash for None and NaN."""
    return UNDEFINED if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def format_signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; a dash for NaN."""
    return UNDEFINED if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_interval(estimate: Estimate, write: Callable[[float], str] = format_number) -> str:
    """The interval of a metric, each end as `write` gives it; a dash where there is none."""
    return UNDEFINED if math.isnan(estimate.low) else f"{write(estimate.low)} to {write(estimate.high)}"


def _format_points(estimate: Estimate) -> tuple[str, str]:
    """A difference in points, and its interval."""
    value, low, high = (format_signed(100 * part, 1) for part in (estimate.value, estimate.low, estimate.high))
    return value, f"({low} to {high})"


def summarize_task(evaluation: TaskEvaluation) -> str:
    """The model against a baseline without any image."""
    metrics, baseline = evaluation.metrics, evaluation.baseline
    if evaluation.kind == "regression":
        error, mean = metrics["mae"].value, baseline["mae"].value
        return f"The mean absolute error is {error:.4f}; always predicting the mean has {mean:.4f}."
    name = "accuracy" if "accuracy" in metrics else "exact_match"
    value, majority = metrics[name], baseline[name].value
    verdict = "better than" if value.low > majority else "not clearly better than"
    if math.isnan(value.low):
        verdict = f"it cannot be said ({value.reason}) whether that is better than"
    return (
        f"{METRIC_NAMES[name].capitalize()} is {format_percent(value.value)}: {verdict} always predicting the most "
        f"common class, which reaches {format_percent(majority)}."
    )


def summarize_gain_over_probe(gain: GainOverProbe) -> str:
    """What the run gained over a linear head, and its cost."""
    name, difference = METRIC_NAMES[gain.metric], gain.differences[gain.metric]
    points, method = 100 * difference.value, gain.method.capitalize()
    signed, span = _format_points(difference)
    if math.isnan(difference.low):
        changed = f"{method} changed {name} by {signed} points against a linear head"
        return f"{changed}; whether that is more than chance cannot be said: {difference.reason}."
    text = {
        True: f"Yes: {method} gained {points:.1f} points of {name} over a linear head {span}.",
        False: f"No: {method} lost {-points:.1f} points of {name} against a linear head {span}.",
        None: f"Not clearly: {method} changed {name} by {signed} points {span}.",
    }[difference.better]
    if gain.unchanged:
        text = f"{method} changed nothing: no epoch beat the linear head that it started from, which was kept."
    if gain.minutes:
        text += f" It took {gain.minutes:.1f} minutes"
        text += f" and trained {gain.parameters:,} parameters" if gain.parameters else ""
        text += f": {gain.minutes_per_point:.1f} minutes" if gain.minutes_per_point else ""
        if gain.minutes_per_point and gain.parameters:
            text += f" and {gain.parameters / points:,.0f} parameters"
        text += " per point." if gain.minutes_per_point else "."
    return text


def summarize_learning_curve(curve: LearningCurveResult) -> str:
    """Whether more images would help."""
    step = curve.last_step
    if step is None or math.isnan(step.low) or len(curve.images) < 2:
        reason = step.reason if step is not None and step.reason else "there are too few images"
        return f"That cannot be said: {reason}."
    gain, span = _format_points(step)
    text = f"The second half of the {curve.images[-1]:,} training images gained {gain} points {span}. "
    if step.better:
        return text + "More images like these would most likely help."
    if 100 * step.high < 0.5:
        return text + "More images of the same kind would hardly help; different images or fine-tuning may."
    return text + "That is no clear gain: more images may help a little."


def summarize_calibration(calibration: CalibrationResult, unseen: str) -> str:
    """How far confidence is from accuracy, and whether a scaling helps."""
    bins = calibration.reliability
    gap = float(bins.share @ (bins.confidence - bins.accuracy))
    bias = "overconfident" if gap > 0.005 else "underconfident" if gap < -0.005 else "neither over- nor underconfident"
    off = f"differ by {100 * calibration.adaptive_ece:.1f} points"
    text = f"On average, confidence and accuracy {off}; the model is {bias}. "
    if not calibration.scalings:
        return text + "To fit temperature and vector scaling, train with data.validation."
    best, scaled = min(calibration.scalings.items(), key=lambda item: item[1].log_loss)
    images = {"validation": "validation images", "training": "training images, predicted out of fold"}[unseen]
    if calibration.log_loss - scaled.log_loss < _RELEVANT_LOSS:
        return text + (
            f"Calibration on {calibration.fitted_on:,} {images} would not help; keep the probabilities as they are."
        )
    return text + (
        f"{best.capitalize()} scaling, fitted on {calibration.fitted_on:,} {images}, reduces that to "
        f"{100 * scaled.adaptive_ece:.1f} points: `tlkeras export RUN --calibrate {best}` builds it into the model."
    )


def summarize_selective_prediction(curve: SelectiveResult) -> str:
    """From which confidence on predictions need no person."""
    wanted = format_percent(curve.wanted)
    if curve.chosen is None:
        return f"No threshold reaches {wanted} accuracy on unseen images, or the run keeps no predictions of them."
    return (
        f"For {wanted} accuracy, ask a person below a confidence of {curve.chosen:.3f}. Of the held-out images, "
        f"{format_percent(curve.chosen_coverage)} are then predicted automatically, "
        f"{format_percent(curve.chosen_accuracy)} of those correctly. The threshold was chosen on other images."
    )


def summarize_prediction_sets(sets: ConformalResult) -> str:
    """Coverage and size of prediction sets."""
    return (
        f"Predicting every class of {format_percent(sets.threshold)} or more should include the true one in "
        f"{format_percent(1 - sets.alpha)} of cases; on the held-out images it does in "
        f"{format_percent(sets.coverage)}. The sets hold {sets.mean_size:.2f} classes on average; "
        f"{format_percent(sets.single)} hold one class and {format_percent(sets.empty)} none."
    )


def summarize_label_sets(sets: Sequence[LabelConformalResult]) -> str:
    """Coverage of prediction sets of single labels."""
    coverage = sum(of_label.coverage for of_label in sets) / len(sets)
    undecided = sum(of_label.undecided for of_label in sets) / len(sets)
    return (
        f"For each label, sets of yes, no or both should include the truth in {format_percent(1 - sets[0].alpha)} of "
        f"cases; on the held-out images they do in {format_percent(coverage)}, averaged over labels. "
        f"{format_percent(undecided)} of them hold both: a person has to decide."
    )


def summarize_robustness(robustness: RobustnessResult) -> str:
    """The most and the least harmful corruption at the middle strength."""
    lost = {name: robustness.clean - values[2] for name, values in robustness.corruptions.items()}
    worst, least = max(lost, key=lambda name: lost[name]), min(lost, key=lambda name: lost[name])
    return (
        f"At strength 3, {worst} costs most ({100 * lost[worst]:.0f} points of {format_percent(robustness.clean)}) "
        f"and {least} least ({100 * lost[least]:.0f} points)."
    )


def summarize_attribution(attribution: AttributionSanity | None) -> str:
    """What attribution maps show, and whether they passed the sanity check."""
    text = "Wrong predictions, those of the largest log loss first."
    if attribution is None:
        return text
    names = {"grad_cam": f"Grad-CAM at {attribution.layer}", "grad_cam++": f"Grad-CAM++ at {attribution.layer}"}
    name = names.get(attribution.method, "occlusion: where a grey square costs most")
    correlation = abs(attribution.sanity[-1][1])
    check = (
        "Sanity check passed: maps of a randomized network look different"
        if correlation < 0.5
        else "Read them with care: maps of a randomized network look much the same"
    )
    return f"{text} Bright areas drove the prediction ({name}). {check} (rank correlation {correlation:.2f})."
