"""Where a stage begins: by cost, within the budget."""

import numpy as np
import pytest

from tlkeras.backbones.blocks import Block, CutPoint
from tlkeras.finetuning.caching_plan import plan_stages
from tlkeras.finetuning.metrics import measure
from tlkeras.finetuning.network import IMAGES, POOLED
from tlkeras.finetuning.schedule import Schedule, Stage

BLOCKS = [Block(i, f"b{i}", (), CutPoint(i, f"cut{i}", None, (4, 4, 8)), 10, 1_000_000) for i in range(4)]
STAGES = (Stage("head", 0, 1e-3, epochs=2), Stage("top", 1, 1e-3, epochs=5), Stage("all", "all", 1e-3, epochs=3))


def plan(stages=STAGES, **options):
    given = {"images": 100, "views": None, "most_views": 1, "budget_bytes": 10**9} | options
    return plan_stages(Schedule(stages, minimise=True), BLOCKS, 16, **given)


def test_each_stage_begins_behind_its_last_frozen_block():
    found = plan()
    assert found.cuts == (POOLED, "cut2", IMAGES)
    assert found.kept == (POOLED, "cut2")
    assert [stage.bytes for stage in found.stages] == [32, 256, 0]


def test_without_a_cache_every_stage_begins_at_the_images():
    assert plan(budget_bytes=None).cuts == (IMAGES,) * 3


def test_what_does_not_fit_the_budget_is_not_kept():
    assert plan(budget_bytes=32 * 100 + 255 * 100).cuts == (POOLED, IMAGES, IMAGES)


@pytest.mark.parametrize("most, wanted", [(1, 1), (2, 2), (8, 5), (None, 5)])
def test_views_are_as_many_as_there_are_or_epochs_to_show_them(most, wanted):
    assert plan(most_views=most).views == wanted


def test_views_are_as_many_as_fit_the_budget():
    stages = (Stage("head", 0, 1e-3, epochs=6), Stage("top", 1, 1e-3, epochs=6))
    both = (32 + 256) * 100  # bytes of one view of all images, behind both cuts
    for budget, views in ((6 * both, 6), (6 * both - 1, 5), (3 * both, 3), (both, 1)):
        found = plan(stages, most_views=None, budget_bytes=budget)
        assert found.views == views and found.cuts == (POOLED, "cut2")
    found = plan(stages, most_views=None, budget_bytes=both - 1)  # then not all of it is kept
    assert found.views == 6 and found.cuts == (POOLED, IMAGES)


def test_measures_by_hand():
    targets = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    logits = np.log(np.array([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]]))
    found = measure(targets, logits, np.array([1.0, 1.0, 2.0]))
    assert found["val_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.5) + 2 * np.log(0.1)) / 4)
    assert found["val_accuracy"] == pytest.approx(1 / 4)
    assert found["val_roc_auc"] == pytest.approx(1 / 3)
    assert np.isnan(measure(targets[1:], logits[1:], np.ones(2))["val_roc_auc"])


def test_measures_of_several_labels_by_hand():
    targets, logits = np.array([[1, 0], [1, 1]], np.float32), np.array([[2.0, -2.0], [-1.0, 3.0]])
    found = measure(targets, logits, np.ones(2), several=True)
    assert found["val_accuracy"] == pytest.approx(3 / 4)
    expected = (2 * np.log1p(np.exp(-2)) + np.log1p(np.exp(1)) + np.log1p(np.exp(-3))) / 4
    assert found["val_loss"] == pytest.approx(expected)
