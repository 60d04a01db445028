"""Errors of a model: confused classes, images of the largest losses, suspicious labels, similar training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tlkeras.data.quality.label_issues import find_label_issues
from tlkeras.plotting.notebook import render_table
from tlkeras.results import Result, make_frame
from tlkeras.runs.predictions import Predictions

if TYPE_CHECKING:
    import pandas

MOST_CLASSES = 100
_ORDERED_FROM = 20


@dataclass(frozen=True)
class ConfusionMatrix(Result):
    """Weight of each pair of true class (rows) and predicted class (columns), of the classes with most mistakes."""

    classes: list[str]
    counts: np.ndarray  # float [k, k]
    left_out: int  # classes that are not shown

    def to_frame(self) -> pandas.DataFrame:
        """A row per true class and a column per predicted one; MissingExtraError without pandas."""
        return make_frame([dict(zip(self.classes, row, strict=True)) for row in self.counts], self.classes)

    def _repr_html_(self) -> str:
        counts = self.counts.astype(int) if (self.counts == np.rint(self.counts)).all() else self.counts
        rows = [(name, *row) for name, row in zip(self.classes, counts.tolist(), strict=True)]
        return render_table(("true, and predicted as", *self.classes), rows)


@dataclass(frozen=True)
class ConfusionPair(Result):
    """A class that is taken for another: their names, the weight of such images, and its fraction of the class."""

    label: str
    prediction: str
    images: float
    share: float


@dataclass(frozen=True)
class LabelMistakes(Result):
    """Weight of the images on which a label was found rightly, missed, and found wrongly."""

    label: str
    found: float
    missed: float
    false: float


@dataclass(frozen=True)
class RegressionError(Result):
    """An image with its true and its predicted number, as text."""

    key: str
    label: str
    prediction: str


@dataclass(frozen=True)
class SimilarImage(Result):
    """A training image, its label, and the cosine similarity of its features."""

    key: str
    label: str
    cosine: float


@dataclass(frozen=True)
class TopLoss(Result):
    """A wrong prediction."""

    key: str
    label: str
    prediction: str
    class_index: int  # the class or label that the mistake is about: the one predicted wrongly, else the one missed
    probability: float  # of that class
    label_probability: float | None  # mean of the true classes; None where there are none
    loss: float  # log loss
    nearest: Sequence[SimilarImage] = ()  # the most similar training images


@dataclass(frozen=True)
class LabelIssueRow(Result):
    """An image whose label looks wrong, with the suggested one; `score` is the difference of their probabilities."""

    key: str
    label: str
    suggested: str
    score: float


def count_confusions(predictions: Predictions) -> np.ndarray:
    """Weight of each pair of true and predicted class, float [k, k]."""
    classes = predictions.probabilities.shape[1]
    found = np.zeros((classes, classes))
    np.add.at(found, (predictions.targets, predictions.probabilities.argmax(axis=1)), predictions.weights)
    return found


def confusion_matrix(predictions: Predictions) -> ConfusionMatrix:
    """Confusions of the classes that `order_classes` chooses, in its order."""
    confusions, names = count_confusions(predictions), predictions.task.class_names
    order = order_classes(confusions)
    chosen = [names[index] for index in order.tolist()]
    return ConfusionMatrix(chosen, confusions[np.ix_(order, order)], len(confusions) - len(order))


def order_classes(confusions: np.ndarray) -> np.ndarray:
    """Order in which to show classes, int64 [at most 100].

    Few classes keep their order. Of more, confused ones become neighbours (average linkage on how rarely they are
    confused), and of more than `MOST_CLASSES` only those with most mistakes are left.
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


def most_confused(predictions: Predictions, most: int = 12) -> list[ConfusionPair]:
    """Most frequent pairs of a true class and the class predicted instead.

    Of a multi-label task: of a label that was missed and one that was found wrongly on the same image.
    """
    if not predictions.task.is_multilabel:
        counts = count_confusions(predictions)
        totals = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
    else:
        truth, predicted, weights = _decisions(predictions)
        counts = ((truth & ~predicted) * weights[:, None]).T @ (~truth & predicted)
        totals = weights @ truth
    names = predictions.task.class_names
    flat = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, counts.shape) for place in flat.tolist()]
    return [
        ConfusionPair(names[a], names[b], float(counts[a, b]), float(counts[a, b] / totals[a]))
        for a, b in pairs
        if counts[a, b] > 0
    ]


def count_label_mistakes(predictions: Predictions) -> list[LabelMistakes]:
    """Mistakes by label of a multi-label task, `MOST_CLASSES` labels at most, those with most mistakes first."""
    truth, predicted, weights = _decisions(predictions)
    found, missed, false = (weights @ of for of in (truth & predicted, truth & ~predicted, ~truth & predicted))
    order = np.argsort(-(missed + false), kind="stable")[:MOST_CLASSES]
    names = predictions.task.class_names
    return [LabelMistakes(names[i], float(found[i]), float(missed[i]), float(false[i])) for i in order.tolist()]


def largest_errors(predictions: Predictions, most: int) -> list[RegressionError]:
    """Images of a regression task whose predicted number is farthest off."""
    errors = np.abs(predictions.probabilities[:, 0] - predictions.targets)
    order = np.argsort(-errors, kind="stable")[:most]
    labels = predictions.task.format_targets(predictions.targets[order])
    predicted = predictions.task.format(predictions.probabilities[order])
    return list(map(RegressionError, predictions.keys[order].tolist(), labels, predicted))


def log_losses(predictions: Predictions) -> np.ndarray:
    """Log loss of each image, float64 [n]; the mean over the labels of a multi-label task."""
    p = np.asarray(predictions.probabilities, np.float64)
    if not predictions.task.is_multilabel:
        return -np.log(np.clip(p[np.arange(len(p)), predictions.targets], 1e-15, 1))
    members = predictions.task.members(predictions.targets)
    return -np.log(np.clip(np.where(members, p, 1 - p), 1e-15, 1)).mean(axis=1)


def top_losses(predictions: Predictions, most: int = 24) -> list[TopLoss]:
    """Wrong predictions of the largest log loss, worst first."""
    losses = log_losses(predictions)
    truth, predicted, weights = _decisions(predictions)
    wrong = np.flatnonzero((truth != predicted).any(axis=1) & (weights > 0))
    rows = wrong[np.argsort(-losses[wrong], kind="stable")][:most]
    return [_make_top_loss(predictions, row, truth[row], predicted[row], float(losses[row])) for row in rows.tolist()]


def _make_top_loss(
    predictions: Predictions, row: int, truth: np.ndarray, predicted: np.ndarray, loss: float
) -> TopLoss:
    task, p = predictions.task, predictions.probabilities[row]
    (label,), (prediction,) = task.format(truth[None]), task.format(predicted[None])
    wrong = truth != predicted
    false = wrong & predicted
    class_index = int(np.argmax(np.where(false if false.any() else wrong, p, -1)))
    label_probability = float(p[truth].mean()) if truth.any() else None
    key = str(predictions.keys[row])
    return TopLoss(key, label, prediction, class_index, float(p[class_index]), label_probability, loss)


def label_issues(predictions: Predictions, most: int = 24) -> list[LabelIssueRow]:
    """Images, `most` of them at most, whose label looks wrong, most likely first; each of several labels on its own.

    Predictions should be those of a model that was not fitted on these images.
    """
    found = [
        LabelIssueRow(str(predictions.keys[issue.row]), words[truth[issue.row]], words[issue.suggested], issue.score)
        for p, truth, words in _list_choices(predictions)
        for issue in find_label_issues(p, truth, predictions.weights)
    ]
    return sorted(found, key=lambda row: -row.score)[:most]


def _list_choices(predictions: Predictions) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[str]]]:
    """Probabilities [n, k], targets [n] and names of the classes, or of "no" and "yes" of each of several labels."""
    p, names = np.asarray(predictions.probabilities, np.float64), predictions.task.class_names
    if not predictions.task.is_multilabel:
        yield p, predictions.targets, names
        return
    for yes, truth, name in zip(p.T, predictions.targets.T, names, strict=True):
        yield np.stack([1 - yes, yes], axis=1), truth.astype(np.int64), (f"not {name}", name)


def find_nearest(features: np.ndarray, references: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the most similar references of each row, int64 [n, count or m], and their cosines, float.

    Features are float [n, d], references float [m, d].
    """
    cosines = _normalize(features) @ _normalize(references).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, len(references))]
    return nearest, np.take_along_axis(cosines, nearest, axis=1)


def _decisions(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted members, bool [n, k] each, and weights, float64 [n]."""
    task, weights = predictions.task, predictions.weights.astype(np.float64)
    return task.members(predictions.targets), task.decide(predictions.probabilities), weights


def _normalize(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
