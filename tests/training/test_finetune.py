"""Recipes that fine-tune: whole runs and interrupted ones."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.backbones.builder import build_backbone
from tlkeras.errors import RecipeError, RunError
from tlkeras.evaluation.run_data import RunData
from tlkeras.finetuning.stage_runner import StageRunner
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import find_run
from tlkeras.runs.predictions import load_predictions
from tlkeras.training import builders
from tlkeras.training.builders import experiment

RECIPE = """
name: staged
data: {source: sklearn-digits, validation: 0.2, limit: 120}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 0.01}
augmentation: {policy: flip}
finetuning:
  ema: 0.9
  stages:
    - {name: head, unfreeze: 0, epochs: 1}
    - {name: top, unfreeze: 1 block, epochs: 2, backbone_lr_multiplier: 1.0}
evaluation: {bootstrap_samples: 100}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(cache))
    (tmp_path / "staged.yaml").write_text(RECIPE)
    return str(tmp_path / "staged.yaml")


def read(path):
    model = keras.models.load_model(Path(path) / "model.keras", compile=False)
    return model.get_weights(), *((Path(path) / name).read_bytes() for name in ("history.csv", "predictions.csv"))


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bits(recipe, tmp_path, monkeypatch):
    whole = tlkeras.evaluate(tlkeras.train(recipe, runs=tmp_path / "whole"))
    assert (Path(whole.path) / "history.png").stat().st_size > 5_000
    train, calls = StageRunner.train, []

    def interrupt(self, *batch):
        calls.append(1)
        if len(calls) == 4:  # in the second stage
            raise KeyboardInterrupt
        return train(self, *batch)

    monkeypatch.setattr(StageRunner, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tlkeras.train(recipe, runs=tmp_path / "halved")
    monkeypatch.undo()
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    resumed = tlkeras.evaluate(tlkeras.resume(runs=tmp_path / "halved"))
    expected, received = read(whole.path), read(resumed.path)
    assert all(np.array_equal(a, b) for a, b in zip(expected[0], received[0], strict=True))
    assert expected[1:] == received[1:]
    with pytest.raises(RunError, match="No run was interrupted"):
        tlkeras.resume(runs=tmp_path / "halved")


def test_all_that_is_wrong_is_said_at_once(recipe):
    stage = {"name": "top", "unfreeze": "40 blocks", "until": "plateau"}
    wrong = {"finetuning.stages": [stage], "augmentation.policy": "flp", "data.validation": 0.0}
    (problem,) = tlkeras.check(recipe, wrong).problems
    assert "set data.validation" in problem
    assert "unfreezes more blocks than the backbone has" in problem
    assert "Did you mean 'flip'" in problem


@pytest.mark.parametrize("tuned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_finished_network_looks_at_all_orientations(recipe, tmp_path, tuned):
    stages = [{"name": "top", "unfreeze": "1 block", "epochs": 1}]
    changes = {"finetuning.stages": stages} if tuned else {"finetuning": None}
    tlkeras.train(recipe, set={"augmentation.test_time": True, **changes}, runs=tmp_path)
    run = find_run("latest", tmp_path)
    predictions, model = load_predictions(run)[0], load_model(run)

    seen = np.stack([RunData(run).decode(key) for key in predictions.keys[:5]])
    np.testing.assert_allclose(model(seen), predictions.probabilities[:5], rtol=1e-3)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(model(images), model(images[:, :, ::-1]), rtol=1e-4)
    assert "average_orientations" in [layer.name for layer in model.layers]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"augmentation.policy": "light"}, "averages over numbered orientations. Received: policy 'light'"),
        ({"finetuning": None, "features.taps": [0, 1]}, "test_time averages one map: remove features.taps"),
    ],
)
def test_what_cannot_be_averaged_is_said_before_training(recipe, tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        tlkeras.train(recipe, set={"augmentation.test_time": True, **changes}, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_source_is_kept_by_distillation(recipe, tmp_path):
    keras.utils.set_random_seed(0)
    build_backbone("tiny", size=32, weights="none", top=True).save_weights(tmp_path / "tiny.weights.h5")
    stages = [{"name": "top", "unfreeze": 1, "epochs": 1}, {"name": "all", "unfreeze": "all", "epochs": 1}]
    changes = {"backbone.weights": str(tmp_path / "tiny.weights.h5"), "finetuning.stages": stages}
    losses = []
    for kept in ("none", "lwf"):
        result = tlkeras.evaluate(
            tlkeras.train(recipe, set={**changes, "finetuning.regularizer": {"kind": kept}}, runs=tmp_path / "runs")
        )
        losses.append(read(result.path)[1])
    assert losses[0] != losses[1]


def test_a_run_plans_its_fine_tuning_once(recipe, tmp_path, monkeypatch):
    plan_stages, plans = experiment.plan_stages, []

    def count(*arguments, **options):
        plans.append(plan_stages(*arguments, **options))
        return plans[-1]

    monkeypatch.setattr(experiment, "plan_stages", count)
    tlkeras.train(recipe, runs=tmp_path)
    assert len(plans) == 1


@pytest.mark.parametrize("balance", [{"class_weight": "balanced"}, {"balanced_sampling": True}])
def test_what_is_monitored_weighs_classes_as_training_does(recipe, tmp_path, monkeypatch, balance):
    make_split, splits = builders.make_split, []

    def keep(*arguments, **options):
        splits.append(make_split(*arguments, **options))
        return splits[-1]

    monkeypatch.setattr(builders, "make_split", keep)
    tlkeras.train(recipe, set={f"finetuning.{name}": value for name, value in balance.items()}, runs=tmp_path)
    train, held = splits
    counts = np.bincount(train.targets.argmax(axis=1))
    assert len(set(counts)) > 1
    np.testing.assert_allclose(held.weights, (counts.sum() / 10 / counts)[held.targets.argmax(axis=1)], rtol=1e-6)


def test_classes_are_balanced_once(recipe):
    with pytest.raises(RecipeError, match="would balance the classes twice: remove one of them"):
        tlkeras.train(recipe, set={"finetuning.class_weight": "balanced", "finetuning.balanced_sampling": True})
