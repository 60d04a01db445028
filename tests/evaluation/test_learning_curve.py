"""Learning curves: what is drawn together stays together, and what is alike is not counted twice."""

from typing import ClassVar

import numpy as np

from tlkeras.data.tasks import Task
from tlkeras.evaluation.learning_curve import SHARES, learning_curve
from tlkeras.evaluation.run_data import FeatureSplit
from tlkeras.heads.linear import LinearHead
from tlkeras.runs.predictions import Predictions

TASK = Task("label", ("day", "night"))


def draw_split(count, size, seed):
    """Features that tell the group better than the class, as images of one object do."""
    random = np.random.default_rng(seed)
    codes = np.arange(count) // size
    y = (np.arange(codes[-1] + 1) % 2)[codes]
    X = 3 * random.normal(size=(codes[-1] + 1, 20))[codes] + random.normal(size=(count, 20)) + y[:, None]
    groups = np.char.add(f"{seed}-", codes.astype(str)) if size > 1 else np.full(count, "")
    keys = np.arange(count).astype(str)
    return FeatureSplit(keys, X.astype(np.float32), {"label": y}, np.ones(count), groups)


def predict_nothing(split):
    prior = np.array([0.5, 0.5])
    slices = {"group": split.groups}
    flat = np.tile(prior, (len(split.keys), 1))
    return Predictions(TASK, split.keys, split.targets["label"], flat, split.weights, prior, slices)


class RecordingHead(LinearHead):
    fits: ClassVar[list] = []

    def fit(self, X, y, sample_weight=None, *, validation=None, groups=None):
        self.fits.append((np.array(X), groups))
        return super().fit(X, y, sample_weight, validation=validation, groups=groups)


def test_groups_are_drawn_whole_and_kept_apart_in_the_choice_of_the_strength(monkeypatch):
    monkeypatch.setattr(RecordingHead, "fits", [])
    train, held_out = draw_split(240, 6, 0), draw_split(240, 6, 1)
    curve = learning_curve(
        lambda: RecordingHead(C=1.0), train, held_out.X, predict_nothing(held_out), repeats=2, resamples=200
    )
    group_of = {row.tobytes(): group for row, group in zip(train.X, train.groups.tolist(), strict=True)}
    assert len(RecordingHead.fits) == 2 * (len(SHARES) - 1) + 1
    for X, groups in RecordingHead.fits:
        assert groups.tolist() == [group_of[row.tobytes()] for row in X]
        assert set(np.unique(groups, return_counts=True)[1].tolist()) == {6}
    assert curve.images[-1] == 240 and curve.images == sorted(curve.images)
    assert curve.last_step.low < curve.last_step.value < curve.last_step.high
    alone = predict_nothing(held_out)
    single = learning_curve(
        lambda: LinearHead(C=1.0), train, held_out.X, Predictions(**{**vars(alone), "slices": {}}), resamples=200
    ).last_step
    assert single.high - single.low < curve.last_step.high - curve.last_step.low


def test_images_without_groups_are_drawn_one_by_one(monkeypatch):
    monkeypatch.setattr(RecordingHead, "fits", [])
    train, held_out = draw_split(60, 1, 0), draw_split(60, 1, 1)
    curve = learning_curve(lambda: RecordingHead(C=1.0), train, held_out.X, predict_nothing(held_out), resamples=100)
    assert curve.images == [6, 12, 21, 30, 45, 60]
    assert all(groups is None for _, groups in RecordingHead.fits)
