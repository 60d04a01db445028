"""From one domain to another: whole runs, and what is refused."""

import csv
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.adaptation.domain_head import ADAPTATIONS, METHODS, DomainAdaptedHead
from tlkeras.adaptation.penalties import ramp
from tlkeras.cli.tables import runs as tables
from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.data import FINE_TUNING_METHODS as TUNED_BY
from tlkeras.config.schema.data import DomainAdaptationConfig
from tlkeras.errors import DataError, RecipeError
from tlkeras.finetuning.inputs import DataSplit
from tlkeras.finetuning.stage_runner import StageRunner
from tlkeras.heads.linear import LinearHead
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import open_run
from tlkeras.training import builders
from tlkeras.training.builders.finetuning import _make_transfer, make_optimizer

RECIPE = """
name: moved
data: {source: images/cells.csv, label: mark, domain: camera, validation: 0.2, test: 0.3}
domain_adaptation: {source: old, target: new, method: coral}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear}
training: {epochs: 4, batch_size: 16}
evaluation: {bootstrap_samples: 100}
"""


STAGE = {"name": "top", "unfreeze": 1, "epochs": 4, "learning_rate": 3e-3}
TUNED = {"finetuning": {"stages": [STAGE], "batch_size": 16}, "augmentation.policy": "flip"}


def draw_cells(folder, count=120, seed=0):
    """Write 32-pixel PNGs with or without a mark, by an old camera and a new one, which is darker and reddish."""
    random, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for number in range(count):
        marked, camera = number % 2, ("old", "new", "other")[0 if number < 60 else 1 if number < 112 else 2]
        pixels = random.normal(170, 25, (32, 32, 3))
        if marked:
            pixels[6:18, 6:18] -= 120
        if camera == "new":
            pixels = pixels * [0.7, 0.4, 0.4]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
        label = "" if camera == "new" and number % 5 == 0 else ("plain", "marked")[marked]
        rows.append([f"{number:03d}.png", label, camera])
    with open(folder / "cells.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "mark", "camera"], *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    draw_cells(folder / "images")
    (folder / "moved.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("method", ["coral", pytest.param("dann", marks=pytest.mark.slow)])
def test_what_is_measured_is_the_target_and_never_learned(method, place, capsys):
    changes = {
        "domain_adaptation.method": method,
        "domain_adaptation.correction": "likelihood",
        "features.taps": [0, -1],
    }
    result = tlkeras.evaluate(tlkeras.train("moved.yaml", set=changes))
    assert set(result.main.late_fusion) == {"mean", "stacking"}
    with open(f"{result.path}/splits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["domain"], row["split"]) for row in rows} == {
        ("old", "train"),
        ("old", "validation"),
        ("new", "target"),
        ("new", "test"),
    }
    assert all(row["label"] != "?" for row in rows if row["split"] != "target")
    assert any(row["label"] == "?" for row in rows)
    assert result.main.images == sum(row["split"] == "test" for row in rows)
    assert result.main.probe is not None  # what is learned on the source alone
    head = result.head
    assert head["method"] == method and set(head["a_distance"]) == {"before", "after"}
    assert {"source", "importance", "deep_embedded_validation", "entropy", "information"} == set(head["scores"])
    assert np.sum(head["priors"], axis=1) == pytest.approx([1, 1])
    tables.print_training(result)
    printed = capsys.readouterr().out
    for words in (f"Across domains by {method}", "deep embedded validation", "A-distance after", "oracle: accuracy"):
        assert words in printed
    gain = result.main.gain
    assert gain.value == pytest.approx(result.metrics["accuracy"].value - result.main.probe["accuracy"].value)
    verdict = {True: "better than", False: "worse than", None: "not proved better than"}[gain.better]
    assert f"Adaptation by {method} is {verdict} the source domain alone: accuracy {gain.value:+.3f}" in " ".join(
        printed.split()
    )
    exported = tlkeras.export(result.path, place / "models" / method)
    served = tf.saved_model.load(exported.path).signatures["serving_default"]
    assert exported.difference < 1e-3 and served is not None


@pytest.mark.slow
def test_there_is_one_figure_for_the_source_alone(place):
    """The column of the linear probe of an adapted run is what the run without adaptation measures."""
    changes = {"features.taps": [], "head": {"kind": "linear"}}
    adapted, alone, tuned = (
        tlkeras.evaluate(tlkeras.train("moved.yaml", set={**changes, **method}))
        for method in (
            {"domain_adaptation.method": "coral"},
            {"domain_adaptation.method": "none"},
            {**TUNED, "domain_adaptation.method": "none"},
        )
    )
    assert alone.main.probe is None
    for other in (adapted, tuned):
        assert {name: of.value for name, of in other.main.probe.items()} == pytest.approx(
            {name: of.value for name, of in alone.metrics.items() if name in other.main.probe}
        )


@pytest.mark.parametrize("tuned", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["frozen", "fine-tuned"])
def test_labels_of_the_target_change_nothing(tuned, place):
    """Other labels on target images, the same answers: nobody looked."""
    settings = {**TUNED, "domain_adaptation.method": "mmd"} if tuned else {}
    text = (place / "images" / "cells.csv").read_text().splitlines()
    turned = [
        line.replace("plain", "x").replace("marked", "plain").replace("x", "marked") if ",new" in line else line
        for line in text
    ]
    (place / "images" / "turned.csv").write_text("\n".join(turned))
    sources = [{"data.source": f"images/{name}.csv"} for name in ("cells", "turned")]
    runs = [tlkeras.evaluate(tlkeras.train("moved.yaml", set={**settings, **source})) for source in sources]
    predictions = [np.load(f"{run.path}/predictions.npz")["probabilities"] for run in runs]
    np.testing.assert_array_equal(*predictions)


def test_the_recipe_knows_every_method():
    assert DomainAdaptationConfig.model_json_schema()["properties"]["method"]["enum"] == list(METHODS)
    assert ("none", *ADAPTATIONS) == TUNED_BY


def test_what_makes_no_sense_is_refused(place):
    stage = {"name": "top", "unfreeze": 1, "epochs": 1}
    wrong = {"finetuning": {"stages": [stage]}, "domain_adaptation.correction": "confusion", "data.validation": 0.0}
    with pytest.raises(RecipeError) as caught:
        tlkeras.check("moved.yaml", wrong)
    sentences = ("coral aligns frozen features", "remove it or finetuning", "set data.validation")
    for sentence in sentences:
        assert sentence in str(caught.value)
    with pytest.raises(DataError, match="no images of the domain 'nwe'.*Did you mean 'new'"):
        tlkeras.train("moved.yaml", set={"domain_adaptation.target": "nwe"})
    with pytest.raises(DataError, match="'old' is both source and target"):
        tlkeras.train("moved.yaml", set={"domain_adaptation.target": "old"})
    with pytest.raises(RecipeError, match="Did you mean 'coral'"):
        tlkeras.check("moved.yaml", {"domain_adaptation.method": "corral"})


@pytest.mark.parametrize("method", ADAPTATIONS)
def test_a_method_with_a_network_of_its_own_refuses_what_it_would_ignore(method):
    changes = {"domain_adaptation.method": method, "head": {"kind": "svm"}, "features.selection": {"keep": 0.5}}
    with pytest.raises(RecipeError) as caught:
        load_recipe("elpv_domains", changes)
    for ignored in ("head.kind svm", "features.selection"):
        assert f"{method} trains a network of its own: remove {ignored}" in str(caught.value)
    with pytest.raises(RecipeError, match=f"{method} trains a network of its own: remove head.C"):
        load_recipe("elpv_domains", {"domain_adaptation.method": method, "head.C": 1.0})
    assert load_recipe("elpv_domains", {**changes, "domain_adaptation.method": "coral"}).head.kind == "svm"
    recipe = load_recipe("elpv_domains", {"domain_adaptation.method": method, "head": {"class_weight": "balanced"}})
    assert builders.adapt_heads(recipe, LinearHead)().options.class_weight == "balanced"


@pytest.mark.parametrize("accumulated", [1, 4, 32])
def test_the_penalty_reaches_its_weight_at_the_last_batch(accumulated):
    """64 batches of half source, half target in two stages: also where an update takes several of them."""
    options = {"batch_size": 8, "gradient_accumulation_steps": accumulated}
    stages = [{**STAGE, "name": name, "epochs": epochs} for name, epochs in (("one", 1), ("two", 3))]
    recipe = load_recipe("elpv_domains", {"finetuning": {**options, "stages": stages}})
    of_target = np.arange(100) >= 64
    part = DataSplit(np.zeros((100, 2), np.float32), (~of_target).astype(np.float32), lambda cut: None, of_target)
    network = SimpleNamespace(features=SimpleNamespace(shape=(None, 4)))
    schedule = SimpleNamespace(stages=recipe.finetuning.stages)
    optimizer, variable = make_optimizer(recipe.finetuning), keras.Variable(np.zeros(2, "float32"))
    optimizer.build([variable])
    tasks = [SimpleNamespace(class_names=["a", "b"])]
    penalty = _make_transfer(recipe, tasks, network, schedule, part, optimizer)
    progress = []
    for epoch in range(4):
        for _ in part.draw_batches(8, 0, epoch):
            progress.append(float(penalty.progress()))
            optimizer.apply([tf.ones(2)], [variable])
    np.testing.assert_allclose(progress, np.arange(64) / 64, atol=1e-6)
    assert float(ramp(progress[-1])) == pytest.approx(1, abs=2e-4)
    assert int(optimizer.iterations) == 64 // accumulated


def test_a_class_that_the_source_lacks_is_told(place):
    with pytest.raises(DataError, match="no training image .* shows marked"):
        rows = (place / "images" / "cells.csv").read_text().splitlines()
        kept = [row for row in rows if not row.endswith("marked,old")]
        (place / "images" / "lacking.csv").write_text("\n".join(kept))
        tlkeras.train("moved.yaml", set={"data.source": "images/lacking.csv"})


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ADAPTATIONS])
def test_corrected_layers_answer_as_the_head(method):
    import keras

    random = np.random.default_rng(0)
    y = random.integers(0, 2, 80)
    X = (random.normal(size=(80, 5)) + 2 * y[:, None]).astype(np.float32)
    target = (random.normal(size=(60, 5)) + 2.0 * (np.arange(60)[:, None] % 4 == 0)).astype(np.float32)
    head = DomainAdaptedHead(method, lambda: LinearHead(C=1.0), 3, correction="confusion")
    head.fit(X[:60], y[:60], target=target, validation=(X[60:], y[60:], np.ones(20)))
    model = keras.Sequential([keras.Input((5,)), *head.to_layers()])
    np.testing.assert_allclose(model(target), head.predict_proba(target), atol=1e-4)
    np.testing.assert_array_equal(head.predict_proba(target), head.predict_proba(target))
    assert head.summarize().chosen["scores"] and json.dumps(head.summarize().to_dict())
    unscored = DomainAdaptedHead(method, lambda: LinearHead(C=1.0), 3, scored=False).fit(X, y, target=target)
    assert unscored.scores_ == {} == unscored.distances_


@pytest.mark.parametrize(
    ("method", "cache"),
    [("dann", "auto"), *(pytest.param(name, "off", marks=pytest.mark.slow) for name in ("none", *ADAPTATIONS))],
)
def test_networks_are_fine_tuned_across_domains(method, cache, place):
    """Labels of the source alone, images of both; the discriminator is not in the model, which predicts the target."""
    settings = {**TUNED, "domain_adaptation.method": method}
    settings["finetuning"] = {**TUNED["finetuning"], "cache": cache}
    result = tlkeras.evaluate(tlkeras.train("moved.yaml", set=settings))
    model = load_model(open_run(result.path, place))
    assert not any("discriminator" in weight.path for weight in model.weights)
    with open(f"{result.path}/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(np.isfinite(float(row["loss"])) for row in rows)
    assert float(rows[-1]["loss"]) < 0.69 and result.metrics["accuracy"].value > 0.4
    with open(f"{result.path}/splits.csv", newline="") as file:
        assert "target" in {row["split"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_an_adapted_run_that_was_interrupted_ends_with_the_same_bits(place, monkeypatch):
    """The discriminator, its dropout and the ramp resume where they were."""
    settings = {**TUNED, "domain_adaptation.method": "cdan"}
    whole = tlkeras.evaluate(tlkeras.train("moved.yaml", set=settings, runs=place / "whole"))
    taken, learn = [], StageRunner.train

    def interrupt(self, *batch):
        taken.append(learn(self, *batch))
        if len(taken) == 9:
            raise KeyboardInterrupt
        return taken[-1]

    monkeypatch.setattr(StageRunner, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tlkeras.train("moved.yaml", set=settings, runs=place / "halved")
    monkeypatch.undo()
    resumed = tlkeras.evaluate(tlkeras.resume(runs=place / "halved"))
    manifests = [open_run(run.path, place).manifest["finetuning"]["weights"] for run in (whole, resumed)]
    assert manifests[0] == manifests[1]
