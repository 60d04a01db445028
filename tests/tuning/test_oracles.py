"""Schedulers continue from a stored state, with every algorithm."""

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


def run_trials(scheduler, count):
    """Proposals of `count` trials at most; the score of each is its rate."""
    proposals = []
    while len(proposals) < count and (proposal := scheduler.next("here")) is not None:
        proposals.append(proposal)
        scheduler.complete(proposal.name, proposal.values["training.learning_rate"])
    return proposals


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_a_restored_scheduler_proposes_the_same_trials(tuning):
    whole = run_trials(TrialScheduler(tuning, 9), 8)
    assert len(whole) == 8
    stopped = TrialScheduler(tuning, 9)
    begun = run_trials(stopped, 5)
    running = stopped.next("here")
    stored = json.loads(json.dumps(stopped.state()))
    rest = run_trials(TrialScheduler(tuning, 9, stored), 8)
    assert rest[0].name == running.name  # the running trial is proposed again, first
    assert begun + rest == whole


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_a_failed_trial_is_never_proposed_again(tuning):
    scheduler = TrialScheduler(tuning, 9)
    for _ in range(4):  # KerasTuner itself gives up after three
        scheduler.fail(scheduler.next("here").name, "no")
    following = scheduler.next("here")
    assert following is None or following.name not in {"0", "1", "2", "3", "00", "01", "02", "03"}
