"""Recommendations: candidate backbones, their measurements, the rules of the advice, and the recipe."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import tlkeras
from tlkeras.backbones import weights
from tlkeras.backbones.catalog import find_backbone
from tlkeras.cli.main import main
from tlkeras.config.recipe import load_recipe
from tlkeras.diagnostics.recommend import measurements
from tlkeras.diagnostics.recommend.benchmarks import BenchmarkRequest, BenchmarkResult, measure_costs
from tlkeras.diagnostics.recommend.candidates import TARGETS, BackboneLimits, Candidate, choose_candidates
from tlkeras.diagnostics.recommend.measurements import CandidateResult, FoldScore, Scores, compare_folds, score_features
from tlkeras.diagnostics.recommend.recommend import (
    assess_similarity,
    choose_best,
    compare_to_best,
    recommend_finetuning,
)
from tlkeras.errors import BackboneError


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_is_reachable", lambda: False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.fixture
def quick_costs(monkeypatch):
    """Costs that follow from the size, instead of a process for each backbone."""
    requests = []

    def measure(request):
        requests.append(request)
        return BenchmarkResult(request.size / 10, 1000.0, 500.0, 0.1, 900.0)

    monkeypatch.setattr(measurements, "measure_costs", measure)
    return requests


def recommend(*arguments):
    return CliRunner().invoke(main, ["--quiet", "recommend", *map(str, arguments)])


@pytest.mark.slow
def test_a_recipe_comes_out_that_trains(workplace, quick_costs):
    done = recommend("mine.yaml", "--most", 1, "--to", "best.yaml", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {row["name"] for row in result["candidates"]} == {"tiny at 32", "tiny at 24"}
    for row in result["candidates"]:
        assert 0 <= row["probe"]["mean"] <= 1 and row["milliseconds"] == row["size"] / 10
        assert row["leep"] is None  # random weights know no classes
    assert {request.unfreeze for request in quick_costs} == {1}  # a sixth of its blocks: the images are few
    assert result["recommendations"][0]["question"] == "Which backbone?"
    assert "others come first" in result["dropped"]["efficientnet_lite0"]
    assert yaml.safe_load(result["recipe"])["backbone"]["size"] == load_recipe("best.yaml").backbone.size
    with Image.open(result["image"]) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert CliRunner().invoke(main, ["--quiet", "train", "best.yaml"]).exit_code == 0
    assert recommend("mine.yaml", "--to", "best.yaml").exit_code == 2  # never overwritten


@pytest.mark.slow
def test_images_alone_are_enough(workplace, quick_costs):
    done = recommend("photos/", "--candidates", "efficientnet_lite*", "--set", "data.limit=24", "--images", 16)
    assert done.exit_code == 0, done.output
    for part in ("efficientnet_lite0 at 224", "Frozen or fine-tuned?", "name: photos", "5 neighbours", "one image"):
        assert part in done.stdout


@pytest.mark.slow
def test_leep_and_nce_need_a_pretrained_classifier(workplace, quick_costs):
    result = tlkeras.recommend("mine.yaml", limits={"patterns": ("efficientnet_lite0",)})
    for row in result.candidates:
        known = row.candidate.entry.name == "efficientnet_lite0"
        assert (row.scores.leep is not None) == (row.scores.nce is not None) == known
    assert result.dropped["vgg16"] == "its name matches no pattern"


@pytest.mark.slow
def test_costs_are_measured_in_a_process_of_its_own():
    costs = measure_costs(BenchmarkRequest("tiny", 32, classes=3, unfreeze=1, batch=4))
    assert isinstance(costs, BenchmarkResult), costs
    assert 0 < costs.milliseconds < 1000 and costs.images_per_second > 10 and costs.step_seconds > 0
    assert costs.megabytes is None or costs.step_megabytes >= costs.megabytes > 50


@pytest.mark.slow
def test_costs_that_cannot_be_measured_are_explained():
    with pytest.raises(BackboneError, match="The benchmark of tiny at 1 pixels failed. Received: .*at least 8"):
        measure_costs(BenchmarkRequest("tiny", 1, classes=3, unfreeze=1))


@pytest.mark.parametrize("target", TARGETS)
def test_candidates_meet_the_limits(target):
    candidates, dropped = choose_candidates(BackboneLimits(target, most=2))
    assert len(candidates) == 2 and all(candidate.weights == "packaged" for candidate in candidates)
    assert [candidate.entry.top1 for candidate in candidates] == sorted(
        (candidate.entry.top1 for candidate in candidates), reverse=True
    )
    assert ("multiply-adds" in dropped["vgg16"]) == (target != "server")
    assert "server cannot be reached" in dropped["mobilenet_v2"]


def test_the_best_of_each_family_comes_first(monkeypatch):
    monkeypatch.setattr(weights, "_is_reachable", lambda: True)
    candidates, _ = choose_candidates(BackboneLimits("mobile", most=3))
    assert len({candidate.entry.family for candidate in candidates}) == 3


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (BackboneLimits("phone"), "Unknown target. Received: 'phone'"),
        (BackboneLimits(patterns=("efficientnet_lite9",)), "Did you mean 'efficientnet_lite"),
        (BackboneLimits(licences=("Apache-2",)), "Did you mean 'Apache-2.0'"),
        (BackboneLimits(parameters=1e5), "meets all limits.*\n  more than 0.1 M parameters: .* and 40 more"),
        (BackboneLimits(patterns=("vgg*",), target="server"), "their server cannot be reached: vgg16, vgg19"),
    ],
)
def test_limits_that_nothing_meets(limits, sentence):
    with pytest.raises(BackboneError, match=f"(?s){sentence}"):
        choose_candidates(limits)


def test_limits_of_the_command_are_in_its_units(workplace):
    done = recommend("photos/", "--max-parameters", 0.1, "--candidates", "efficientnet*")
    assert done.exit_code == BackboneError.exit_code and "more than 0.1 M parameters: " in done.output


def make_candidate(name, score, milliseconds, jitter=0.0):
    folds = np.array([-2, -1, 0, 1, 2]) * 0.01 + score + jitter * np.array([1, -1, 1, -1, 0])
    candidate = Candidate(replace(find_backbone("tiny"), name=name), "none", 32)
    costs = BenchmarkResult(milliseconds, 1000.0, None, 0.1, None)
    scores = Scores(FoldScore(folds), FoldScore(folds), 0.0, 0.0, None, None)
    return CandidateResult(candidate, scores, costs, {}, 1.0)


def test_the_quickest_within_a_standard_error_is_chosen():
    rows = [make_candidate("slow", 0.90, 30), make_candidate("quick", 0.895, 10, 0.02)]
    rows.append(make_candidate("poor", 0.7, 1))
    chosen, advice = choose_best(rows, None)
    assert chosen is rows[1] and "within a standard error of 0.900 of slow" in advice.reason
    assert [row.noise for row in compare_to_best(rows, None)] == [False, True, False]
    assert choose_best(rows, 5)[0] is rows[2]
    assert "none takes at most 0.5 ms (the quickest takes 1.0)" in choose_best(rows, 0.5)[1].reason


def test_a_significant_difference_decides():
    rows = [make_candidate("slow", 0.90, 30), make_candidate("quick", 0.85, 10)]
    chosen, advice = choose_best(rows, None)
    assert chosen is rows[0] and advice.reason == "it reaches 0.900, which no other does"


def test_differences_over_folds():
    """Worked out by hand: mean 0.02, variance 0.0001 of the differences, so an error of sqrt(0.45) * 0.01."""
    differences = np.array([0.01, 0.02, 0.02, 0.02, 0.03])
    found = compare_folds(differences, np.zeros(5))
    assert found.errors == pytest.approx(0.02 / np.sqrt((1 / 5 + 1 / 4) * differences.var(ddof=1)))
    assert compare_folds(differences, differences) == (0.0, 1.0)


def test_the_front_has_what_nothing_beats_in_both():
    points = [("best", 0.9, 30), ("beaten", 0.8, 20), ("middle", 0.85, 15), ("fast", 0.7, 5)]
    rows = compare_to_best([make_candidate(*point) for point in points], None)
    assert [row.front for row in rows] == [True, False, True, True]


def test_similarity_is_where_classes_separate_best():
    early = {"a": 0.9, "b": 0.7, "c": 0.6, "d": 0.6}
    assert assess_similarity(early, 1000)[1].answer == "different"
    assert assess_similarity({"a": 0.5, "b": 0.7, "c": 0.9, "d": 0.8}, 1000)[1].answer == "somewhat different"
    position, advice = assess_similarity({"a": 0.5, "b": 0.801, "c": 0.8}, 1000)  # less than a standard error
    assert (position, advice.answer) == (1.0, "similar")


@pytest.mark.parametrize(
    ("smallest", "probe", "position", "minutes", "finetune", "reason"),
    [
        (9, 0.8, 1.0, 5, False, "9 images to train on, fewer than 10"),
        (100, 0.999, 1.0, 5, False, "little is left to gain"),
        (100, 0.8, 1.0, 61, False, "about 61 minutes on this machine, more than the 60 allowed"),
        (100, 0.8, 0.5, 5, True, "its last blocks suit ImageNet better than your classes"),
    ],
)
def test_fine_tuning_is_advised_where_it_pays(smallest, probe, position, minutes, finetune, reason):
    chosen = replace(make_candidate("best", probe, 10), minutes=minutes)
    advised, advice = recommend_finetuning(chosen, smallest, position, 60)
    assert advised == finetune and reason in advice.reason


def test_the_scores_of_separable_features():
    codes = np.repeat(np.arange(2), 20)
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) + 9 * np.eye(6)[codes]
    folds = [(np.setdiff1d(np.arange(40), held), held) for held in (np.arange(0, 40, 2), np.arange(1, 40, 2))]
    scores = score_features(X, codes, folds)
    assert scores.ranking.folds.tolist() == [1, 1] and scores.leep is None


def test_a_recipe_that_cannot_be_measured_has_a_reason(workplace, monkeypatch):
    def fail(request):
        raise BackboneError("The benchmark was killed by signal 9 (too little memory?).")

    monkeypatch.setattr(measurements, "measure_costs", fail)
    done = recommend("mine.yaml", "--candidates", "efficientnet_lite0", "--most", 1)
    assert done.exit_code == BackboneError.exit_code
    assert "No backbone could be measured:\n  tiny at 32: " in done.output and "too little memory?" in done.output
