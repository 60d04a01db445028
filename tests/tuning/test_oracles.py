"""Proposals go on from where they stopped, with every algorithm."""

import json

import pytest

from tlkeras.config.schema.tuning import SearchDimension, TuningConfig
from tlkeras.tuning.oracles import TrialScheduler

SPACE = {
    "training.learning_rate": SearchDimension(min=1e-4, max=1e-2, sampling="log"),
    "training.batch_size": SearchDimension(values=(8, 16, 32)),
}
TUNINGS = {
    name: TuningConfig(space=SPACE, algorithm=name, max_trials=8)
    for name in ("random", "bayesian", "grid", "hyperband")
}


def result(proposals, count):
    """Carry out so many trials; the score is the rate."""
    asked = []
    for _ in range(count):
        found = proposals.next("here")
        if found is None:
            break
        name, values = found
        asked.append((name, values))
        proposals.complete(name, values["training.learning_rate"])
    return asked


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_a_search_that_was_kept_proposes_what_it_would_have_proposed(tuning):
    whole = result(TrialScheduler(tuning, 9), 8)
    assert len(whole) == 8
    stopped = TrialScheduler(tuning, 9)
    begun = result(stopped, 5)
    running, _ = stopped.next("here")
    kept = json.loads(json.dumps(stopped.state()))
    rest = result(TrialScheduler(tuning, 9, kept), 8)
    assert rest[0][0] == running  # what was running is done again, first
    assert [name for name, _ in begun + rest] == [name for name, _ in whole]
    assert begun + rest == whole


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_a_failed_trial_is_never_proposed_again(tuning):
    proposals = TrialScheduler(tuning, 9)
    for _ in range(4):  # KerasTuner itself gives up after three
        name, _ = proposals.next("here")
        proposals.fail(name, "no")
    following = proposals.next("here")
    assert following is None or following[0] not in {"0", "1", "2", "3", "00", "01", "02", "03"}
