"""Multi-label metrics against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tlkeras.errors import DataError
from tlkeras.evaluation.metrics import bootstrap_metrics, compute_multilabel, compute_ranking

TRUTH = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.int8)
PREDICTED = np.array([[0.9, 0.2], [0.4, 0.8], [0.6, 0.7], [0.1, 0.5]])


def test_by_hand():
    values = {key: value[0] for key, value in compute_multilabel(TRUTH, PREDICTED, np.ones((1, 4))).items()}
    # predicted: 10 01 11 01 -> hits 1 of (2 true + 2 predicted), and 2 of (2 true + 3 predicted)
    assert values["exact_match"] == pytest.approx(1 / 4)
    assert values["hamming_loss"] == pytest.approx(3 / 8)
    assert values[0, "f1"] == pytest.approx(2 * 1 / 4)
    assert values[1, "f1"] == pytest.approx(2 * 2 / 5)
    assert values["macro_f1"] == pytest.approx((1 / 2 + 4 / 5) / 2)
    assert values["micro_f1"] == pytest.approx(2 * 3 / 9)
    # label 0: .9 beats .6 and .1, .4 beats .1 only; label 1: all pairs right
    assert values[0, "roc_auc"] == pytest.approx(3 / 4)
    assert values[1, "roc_auc"] == pytest.approx(1)
    assert values["roc_auc"] == pytest.approx(7 / 8)
    # label 0: precision 1 at .9 and 2/3 at .4
    assert values[0, "average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["mean_average_precision"] == pytest.approx((5 / 6 + 1) / 2)
    # all questions by score: .9+ .8+ .7+ .6- .5- .4+ .2- .1-
    assert values["micro_average_precision"] == pytest.approx((1 + 1 + 1 + 4 / 6) / 4)
    assert values["micro_roc_auc"] == pytest.approx((4 + 4 + 4 + 2) / 16)
    right = [0.9, 0.8, 0.4, 0.8, 0.4, 0.7, 0.9, 0.5]
    assert values["log_loss"] == pytest.approx(-np.log(right).mean())


def test_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    truth, weights = (random.random((300, 4)) < [0.1, 0.3, 0.5, 0.8]).astype(int), random.random(300)
    predicted = np.round(np.clip(truth * 0.3 + random.random((300, 4)) * 0.7, 0, 1), 2)  # with ties
    predictions = (predicted >= 0.5).astype(int)
    given = {"sample_weight": weights}
    expected = {
        "exact_match": reference.accuracy_score(truth, predictions, **given),
        "hamming_loss": reference.hamming_loss(truth, predictions, **given),
        **{f"{way}_f1": reference.f1_score(truth, predictions, average=way, **given) for way in ("macro", "micro")},
        "roc_auc": reference.roc_auc_score(truth, predicted, **given),
        "micro_roc_auc": reference.roc_auc_score(truth, predicted, average="micro", **given),
        "mean_average_precision": reference.average_precision_score(truth, predicted, **given),
        "micro_average_precision": reference.average_precision_score(truth, predicted, average="micro", **given),
        (2, "f1"): reference.f1_score(truth[:, 2], predictions[:, 2], **given),
        (3, "average_precision"): reference.average_precision_score(truth[:, 3], predicted[:, 3], **given),
    }
    figures = bootstrap_metrics(truth, predicted, weights, resamples=50)
    for name, value in expected.items():
        assert figures[name].value == pytest.approx(value), name
        assert figures[name].low <= value <= figures[name].high


def test_weights_are_repetitions():
    random = np.random.default_rng(0)
    truth, predicted, counts = random.integers(0, 2, (40, 3)), random.random((40, 3)), random.integers(1, 4, 40)
    weighted = compute_multilabel(truth, predicted, counts[None].astype(float))
    repeated = compute_multilabel(
        np.repeat(truth, counts, 0), np.repeat(predicted, counts, 0), np.ones((1, counts.sum()))
    )
    for name, value in weighted.items():
        assert value[0] == pytest.approx(repeated[name][0]), name


def test_a_label_that_nobody_has_is_left_out():
    truth = TRUTH * [1, 0]
    values = compute_multilabel(truth, PREDICTED * [1, 0.1], np.ones((1, 4)))
    for name in ("roc_auc", "average_precision", "f1"):
        assert np.isnan(values[1, name][0])
    assert values["macro_f1"][0] == values[0, "f1"][0] and values["roc_auc"][0] == values[0, "roc_auc"][0]
    assert compute_multilabel(truth, PREDICTED, np.ones((1, 4)))[1, "f1"][0] == 0  # predicted all the same


def test_ties_are_one_threshold():
    positive, scores = np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.2, 0.2])
    assert np.ravel(compute_ranking(positive, scores, np.ones((1, 4)))) == pytest.approx([1 / 2, 1 / 2])


def test_without_negatives_or_positives_there_is_no_ranking():
    scores, weights = np.array([0.1, 0.2, 0.3]), np.array([[0.1, 0.2, 0.0]])  # whose sums are not exact
    area, precision = compute_ranking(np.array([1, 1, 0]), scores, weights)
    assert np.isnan(area[0]) and precision[0] == pytest.approx(1)
    assert np.isnan(np.ravel(compute_ranking(np.array([0, 0, 1]), scores, weights))).all()


def test_nan_is_refused():
    with pytest.raises(DataError, match="not finite. Received: 1 rows with NaN"):
        bootstrap_metrics(TRUTH, np.where(np.arange(8).reshape(4, 2) == 3, np.nan, PREDICTED))
