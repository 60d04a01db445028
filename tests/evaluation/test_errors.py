"""Mistakes worked out by hand."""

import numpy as np
import pytest

from tlkeras.data.tasks import Task, make_task
from tlkeras.evaluation.errors import (
    count_confusions,
    count_label_mistakes,
    find_nearest,
    label_issues,
    most_confused,
    order_classes,
    top_losses,
)
from tlkeras.evaluation.learning_curve import _draw
from tlkeras.evaluation.other_data import CORRUPTIONS
from tlkeras.runs.predictions import Predictions


def prediction(task, targets, probabilities, weights=None):
    p = np.asarray(probabilities, float)
    weights = np.ones(len(p)) if weights is None else np.asarray(weights, float)
    keys = np.array([f"{row}.png" for row in range(len(p))])
    return Predictions(task, keys, np.asarray(targets), p, weights, np.ones(p.shape[1]), {})


CATS = Task("label", ("cat", "dog", "fox"))
PREDICTED = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.7, 0.1], [0.01, 0.09, 0.9]]


def test_multilabel_mistakes_by_hand():
    task = make_task("label", ("cat", "dog", "fox"), "|")
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], np.int8)
    predicted = [[0.9, 0.1, 0.8], [0.2, 0.7, 0.1], [0.1, 0.1, 0.9]]  # dog for fox; cat for dog; right
    predictions = prediction(task, targets, predicted, [1, 2, 4])
    rows = {row.label: (row.found, row.missed, row.false) for row in count_label_mistakes(predictions)}
    assert rows == {"cat": (1, 2, 0), "dog": (0, 1, 2), "fox": (4, 0, 1)}
    assert count_label_mistakes(predictions)[0].label == "dog"
    pairs = [(row.label, row.prediction, row.images) for row in most_confused(predictions)]
    assert pairs == [("cat", "dog", 2.0), ("dog", "fox", 1.0)]
    assert most_confused(predictions)[0].share == pytest.approx(2 / 3)


def test_confusions_and_losses_by_hand():
    predictions = prediction(CATS, [0, 1, 0, 1], PREDICTED, [1, 1, 2, 1])
    np.testing.assert_array_equal(count_confusions(predictions), [[1, 2, 0], [0, 0, 2], [0, 0, 0]])
    first, second = most_confused(predictions)
    assert (first.label, first.prediction, first.images) == ("cat", "dog", 2)
    assert first.share == pytest.approx(2 / 3) and second.share == 1
    losses = top_losses(predictions)
    assert [loss.key for loss in losses] == ["3.png", "2.png", "1.png"]
    assert losses[0].loss == pytest.approx(-np.log(0.09))
    assert (losses[0].prediction, losses[0].probability, losses[0].label_probability) == ("fox", 0.9, 0.09)
    assert top_losses(predictions, most=1) == losses[:1]


def test_losses_of_labels_name_the_wrong_label():
    task = make_task("tags", ["red", "round"], "|")
    predictions = prediction(task, np.array([[1, 0], [1, 1]], np.int8), [[0.9, 0.8], [0.95, 0.2]])
    first, second = top_losses(predictions)
    assert (first.prediction, first.label, first.class_index) == ("red|round", "red", 1)
    assert (second.prediction, second.label, second.class_index) == ("red", "red|round", 1)
    assert first.loss == pytest.approx(-np.log([0.9, 0.2]).mean())


def test_confused_classes_are_neighbours():
    confusions = np.diag(np.full(40, 10.0))
    confusions[3, 30] = confusions[30, 3] = 8
    order = order_classes(confusions).tolist()
    assert sorted(order) == list(range(40))
    assert abs(order.index(3) - order.index(30)) == 1
    assert order_classes(confusions[:5, :5]).tolist() == [0, 1, 2, 3, 4]


def test_of_a_thousand_classes_the_worst_are_shown():
    confusions = np.eye(1000)
    confusions[900:, 5] = 1
    assert set(order_classes(confusions).tolist()) == {5, *range(900, 999)}
    assert len(order_classes(confusions)) == 100


def test_wrong_labels_are_found():
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 30)
    p = np.eye(3)[targets] * 0.9 + random.dirichlet(np.ones(3), 90) * 0.1
    labels = targets.copy()
    labels[4] = 2
    (issue,) = label_issues(prediction(CATS, labels, p))
    assert (issue.key, issue.label, issue.suggested) == ("4.png", "fox", "cat")
    task = make_task("tags", ["red", "round"], "|")
    labels = np.stack([np.arange(90) % 2, np.arange(90) % 3 == 0], 1).astype(np.int8)
    predicted = labels * 0.9 + 0.05
    labels[7, 0] = 0
    (issue,) = label_issues(prediction(task, labels, predicted))
    assert (issue.label, issue.suggested) == ("not red", "red")


def test_nearest_by_direction():
    places, cosines = find_nearest(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [5.0, 5.0], [9.0, 1.0]]), 2)
    assert places.tolist() == [[2, 1]]
    np.testing.assert_allclose(cosines, [[9 / np.sqrt(82), 1 / np.sqrt(2)]])


def test_draws_are_nested_and_keep_shares():
    y = np.repeat([0, 1], [160, 40])
    alone = np.arange(200).astype(str)
    small, large = _draw(y, alone, 0.2, 1), _draw(y, alone, 0.5, 1)
    assert set(small) <= set(large) and len(large) == 100
    assert (y[small] == 1).mean() == pytest.approx(0.2, abs=0.03)
    of_few = _draw(y, np.char.add("group ", (np.arange(200) % 10).astype(str)), 0.5, 1)
    assert len(of_few) == 100 and len(set(of_few % 10)) == 5
    assert len(_draw(y, np.full(200, "one"), 0.5, 1)) == 200


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_get_worse_and_keep_shape(name):
    from skimage.data import astronaut

    image = astronaut()[::4, ::4]
    distances = []
    for strength in range(1, 6):
        worse = CORRUPTIONS[name](image, strength, np.random.default_rng(0))
        assert worse.shape == image.shape and worse.dtype == np.uint8
        distances.append(np.abs(worse.astype(float) - image).mean())
    assert distances == sorted(distances) and distances[0] > 1
