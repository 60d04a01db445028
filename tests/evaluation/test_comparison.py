"""Paired differences: signs, who is better, and what cannot be compared."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import t

from tlkeras.cli.main import main
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError
from tlkeras.evaluation.comparison import PairedDifference, compare, compare_probabilities
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions, load_predictions


@pytest.fixture
def pair(trained, tmp_path, monkeypatch):
    """Two runs on the same images, the second of which is wrong on all of them."""
    runs = []
    for name in ("mine-01", "mine-02"):
        shutil.copytree(trained, tmp_path / "runs" / name)
        runs.append(Run(tmp_path / "runs" / name))
    stored = runs[1].read_arrays("predictions.npz")
    stored["probabilities"] = stored["probabilities"][:, ::-1]
    runs[1].write_arrays("predictions.npz", **stored)
    monkeypatch.chdir(tmp_path)
    return runs


def test_the_second_is_worse(pair):
    compared = compare(pair).tasks["label"]
    differences = compared.differences["mine-02"]
    limit = 1 - 2 * 0.025 ** (1 / 8)  # of eight images, each of which is for the first
    assert differences["accuracy"] == PairedDifference(-1.0, -1.0, pytest.approx(limit), better=False)
    assert differences["log_loss"].value > 0 and differences["log_loss"].better is None
    assert differences["log_loss"].reason == "8 images are too few to be resampled"
    assert compared.metrics["mine-01"]["accuracy"].value == 1.0


def test_a_run_against_itself_is_neither(pair):
    (predictions,) = load_predictions(pair[0])
    for difference in compare_probabilities(predictions, predictions.probabilities, resamples=50).values():
        assert (difference.value == 0.0 or np.isnan(difference.value)) and difference.better is None


def test_only_common_images_count(pair):
    stored = pair[1].read_arrays("predictions.npz")
    shorter = {name: values if name == "prior" else values[::-1][:5] for name, values in stored.items()}
    pair[1].write_arrays("predictions.npz", **shorter)
    result = compare(pair)
    assert result.images == 5
    assert result.notes == ["Compared on the 5 images that all runs held out, of up to 8."]
    assert result.tasks["label"].differences["mine-02"]["accuracy"].value == -1.0


def test_what_cannot_be_compared(pair):
    with pytest.raises(RunError, match="two runs or more"):
        compare(pair[:1])
    stored = pair[1].read_arrays("predictions.npz")
    pair[1].write_arrays("predictions.npz", **{**stored, "keys": np.char.add(stored["keys"], "x")})
    with pytest.raises(RunError, match="share no held-out images.*data.seed"):
        compare(pair)
    pair[1].write_json("classes.json", {"label": ["day", "dusk"]})
    with pytest.raises(RunError, match="predict different tasks or classes"):
        compare(pair)


def test_command(pair):
    done = CliRunner().invoke(main, ["compare", "mine-01", "mine-02"])
    assert done.exit_code == 0, done.output
    assert "mine-02 against mine-01" in done.output and "worse" in done.output
    result = json.loads(CliRunner().invoke(main, ["compare", "mine-01", "mine-02", "--json"]).stdout)
    assert result["runs"][0]["name"] == "mine-01"


def test_groups_are_resampled_as_a_whole():
    """Against the same t-interval written as a loop over groups, with weights."""
    random = np.random.default_rng(3)
    count, size = 120, 6
    group = np.array([f"g{row // size}" for row in range(count)])
    targets, weights = random.integers(0, 2, count), random.uniform(0.5, 1.5, count)
    mine, other = random.dirichlet(np.ones(2), count), random.dirichlet(np.ones(2), count)
    task = Task("label", ("day", "night"))
    predictions = Predictions(task, group, targets, mine, weights, np.array([0.5, 0.5]), {"group": group})
    found = compare_probabilities(predictions, other, resamples=4000)["accuracy"]
    gain = (mine.argmax(1) == targets).astype(float) - (other.argmax(1) == targets)
    value = float(weights @ gain / weights.sum())
    sums, totals = [], []
    for name in dict.fromkeys(group.tolist()):
        rows = group == name
        totals.append(weights[rows].sum())
        sums.append(float(weights[rows] @ (gain[rows] - value)))
    effective = sum(totals) ** 2 / np.square(totals).sum()
    error = np.sqrt(np.square(sums).sum() * effective / (effective - 1)) / sum(totals)
    assert found.value == pytest.approx(value)
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.975, effective - 1) * error, rel=0.06)
    alone = replace(predictions, slices={})
    assert compare_probabilities(alone, other, resamples=4000)["accuracy"] != found


def test_groups_of_one_run_hold_for_all(pair):
    for run, name in zip(pair, ("a", ""), strict=True):
        stored = run.read_arrays("predictions.npz")
        stored["group"] = np.array([f"{name}{row // 2}" if name else "" for row in range(8)])
        run.write_arrays("predictions.npz", **stored)
    result = compare(pair)
    assert "Groups of images were resampled, not single images." in result.notes
    assert result.tasks["label"].differences["mine-02"]["accuracy"].reason == "4 groups are too few to be resampled"
