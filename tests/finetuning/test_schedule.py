"""The position of a run from hand-made histories, and that it is a pure function of them."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from tlkeras.config.schema.finetuning import parse_unfreeze
from tlkeras.errors import RecipeError, RunError
from tlkeras.finetuning.schedule import BASELINE, Schedule, Stage, StagePosition

NAN = math.nan


def fixed(name: str, epochs: int, **options) -> Stage:
    return Stage(name, options.pop("unfreeze", 1), options.pop("learning_rate", 1e-3), epochs=epochs, **options)


def plateau(name: str, patience: int = 2, **options) -> Stage:
    return Stage(name, "all", 1e-4, until="plateau", patience=patience, **options)


def walk(schedule: Schedule, values, baseline=None) -> list:
    """Return the position before each epoch, and after the last."""
    return [schedule.locate(values[:count], baseline) for count in range(len(values) + 1)]


def test_a_stage_keeps_its_values_as_they_were_written():
    stage = Stage("top", "2 blocks", 3e-4, epochs=5)
    assert (stage.unfreeze, stage.decay, stage.length, stage.decays) == ("2 blocks", None, 5, True)
    assert stage.count_blocks(3) == 2
    assert Stage(**stage.model_dump()) == stage
    assert (plateau("all").decays, plateau("all").length) == (False, 50)
    assert plateau("all", decay="cosine", max_epochs=7).decays


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (2, 2), ("2 blocks", 2), ("1 block", 1), ("12", 12), ("all", "all"), ("auto", "auto")],
)
def test_unfreeze_is_read(value, expected):
    assert parse_unfreeze(value) == expected


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("2 layers", "Did you mean '2 blocks'?"),
        ("two blocks", "Did you mean '2 blocks'?"),
        ("al", "Did you mean 'all'?"),
        ("automatic", "Did you mean 'auto'?"),
        (-1, "Valid: 2 blocks, all, auto."),
        (True, "Valid: 2 blocks, all, auto."),
        (1.5, "Did you mean '1 blocks'?"),
        (None, "Valid: 2 blocks, all, auto."),
    ],
)
def test_unfreeze_is_refused_with_the_nearest(value, hint):
    with pytest.raises(ValueError) as refusal:
        parse_unfreeze(value)
    sentence = f"expected a number of blocks, 'all' or 'auto'. Received: {value!r}. {hint}"
    assert str(refusal.value) == sentence


def test_multipliers_by_hand():
    assert fixed("head", 1, unfreeze=0).multipliers(3) == (0.0, 0.0, 0.0)
    assert fixed("top", 1, unfreeze=2, layer_decay=0.5).multipliers(4) == (0.0, 0.0, 0.05, 0.1)
    assert fixed("all", 1, unfreeze="all", backbone_lr_multiplier=1.0, layer_decay=0.5).multipliers(3) == (
        0.25,
        0.5,
        1.0,
    )
    assert fixed("auto", 1, unfreeze="auto", backbone_lr_multiplier=0.5).multipliers(2) == (0.5, 0.5)


def test_more_blocks_than_there_are():
    stage = fixed("top", 1, unfreeze=4)
    assert stage.count_blocks(4) == 4
    sentence = "Stage 'top' unfreezes more blocks than the backbone has. Received: 4 of 3. All of them is `all`."
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        stage.multipliers(3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": ""}, "name: string should have at least 1 character. Received: ''."),
        ({"unfreeze": "3 layers"}, "unfreeze: expected a number of blocks"),
        ({"unfreeze": "3 layers"}, "Did you mean '3 blocks'?"),
        ({"learning_rate": 0.0}, "learning_rate: input should be greater than 0. Received: 0.0."),
        ({"learning_rate": "3e-4"}, "learning_rate: input should be a valid number. Received: '3e-4'."),
        ({"backbone_lr_multiplier": math.inf}, "backbone_lr_multiplier: input should be"),
        ({"layer_decay": NAN}, "layer_decay: input should be less than or equal to 1. Received: nan."),
        ({"layer_decay": 1.5}, "layer_decay: input should be less than or equal to 1. Received: 1.5."),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1. Received: 0."),
        ({"epochs": "5"}, "epochs: input should be a valid integer. Received: '5'."),
        ({"epochs": None}, "stage 'top' takes either epochs or until: plateau. Received: neither."),
        ({"until": "plateau"}, "stage 'top' takes either epochs or until: plateau. Received: both."),
        ({"epochs": None, "until": "plato"}, "until: input should be 'plateau'. Received: 'plato'. Did you mean"),
        ({"patience": 0}, "patience: input should be greater than or equal to 1. Received: 0."),
        ({"max_epochs": True}, "max_epochs: input should be a valid integer. Received: True."),
        ({"warmup": 5}, "warmup must be shorter than stage 'top'. Received: 5.0 epochs."),
        ({"warmup": -0.5}, "warmup: input should be greater than or equal to 0. Received: -0.5."),
        ({"decay": "cosinus"}, "input should be 'cosine' or 'constant'. Received: 'cosinus'. Did you mean 'cosine'?"),
        ({"batch_norm": "freeze"}, "Received: 'freeze'. Did you mean 'frozen'?"),
        ({"layer_deca": 0.5}, "unknown key 'layer_deca'. Did you mean 'layer_decay'?"),
    ],
)
def test_a_stage_that_cannot_be_used(change, sentence):
    values = {"name": "top", "unfreeze": 1, "learning_rate": 1e-3, "epochs": 5}
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        Stage(**{**values, **change})


def test_all_problems_of_a_stage_at_once():
    with pytest.raises(RecipeError) as refusal:
        Stage("top", -1, 0.0, epochs=5, patience=0)
    headline, *problems = str(refusal.value).splitlines()
    assert headline == "Stage 'top' cannot be used:" and len(problems) == 3


@pytest.mark.parametrize(
    ("stages", "options", "sentence"),
    [
        ((), {}, "it has no stages."),
        ((fixed("a", 1), plateau("a")), {}, "stages share a name: a."),
        ((fixed("a", 1),), {"min_delta": -1.0}, "min_delta is not 0 or more. Received: -1.0."),
        ((fixed("a", 1),), {"keep": "lats"}, "keep is 'best' or 'last'. Received: 'lats'. Did you mean 'last'?"),
    ],
)
def test_a_schedule_that_cannot_be_used(stages, options, sentence):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        Schedule(stages, minimise=True, **options)


def test_stages_of_exact_length_follow_each_other():
    schedule = Schedule([fixed("head", 2), fixed("top", 1)], minimise=True)
    assert schedule.max_epochs == 3
    assert walk(schedule, [3.0, 2.0, 1.0]) == [(0, 0), (0, 1), (1, 0), None]
    assert schedule.locate([]) == StagePosition(stage=0, epoch_in_stage=0)


# Worked out by hand. One character per epoch: the stage of the NEXT epoch, "." when the run is over.
@pytest.mark.parametrize(
    ("values", "stages", "restored"),
    [
        # two fixed epochs; plateau of patience 2 whose last improvement is epoch 3: ends after epoch 5
        ([5, 4, 4.5, 3, 3, 3], "00111 1.", {1: 1, 5: 3}),
        # the plateau stage betters its own best (epoch 3) but never the run's: restored to epoch 1, over
        ([5, 4, 4.8, 4.6, 4.6, 4.7], "001111.", {1: 1, 5: 1}),
        # never stops improving: max_epochs = 5
        ([9, 8, 7, 6, 5, 4, 3], "0011111.", {1: 1, 6: 6}),
        # the best epoch is not the last of its stage
        ([4, 5, 3, 9, 9], "001 11.", {1: 0, 4: 2}),
        # NaN is no improvement: it wears the patience out
        ([5, 4, NAN, NAN], "0011.", {1: 1, 3: 1}),
        # infinity is none either
        ([5, 4, math.inf, -math.inf], "0011.", {1: 1, 3: 1}),
        # nothing finite at all: nothing is restored
        ([NAN, NAN, NAN, NAN], "0011.", {}),
        # the first stage brought nothing finite, the second one does
        ([NAN, NAN, 4, 4, 4], "00111.", {4: 2}),
    ],
)
def test_a_plateau_after_a_fixed_stage(values, stages, restored):
    schedule = Schedule((fixed("head", 2), plateau("all", max_epochs=5)), minimise=True)
    letters = ["." if position is None else str(position.stage) for position in walk(schedule, values)]
    assert "".join(letters) == stages.replace(" ", "")
    assert {epoch: schedule.restores(values[: epoch + 1]) for epoch in restored} == restored
    others = set(range(len(values))) - set(restored)
    assert all(schedule.restores(values[: epoch + 1]) is None for epoch in others)
    assert schedule.restores([]) is None


def test_higher_can_be_better():
    schedule = Schedule((fixed("head", 2), plateau("all", patience=1)), minimise=False)
    assert walk(schedule, [0.5, 0.6, 0.7, 0.65])[-2:] == [(1, 1), None]
    assert schedule.best_epoch([0.5, 0.6, 0.7, 0.65]) == 2
    assert schedule.best_epoch([0.5, 0.5]) == 0, "the earlier of two equal epochs"


def test_a_stage_that_does_not_pay_ends_the_run():
    schedule = Schedule((fixed("head", 2), fixed("top", 2), fixed("all", 2)), minimise=True)
    poor, good = [3.0, 2.0, 2.5, 2.0], [3.0, 2.0, 2.5, 1.9]
    assert schedule.locate(poor) is None and schedule.restores(poor) == 1
    assert schedule.locate(good) == (2, 0) and schedule.restores(good) == 3


def test_without_validation_every_stage_runs_and_nothing_is_restored():
    schedule = Schedule((fixed("head", 1), fixed("top", 1), fixed("all", 1)), minimise=True)
    assert walk(schedule, [NAN] * 3) == [(0, 0), (1, 0), (2, 0), None]
    assert [schedule.restores([NAN] * count) for count in range(4)] == [None] * 4


def test_a_plateau_stage_at_its_cap_takes_no_epochs_of_the_next():
    schedule = Schedule((plateau("top", patience=3, max_epochs=2), fixed("all", 3)), minimise=True)
    assert walk(schedule, [5.0, 4.0, 9.0, 9.0, 9.0]) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), None]


def test_keep_last_runs_every_stage_and_restores_nothing():
    schedule = Schedule((fixed("head", 1), plateau("top", patience=1), fixed("all", 1)), minimise=True, keep="last")
    values = [1.0, 2.0, 3.0, 4.0]
    assert walk(schedule, values) == [(0, 0), (1, 0), (1, 1), (2, 0), None]
    assert [schedule.restores(values[:count]) for count in range(5)] == [None] * 5
    assert schedule.best_epoch(values) == 0


def test_min_delta_tells_what_counts():
    stages = (fixed("head", 1), plateau("top", patience=2), fixed("all", 1))
    values = [1.0, 0.75, 0.625, 0.625]  # epoch 2 betters epoch 1 by 0.125
    assert Schedule(stages, minimise=True, min_delta=0.1).locate(values) == (1, 3)
    assert Schedule(stages, minimise=True, min_delta=0.1).best_epoch(values) == 2
    assert Schedule(stages, minimise=True, min_delta=0.125).locate(values) == (2, 0)
    assert Schedule(stages, minimise=True, min_delta=0.125).best_epoch(values) == 1
    assert Schedule(stages, minimise=True, min_delta=0.375).restores(values[:3]) is None, "patience is not used up"
    assert Schedule(stages, minimise=True, min_delta=0.375).locate(values) is None, "top gained no more than 0.375"
    assert Schedule(stages, minimise=True, min_delta=0.375).restores(values) == 0


def test_the_start_can_be_the_best():
    schedule = Schedule((fixed("top", 2), fixed("all", 1)), minimise=True)
    values = [0.75, 0.5]
    assert schedule.best_epoch([], baseline=0.375) == BASELINE
    assert schedule.best_epoch([]) is None
    assert schedule.restores(values, baseline=0.375) == BASELINE
    assert schedule.locate(values, baseline=0.375) == (1, 0), "the first stage may bring nothing"
    assert schedule.locate([*values, 0.4375], baseline=0.375) is None
    assert schedule.restores([*values, 0.4375], baseline=0.375) == BASELINE
    assert schedule.restores([*values, 0.25], baseline=0.375) == 2
    assert schedule.restores(values, baseline=NAN) == schedule.restores(values) == 1
    assert schedule.restores([NAN, NAN, NAN], baseline=0.375) == BASELINE, "a run that diverged is undone"


def test_a_history_of_another_schedule():
    schedule = Schedule((fixed("head", 1), fixed("top", 1), fixed("all", 1)), minimise=True)
    sentence = "schedule, which ends after 2 epochs. Received: 3 epochs. Resume with the schedule"
    with pytest.raises(RunError, match=sentence):
        schedule.locate([1.0, 2.0, 0.5])


SCHEDULES = [
    Schedule(stages, minimise, min_delta, keep)
    for stages in [
        (fixed("a", 1),),
        (fixed("a", 2), fixed("b", 1), fixed("c", 1)),
        (plateau("a", 1), plateau("b", 2, max_epochs=3)),
        (fixed("a", 1), plateau("b", 1), fixed("c", 2)),
    ]
    for minimise in (True, False)
    for min_delta in (0.0, 1.0)
    for keep in ("best", "last")
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_prefix_of_every_short_history_agrees(schedule):
    """Walk all histories of up to 5 epochs over four values, epoch by epoch, as a run does."""
    for values, baseline in itertools.product(itertools.product([1.0, 2.0, 4.0, NAN], repeat=5), [None, 2.0]):
        position = schedule.locate([], baseline)
        assert position == (0, 0)
        for count in range(1, 6):
            before, history = position, values[:count]
            position = schedule.locate(history, baseline)
            restored, best = schedule.restores(history, baseline), schedule.best_epoch(history, baseline)
            assert restored in (None, best)
            if position is None:
                break
            stays = position == (before.stage, before.epoch_in_stage + 1)
            assert stays or position == (before.stage + 1, 0), "epochs follow each other, no stage is left out"
            assert not (stays and restored is not None), "only the end of a stage restores"
        assert best is None or _is_best(schedule, history, baseline, best)


def _is_best(schedule: Schedule, history, baseline, best: int) -> bool:
    """Whether no value betters the best one by more than min_delta, and it betters all finite ones before it so."""
    sign = 1 if schedule.minimise else -1
    values = {BASELINE: NAN if baseline is None else baseline, **dict(enumerate(history))}
    gains = {epoch: sign * (value - values[best]) for epoch, value in values.items() if not math.isnan(value)}
    return all(
        gain > schedule.min_delta if epoch < best else -gain <= schedule.min_delta
        for epoch, gain in gains.items()
        if epoch != best
    )


def test_rates_by_hand():
    schedule = Schedule(
        (
            fixed("cosine", 4, learning_rate=0.5),
            fixed("warm", 3, learning_rate=1.0, warmup=1.0),
            plateau("all", warmup=0.5),
        ),
        minimise=True,
    )
    cosine = [schedule.rate(StagePosition(0, epoch), step, 2) for epoch in range(4) for step in range(2)]
    assert cosine == pytest.approx([0.25 * (1 + math.cos(math.pi * done / 8)) for done in range(8)])
    assert cosine[0] == 0.5 and cosine[4] == pytest.approx(0.25)
    warm = [schedule.rate(StagePosition(1, epoch), step, 4) for epoch in range(3) for step in range(4)]
    assert warm[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, pytest.approx(0.5 * (1 + math.cos(math.pi / 8)))]
    assert warm[8] == pytest.approx(0.5)
    steady = [schedule.rate(StagePosition(2, epoch), step, 4) for epoch in range(2) for step in range(4)]
    assert steady == [0.5e-4] + [1e-4] * 7


def test_a_warm_up_that_ends_within_a_step_never_passes_the_peak():
    schedule = Schedule((fixed("a", 2, learning_rate=1.0, warmup=0.5),), minimise=True)
    rates = [schedule.rate(StagePosition(0, epoch), step, 5) for epoch in range(2) for step in range(5)]
    assert rates[:3] == [0.4, 0.8, 1.0] and rates[3:] == sorted(rates[3:], reverse=True) and max(rates) == 1.0
    assert 0 < rates[-1] < 0.1
