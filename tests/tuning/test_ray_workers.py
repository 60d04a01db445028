"""Searches on a Ray cluster, here one of this machine: by our own proposals, and by Ray Tune over the same space."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest

import tlkeras
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.errors import MissingExtraError, RecipeError, TlkerasError
from tlkeras.tuning import ray_workers

TUNED = """\
data: {source: photos, test: 0.25, validation: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none}
head: {kind: linear}
evaluation: {bootstrap_samples: 100}
tuning:
  max_trials: 4
  confirm_top: 1
  confirm_seeds: 1
  space:
    head.C: {min: 1.0e-4, max: 1.0, sampling: log}
    head.class_weight: [none, balanced]
"""

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs "tlkeras[ray]"')


@pytest.fixture
def tuned(workplace):
    (workplace / "tuned.yaml").write_text(TUNED)
    return workplace


@pytest.mark.parametrize(
    ("dimension", "steps"),
    [
        ({"min": 1, "max": 7, "step": 3}, [1, 4, 7]),
        ({"min": 1, "max": 9, "step": 2, "sampling": "log"}, [1, 2, 4, 8]),
        ({"min": 0.0, "max": 0.3, "step": 0.1}, pytest.approx([0.0, 0.1, 0.2, 0.3])),
        ({"min": 0.001, "max": 1.0, "step": 10.0, "sampling": "log"}, pytest.approx([0.001, 0.01, 0.1, 1.0])),
    ],
)
def test_steps_are_listed_as_kerastuner_counts_them(dimension, steps):
    listed = ray_workers._list_steps(SearchDimension(**dimension))
    assert listed == steps and all(type(value) is type(dimension["min"]) for value in listed)


def test_what_is_refused(tuned):
    with pytest.raises(TlkerasError, match="Unknown engine 'rya'; it is one of local, ray.*Did you mean 'ray'?"):
        tlkeras.tune("tuned.yaml", engine="rya")


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tuned):
    for attempt in (lambda: tlkeras.tune("tuned.yaml", engine="ray"), lambda: ray_workers.make_trainable("tuned.yaml")):
        with pytest.raises(MissingExtraError, match=r'pip install "tlkeras\[ray\]"'):
            attempt()


@with_ray
def test_the_space_is_that_of_the_recipe(tuned):
    space = ray_workers.make_param_space("tuned.yaml")
    drawn = [{key: domain.sample() for key, domain in space.items()} for _ in range(50)]
    assert {one["head.class_weight"] for one in drawn} == {"none", "balanced"}
    strengths = sorted(one["head.C"] for one in drawn)
    assert 1e-4 <= strengths[0] < 1e-2 < strengths[25] * 10 and strengths[-1] <= 1
    whole = ray_workers._make_domain(SearchDimension(min=2, max=4))
    assert {whole.sample() for _ in range(60)} == {2, 3, 4}  # both ends, as everywhere
    with pytest.raises(RecipeError, match="section `tuning`"):
        ray_workers.make_param_space("mine.yaml")


@pytest.mark.slow
@with_ray
def test_actors_run_the_trials_of_a_search(tuned):
    found = {
        engine: tlkeras.tune("tuned.yaml", engine=engine, workers=workers)
        for engine, workers in (("local", 1), ("ray", 2))
    }
    figures = [
        sorted((json.dumps(dict(trial.values)), trial.score("loss")) for trial in result.trials)
        for result in found.values()
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 4
    assert found["ray"].failed == () and Path(found["ray"].best).exists()


@pytest.mark.slow
@with_ray
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_an_actor_that_dies_fails_its_trial_and_is_replaced(tuned):
    from tlkeras.config.recipe import load_recipe

    actors = ray_workers.RayWorkers(load_recipe("tuned.yaml"), 1)
    try:
        actors.submit("actor-0", {"head.C": 0.1})
        assert "loss" in actors.next_result()[1].figures
        actors.submit("actor-0", {"head.C": 0.1})
        os.kill(find_actor(), signal.SIGKILL)
        assert "the actor died" in actors.next_result()[1].error
        actors.submit("actor-0", {"head.C": 0.1})
        assert "loss" in actors.next_result()[1].figures
    finally:
        actors.close()


def find_actor():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"ray::TrialActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        except OSError:
            continue
    raise AssertionError("no actor was found")


@pytest.mark.slow
@with_ray
def test_ray_tune_searches_the_same_space(tuned, monkeypatch):
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    import ray
    from ray import tune

    config = tune.TuneConfig(metric="val_loss", mode="min", num_samples=3, reuse_actors=True, max_concurrent_trials=1)
    run = tune.RunConfig(storage_path=str(tuned / "ray"), verbose=0)
    try:
        tuner = tune.Tuner(
            ray_workers.make_trainable("tuned.yaml"),
            param_space=ray_workers.make_param_space("tuned.yaml"),
            tune_config=config,
            run_config=run,
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    best = results.get_best_result()
    assert len(results) == 3 and not results.errors and 0 < best.metrics["val_loss"] < 1
    recipe = ray_workers.make_recipe("tuned.yaml", best.config)
    assert best.config["head.C"] == recipe.head.C and recipe.tuning is None
