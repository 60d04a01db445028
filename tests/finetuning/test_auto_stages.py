"""The rule that suggests stages: each value by hand, a reason for each, and stages for every size of data."""

from __future__ import annotations

import itertools

import pytest

from tlkeras.errors import RecipeError
from tlkeras.finetuning.auto_stages import choose_stages
from tlkeras.finetuning.schedule import Schedule, Stage

FACTS = {"images": 2000, "classes": 2, "blocks": 17, "batch_size": 32, "validated": True, "probed": True}


def suggest(**changes):
    return choose_stages(**{**FACTS, **changes})


def test_thousands_of_images():
    expected = Stage("top", 8, 3e-4, epochs=12, backbone_lr_multiplier=1.0, warmup=1.0, decay="cosine")
    # 63 steps an epoch: 11.9 make 750
    assert suggest().stages == (expected,) and suggest().keep == "best"


def test_few_images_train_little_for_long():
    (top,) = suggest(images=200).stages
    assert (top.unfreeze, top.epochs) == (2, 50)
    (top,) = suggest(images=200, validated=False).stages
    assert top.epochs == 20
    assert suggest(images=1900, classes=200).stages[0].unfreeze == 2, "fewer than 10 of each class"


def test_many_images_end_with_all_blocks():
    top, last = suggest(images=20_000).stages
    assert (top.unfreeze, top.epochs, top.layer_decay, top.learning_rate) == (8, 3, 1.0, 3e-4)
    assert (last.unfreeze, last.epochs, last.layer_decay, last.learning_rate) == ("all", 8, 0.75, 1e-4)
    assert [stage.batch_norm for stage in (top, last)] == ["train", "train"]
    assert [stage.epochs for stage in suggest(images=200_000).stages] == [3, 3]


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"), [(4999, 64, "frozen"), (5000, 31, "frozen"), (5000, 32, "train")]
)
def test_batch_norm_trains_where_its_statistics_are_good(images, batch_size, expected):
    assert suggest(images=images, batch_size=batch_size).stages[-1].batch_norm == expected


def test_a_head_without_probe_is_fitted_first():
    head, top = suggest(probed=False).stages
    assert head == Stage("head", 0, 1e-3, epochs=8)  # 63 steps an epoch: 7.9 make 500
    assert (top,) == suggest().stages
    assert suggest().decisions[0][:2] == ("head", "probe")


@pytest.mark.parametrize(
    ("images", "blocks", "probed", "validated"),
    list(itertools.product([1, 499, 5000, 19_999, 20_000, 1_000_000], [1, 2, 3, 17], [True, False], [True, False])),
)
def test_every_value_has_a_reason(images, blocks, probed, validated):
    suggestion = suggest(images=images, blocks=blocks, probed=probed, validated=validated)
    schedule = Schedule(suggestion.stages, minimise=True, keep=suggestion.keep)
    chosen = {one.key: one.value for one in suggestion.decisions}
    assert len(chosen) == len(suggestion.decisions) and chosen["keep"] == ("best" if validated else "last")
    for stage in schedule.stages:
        assert stage.count_blocks(blocks) <= blocks
        default = Stage(stage.name, 0, 1.0, epochs=1)
        for field in Stage.model_fields:
            value = getattr(stage, field)
            if field != "name" and value != getattr(default, field):
                assert chosen[f"{stage.name}.{field}"] == value
    assert all(one.reason and len(one.reason) < 100 for one in suggestion.decisions)


def test_a_small_backbone_trains_whole_only_once():
    assert [stage.unfreeze for stage in suggest(images=50_000, blocks=1).stages] == ["all"]


@pytest.mark.parametrize("key", ["images", "classes", "blocks", "batch_size"])
def test_counts_must_be_positive(key):
    with pytest.raises(RecipeError, match=f"{key} is below 1. Received: 0."):
        suggest(**{key: 0})
