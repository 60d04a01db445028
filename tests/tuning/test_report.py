"""Reports of searches: without TensorFlow, from their folder alone."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.errors import RecipeError
from tlkeras.runs.directory import create_run
from tlkeras.tuning.report import measure_importance

RECIPE = """\
name: tuned
data: {source: photos}
backbone: {name: tiny, weights: none}
tuning:
  objective: accuracy
  space:
    head.C: {min: 1.0e-4, max: 1.0, sampling: log}
    head.class_weight: [none, balanced]
"""


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The folder of a search of twelve trials: one is repeated, one failed."""
    monkeypatch.chdir(tmp_path)
    trials = [
        {
            "name": f"{number:02d}",
            "values": {"head.C": 10.0 ** -(number % 4), "head.class_weight": ["none", "balanced"][number % 2]},
            "starts": 1,
            "repeats": {"1": {"accuracy": 0.7}} if number == 3 else {},
            "status": "completed",
            "figures": {"loss": 1.0, "accuracy": 0.5 + number / 100, "roc_auc": 0.5, "seconds": 0.1},
        }
        for number in range(12)
    ]
    failed = {**trials[0], "name": "12", "status": "failed", "error": "its accuracy is nan"}
    del failed["figures"]
    run = create_run(tmp_path / "runs/tuning", "tuned")
    run.write_text("recipe.yaml", RECIPE)
    run.write_json("search.json", {"trials": [*trials, failed], "proposals": {}})
    run.finish()
    return run.path


def test_finalists_come_first_and_failures_are_listed(stored):
    result = tlkeras.report_tuning("tuned-01")
    assert [trial.name for trial in result.trials[:3]] == ["03", "11", "10"]
    assert result.trials[0].over_seeds.mean == pytest.approx(0.615) and result.trials[0].over_seeds.seeds == 2
    assert [(trial.name, trial.error) for trial in result.failed] == [("12", "its accuracy is nan")]
    assert sum(result.importance.values()) == pytest.approx(1)
    assert [path.rpartition("/")[2] for path in result.images] == ["parallel.png", "importance.png"]
    plain = result.to_dict()
    assert "run" not in plain and plain["best"] is None and "error" not in plain["trials"][0]


def test_the_command_has_help_of_its_own(stored):
    done = CliRunner().invoke(main, ["tune", "report", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trials"][0]["over_seeds"] == {
        "mean": pytest.approx(0.615),
        "spread": pytest.approx(0.1202, abs=1e-4),
        "seeds": 2,
    }
    shown = CliRunner().invoke(main, ["tune", "report", "tuned-01"])
    assert "12 trials" in shown.stdout and "its accuracy is nan" in shown.stdout and "Importance: " in shown.stdout
    about = CliRunner().invoke(main, ["tune", "report", "--help"]).stdout
    assert "tune report [OPTIONS] [SEARCH]" in about and "--set" not in about
    about = CliRunner().invoke(main, ["tune", "--help"]).stdout
    assert "tune [OPTIONS] RECIPE" in about and "report  Show the trials" in about


def test_a_run_is_no_search(tmp_path):
    create_run(tmp_path / "tuning", "other")
    with pytest.raises(RecipeError, match="is not a search.*tlkeras tune RECIPE"):
        tlkeras.report_tuning("other-01", runs=tmp_path)


def test_a_report_needs_no_tensorflow(stored):
    code = "import sys, tlkeras; tlkeras.report_tuning(); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importance_finds_the_key_that_matters():
    space = {"a.x": SearchDimension(min=0.0, max=1.0), "b.y": SearchDimension(values=("u", "v"))}
    trials = [{"a.x": number / 40, "b.y": "uv"[number % 2]} for number in range(40)]
    found = measure_importance(space, trials, [trial["a.x"] ** 2 for trial in trials])
    assert found["a.x"] > 0.95
    assert sum(found.values()) == pytest.approx(1)
