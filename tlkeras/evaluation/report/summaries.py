"""What a report says in sentences, and how it writes numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlkeras.evaluation.metric_names import METRIC_NAMES

_NOTHING = "-"
_WORTHWHILE = 0.001  # of log loss: less is noise


def write_number(value: float | None) -> str:
    """Return a number with four decimals; a dash where there is none."""
    return _NOTHING if value is None else f"{value:.4f}"


def write_percent(value: float | None) -> str:
    """Return a share as per cent with one decimal."""
    return _NOTHING if value is None else f"{100 * value:.1f} %"


def write_signed(value: float | None) -> str:
    """Return a difference with its sign."""
    return _NOTHING if value is None else f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _sign(points: float) -> str:
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def write_count(value: int | None) -> str:
    """Return a whole number with separators."""
    return _NOTHING if value is None else f"{value:,}"


def write_amount(value: float) -> str:
    """Return a count, or a sum of weights with two decimals."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def format_verdict(better: bool | None) -> str:
    """Return a verdict on a difference."""
    return {True: "better", False: "worse", None: "no clear difference"}[better]


def summarize_run(figures: Mapping[str, Any]) -> list[str]:
    """Say how the model does against knowing nothing."""
    if figures["kind"] == "regression":
        value, mean = (figures[of]["mae"]["value"] for of in ("metrics", "baseline"))
        return [
            f"It is {write_number(value)} off on average, where always saying the mean is {write_number(mean)} off."
        ]
    name = "accuracy" if "accuracy" in figures["metrics"] else "exact_match"
    value, majority = figures["metrics"][name], figures["baseline"][name]["value"]
    verdict = "better than" if value["low"] > majority else "not clearly better than"
    text = (
        f"{METRIC_NAMES[name].capitalize()} is {write_percent(value['value'])}: {verdict} always answering what is "
        f"most common, which reaches {write_percent(majority)}."
    )
    return [text]


def summarize_gain_over_probe(worth: Mapping[str, Any]) -> str:
    """Say whether what was done beyond a linear head was worth it, and what it took."""
    name = next(of for of in ("accuracy", "exact_match", "r2") if of in worth["differences"])
    parts = worth["differences"][name]
    points = 100 * parts["value"]
    what = worth["what"].capitalize()
    if parts["low"] is None:
        return f"{what} cannot be judged on so few images."
    span = f"{_sign(100 * parts['low'])} to {_sign(100 * parts['high'])}"
    text = {
        True: f"Yes: {what} gained {points:.1f} points of {METRIC_NAMES[name]} over a linear head ({span}).",
        False: f"No: {what} lost {-points:.1f} points of {METRIC_NAMES[name]} against a linear head ({span}).",
        None: f"Not clearly: {what} changed {METRIC_NAMES[name]} by {_sign(points)} points ({span}).",
    }[parts["better"]]
    if worth["minutes"]:
        text += f" It took {worth['minutes']:.1f} minutes"
        text += f" and trained {worth['parameters']:,} parameters" if worth["parameters"] else ""
        text += f": {worth['minutes_per_point']:.1f} minutes" if worth["minutes_per_point"] else ""
        if worth["minutes_per_point"] and worth["parameters"]:
            text += f" and {worth['parameters'] / points:,.0f} parameters"
        text += " for each point." if worth["minutes_per_point"] else "."
    return text


def summarize_learning_curve(learning: Mapping[str, Any]) -> str:
    """Say whether more images would help."""
    step, sizes = learning["last_step"], learning["images"]
    if step is None or step["low"] is None or len(sizes) < 2:
        return "There are too few images to say."
    gain, low, high = (100 * step[part] for part in ("value", "low", "high"))
    span = f"({_sign(low)} to {_sign(high)})"
    text = f"The second half of the {sizes[-1]:,} training images gained {_sign(gain)} points {span}. "
    if step["better"]:
        return text + "More images like these would most likely help."
    if high < 0.5:
        return text + "More images of the same kind would hardly help; other images, or fine-tuning, may."
    return text + "That is no clear gain: more images may help, a little."


def summarize_calibration(calibration: Mapping[str, Any], unseen: str) -> str:
    """Say how far confidence is from the truth and what a scaling mends."""
    error = calibration["adaptive_ece"]
    sure = calibration["reliability"]
    gap = sum(s * (c - a) for s, c, a in zip(sure["share"], sure["confidence"], sure["accuracy"], strict=True))
    lean = "too sure" if gap > 0.005 else "not sure enough" if gap < -0.005 else "neither too sure nor too unsure"
    text = f"On average, confidence is {100 * error:.1f} points away from how often the model is right; it is {lean}. "
    if not calibration["scalings"]:
        return text + "To have temperature and vector scaling fitted, train with data.validation."
    best = min(calibration["scalings"], key=lambda name: calibration["scalings"][name]["log_loss"])
    found = calibration["scalings"][best]
    where = {"validation": "validation images", "training": "training images, each by heads not fitted on it"}[unseen]
    if calibration["log_loss"] - found["log_loss"] < _WORTHWHILE:
        return (
            text
            + f"Neither scaling, fitted on {calibration['fitted_on']:,} {where}, gains anything: leave it as it is."
        )
    return text + (
        f"{best.capitalize()} scaling, fitted on {calibration['fitted_on']:,} {where}, brings that to "
        f"{100 * found['adaptive_ece']:.1f} points: `tlkeras export RUN --calibrate {best}` builds it into the model."
    )


def summarize_selective_prediction(trade: Mapping[str, Any]) -> str:
    """Say from which confidence on answers need no person."""
    wanted = write_percent(trade["wanted"])
    if trade["chosen"] is None:
        return f"No threshold was chosen for {wanted} accuracy: no answers on unseen images reach it, or none are kept."
    return (
        f"To be right in {wanted} of what it answers, ask a person below a confidence of {trade['chosen']:.3f}. On the "
        f"held-out images this answers {write_percent(trade['chosen_coverage'])} of them, "
        f"{write_percent(trade['chosen_accuracy'])} rightly. The threshold was chosen on other images."
    )


def summarize_prediction_sets(sets: Mapping[str, Any]) -> str:
    """Say how prediction sets do."""
    return (
        f"Sets of all classes with a probability of {sets['threshold']:.3f} or more are meant to hold the true class "
        f"in {write_percent(1 - sets['alpha'])} of cases; on the held-out images they do in "
        f"{write_percent(sets['coverage'])}. They hold {sets['mean_size']:.2f} classes on average, a single one in "
        f"{write_percent(sets['single'])} and none in {write_percent(sets['empty'])}."
    )


def summarize_label_sets(sets: Sequence[Mapping[str, Any]]) -> str:
    """Say how prediction sets of single labels do."""
    covered, undecided = (sum(one[key] for one in sets) / len(sets) for key in ("coverage", "undecided"))
    return (
        f"For each label, sets of yes, no or both are meant to hold the truth in {write_percent(1 - sets[0]['alpha'])} "
        f"of cases; on the held-out images they do in {write_percent(covered)}, the mean over labels. "
        f"{write_percent(undecided)} of them hold both: there a person has to look."
    )


def summarize_robustness(robustness: Mapping[str, Any]) -> str:
    """Say what harms most and what least, at the middle strength."""
    lost = {name: robustness["clean"] - values[2] for name, values in robustness["corruptions"].items()}
    worst, least = max(lost, key=lambda name: lost[name]), min(lost, key=lambda name: lost[name])
    return (
        f"At strength 3, {worst} costs most ({100 * lost[worst]:.0f} points of {write_percent(robustness['clean'])}) "
        f"and {least} least ({100 * lost[least]:.0f} points)."
    )


def summarize_attribution(attribution: Mapping[str, Any] | None) -> str:
    """Say what the coloured images show and whether they passed the sanity check."""
    if attribution is None:
        return "Wrong answers, those of the largest log loss first."
    layer = attribution["layer"]
    ways = {"grad_cam": f"Grad-CAM at {layer}", "grad_cam++": f"Grad-CAM++ at {layer}"}
    name = ways.get(attribution["method"], "occlusion: where a grey square costs most")
    alike = abs(attribution["sanity"][-1][1])
    verdict = "as they should" if alike < 0.5 else "less than they should: read them with care"
    return (
        f"Wrong answers, those of the largest log loss first. Bright is what speaks for the answer ({name}). "
        f"With all weights shuffled these maps change {verdict} (rank correlation with the real ones {alike:.2f})."
    )
