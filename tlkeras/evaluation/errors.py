"""What goes wrong: which classes are taken for each other, on which images, and what these resemble."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tlkeras.data.quality.label_issues import find_label_issues
from tlkeras.runs.predictions import Predictions

MOST_CLASSES = 100
_ORDERED_FROM = 20


def count_confusions(predictions: Predictions) -> np.ndarray:
    """Return the weight of each pair of true class and answer, float [k, k]."""
    classes = predictions.probabilities.shape[1]
    found = np.zeros((classes, classes))
    np.add.at(found, (predictions.targets, predictions.probabilities.argmax(axis=1)), predictions.weights)
    return found


def order_classes(confusions: np.ndarray) -> np.ndarray:
    """Return which classes a person should look at, int64 [at most 100], and in which order.

    Few classes keep theirs. Of more, those that are confused stand side by side (average linkage on how rarely), and
    of more than `MOST_CLASSES` only those with most mistakes are left.
    """
    mistakes = confusions - np.diag(np.diag(confusions))
    wrong = mistakes.sum(axis=0) + mistakes.sum(axis=1)
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    if len(chosen) <= _ORDERED_FROM:
        return chosen
    both = (mistakes + mistakes.T)[np.ix_(chosen, chosen)]
    sizes = np.maximum(confusions.sum(axis=1)[chosen], 1e-9)
    distances = 1 / (1 + both / np.sqrt(np.outer(sizes, sizes)) * 10)
    np.fill_diagonal(distances, 0)
    return chosen[leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))]


def most_confused(predictions: Predictions, most: int = 12) -> list[dict[str, Any]]:
    """Return the pairs of true class and other answer that happen most, as label, answer, images and share."""
    counts, names = count_confusions(predictions), predictions.task.class_names
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    flat = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, counts.shape) for place in flat.tolist()]
    return [
        {
            "label": names[a],
            "prediction": names[b],
            "images": float(counts[a, b]),
            "share": float(counts[a, b] / totals[a]),
        }
        for a, b in pairs
        if counts[a, b] > 0
    ]


def count_label_mistakes(predictions: Predictions) -> list[dict[str, Any]]:
    """Return for each label the weight of images where it was found rightly, missed, and found wrongly.

    Those with most mistakes come first, `MOST_CLASSES` at most; of images that can have several labels.
    """
    truth, predicted = predictions.task.members(predictions.targets), predictions.task.decide(predictions.probabilities)
    weights = predictions.weights.astype(np.float64)
    counts = {"found": truth & predicted, "missed": truth & ~predicted, "false": ~truth & predicted}
    columns = {name: weights @ members for name, members in counts.items()}
    order = np.argsort(-(columns["missed"] + columns["false"]), kind="stable")[:MOST_CLASSES]
    names = predictions.task.class_names
    return [
        {"label": names[place], **{name: float(column[place]) for name, column in columns.items()}}
        for place in order.tolist()
    ]


def most_confused_labels(predictions: Predictions, most: int = 12) -> list[dict[str, Any]]:
    """Return pairs of a label that was missed where another was found wrongly, as `list_confused` does."""
    truth, predicted = predictions.task.members(predictions.targets), predictions.task.decide(predictions.probabilities)
    weights, names = predictions.weights.astype(np.float64), predictions.task.class_names
    counts = ((truth & ~predicted) * weights[:, None]).T @ (~truth & predicted)
    totals = weights @ truth
    flat = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, counts.shape) for place in flat.tolist()]
    return [
        {
            "label": names[a],
            "prediction": names[b],
            "images": float(counts[a, b]),
            "share": float(counts[a, b] / totals[a]),
        }
        for a, b in pairs
        if counts[a, b] > 0
    ]


def list_errors(predictions: Predictions, most: int) -> list[dict[str, Any]]:
    """Return the images whose number is farthest off: `key`, `label` (the number) and `answer`."""
    errors = np.abs(predictions.probabilities[:, 0] - predictions.targets)
    order = np.argsort(-errors, kind="stable")[:most]
    labels = predictions.task.format_targets(predictions.targets[order])
    predicted = predictions.task.format(predictions.probabilities[order])
    rows = zip(predictions.keys[order].tolist(), labels, predicted, strict=True)
    return [{"key": key, "label": label, "prediction": prediction} for key, label, prediction in rows]


def measure_losses(predictions: Predictions) -> np.ndarray:
    """Return the log loss of each image, float [n]; the mean over labels where it can have several."""
    members = predictions.task.members(predictions.targets)
    p = np.asarray(predictions.probabilities, np.float64)
    if predictions.targets.ndim == 1:
        return -np.log(np.clip(p[np.arange(len(p)), predictions.targets], 1e-15, 1))
    return -np.log(np.clip(np.where(members, p, 1 - p), 1e-15, 1)).mean(axis=1)


def top_losses(predictions: Predictions, most: int = 24) -> list[dict[str, Any]]:
    """Return the images that the model was most wrong about, mistakes only, worst first."""
    task, losses = predictions.task, measure_losses(predictions)
    truth, predicted = task.members(predictions.targets), task.decide(predictions.probabilities)
    wrong = np.flatnonzero((truth != predicted).any(axis=1) & (predictions.weights > 0))
    rows = wrong[np.argsort(-losses[wrong], kind="stable")][:most]
    return [_describe(predictions, row, truth, predicted, losses) for row in rows.tolist()]


def _describe(
    predictions: Predictions, row: int, truth: np.ndarray, predicted: np.ndarray, losses: np.ndarray
) -> dict[str, Any]:
    task, p = predictions.task, predictions.probabilities[row]
    (label,), (prediction,) = task.format(truth[[row]]), task.format(predicted[[row]])
    wrong = truth[row] != predicted[row]
    looked_at = int(np.argmax(np.where(wrong & predicted[row] if (wrong & predicted[row]).any() else wrong, p, -1)))
    return {
        "key": str(predictions.keys[row]),
        "label": label,
        "prediction": prediction,
        "class": looked_at,
        "probability": float(p[looked_at]),
        "of_label": float(p[truth[row]].mean()) if truth[row].any() else None,
        "loss": float(losses[row]),
    }


def label_issues(predictions: Predictions, most: int = 24) -> list[dict[str, Any]]:
    """Return the images whose label looks wrong, of each label where an image can have several; most likely first.

    Args:
        answers: By a model that was not fitted on these images.
        most: How many at most.
    """
    names = predictions.task.class_names
    p = np.asarray(predictions.probabilities, np.float64)
    if predictions.targets.ndim == 1:
        found = [
            (suspect.score, suspect.row, names[predictions.targets[suspect.row]], names[suspect.suggested])
            for suspect in find_label_issues(p, predictions.targets, predictions.weights)
        ]
    else:
        found = []
        for index, name in enumerate(names):
            pair = np.stack([1 - p[:, index], p[:, index]], axis=1)
            words = (f"not {name}", name)
            found += [
                (suspect.score, suspect.row, words[1 - suspect.suggested], words[suspect.suggested])
                for suspect in find_label_issues(
                    pair, predictions.targets[:, index].astype(np.int64), predictions.weights
                )
            ]
    return [
        {"key": str(predictions.keys[row]), "label": label, "suggested": suggested, "score": float(score)}
        for score, row, label, suggested in sorted(found, key=lambda one: -one[0])[:most]
    ]


def find_nearest(features: np.ndarray, references: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the most similar references of each row, int64 [n, count], and the cosines, float.

    Args:
        features: float [n, d].
        references: float [m, d].
        count: How many; fewer where there are fewer references.
    """
    units = [_normalize(features), _normalize(references)]
    cosines = units[0] @ units[1].T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, len(references))]
    return nearest, np.take_along_axis(cosines, nearest, axis=1)


def _normalize(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
