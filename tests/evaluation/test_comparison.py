"""Paired differences: signs, who is better, and what cannot be compared."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from tlkeras.cli.main import main
from tlkeras.errors import RunError
from tlkeras.evaluation.comparison import PairedDifference, compare, compare_probabilities
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import load_predictions


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
    assert differences["accuracy"] == PairedDifference(-1.0, -1.0, -1.0, better=False)
    assert differences["log_loss"].value > 0 and differences["log_loss"].better is False
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
