"""Searches from recipe to run: stored trial by trial, resumed, failures listed with their reasons."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RunError
from tlkeras.tuning.objective import TrialRunner
from tlkeras.tuning.search import SearchState

TUNED = """\
data: {source: photos, test: 0.25, validation: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none}
head: {kind: deep, widths: [4]}
training: {epochs: 2}
evaluation: {bootstrap_samples: 100}
tuning:
  max_trials: 4
  confirm_top: 1
  confirm_seeds: 2
  space:
    head.dropout: {min: 0.0, max: 0.5}
    training.learning_rate: {min: 1.0e-4, max: 1.0e-2, sampling: log}
"""


@pytest.fixture
def tuned(workplace):
    (workplace / "tuned.yaml").write_text(TUNED)
    return workplace


@pytest.fixture
def fake(monkeypatch):
    """Trials that take no time: the loss is the learning rate. The rates and seeds that were scored."""
    scored = []

    def score(self, recipe):
        scored.append((recipe.training.learning_rate, recipe.training.seed))
        return {"loss": recipe.training.learning_rate, "accuracy": 0.5, "roc_auc": 0.5, "seconds": 0.1}

    monkeypatch.setattr(TrialRunner, "score", score)
    monkeypatch.setattr(TrialRunner, "prepare", lambda self, recipe, boundaries: 0)
    return scored


def read_search(folder):
    return json.loads((folder / "runs/tuning/tuned-01/search.json").read_text())["trials"]


def test_a_search_ends_in_a_recipe_a_run_and_images(tuned):
    done = CliRunner().invoke(main, ["--quiet", "tune", "tuned.yaml"])
    assert done.exit_code == 0, done.output
    for text in (
        "runs/tuning/tuned-01: 4 trials",
        "validation loss",
        "over seeds",
        "Best recipe: ",
        "tuned-best-01: 8 held",
    ):
        assert text in done.stdout
    trials = read_search(tuned)
    best = min(trials, key=lambda trial: trial["figures"]["loss"])
    recipe = load_recipe("runs/tuning/tuned-01/best.yaml")
    assert recipe.training.learning_rate == best["values"]["training.learning_rate"]
    assert len(best["repeats"]) == 1
    assert Path("runs/tuning/tuned-01/parallel.png").read_bytes().startswith(b"\x89PNG")
    assert Path("runs/tuning/tuned-01/trials.csv").read_text().count("\n") == 5
    assert yaml.safe_load(Path("runs/tuned-best-01/recipe.yaml").read_text())["tuning"] is None


def test_the_test_split_is_not_touched(tuned, monkeypatch):
    seen = []
    from tlkeras.training import builders

    original = builders.extract_features

    def watch(experiment, *arguments, **options):
        seen.extend(experiment.dataset.split.tolist())
        return original(experiment, *arguments, **options)

    monkeypatch.setattr(builders, "extract_features", watch)
    tlkeras.tune("tuned.yaml", {"tuning.max_trials": 1, "tuning.confirm_seeds": 1}, train_best=False)
    assert set(seen) == {"train", "validation"}


def test_an_interrupted_search_resumes_and_repeats_nothing(tuned, fake, monkeypatch):
    whole = tlkeras.tune("tuned.yaml", {"name": "whole"}, train_best=False)
    scored_whole = list(fake)
    fake.clear()
    quick = TrialRunner.score

    def stop(self, recipe):
        if len(fake) == 2:
            raise KeyboardInterrupt
        return quick(self, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRunner, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            tlkeras.tune("tuned.yaml", train_best=False)
    result = tlkeras.tune("tuned.yaml", train_best=False)
    assert result.path == "runs/tuning/tuned-01"
    assert fake == scored_whole
    assert [trial.values for trial in result.trials] == [trial.values for trial in whole.trials]


def test_a_finished_search_is_never_overwritten(tuned, fake):
    paths = [tlkeras.tune("tuned.yaml", train_best=False).path for _ in range(2)]
    assert paths == ["runs/tuning/tuned-01", "runs/tuning/tuned-02"]


def test_where_no_trial_works_the_reasons_are_given(tuned, fake, monkeypatch):
    def fail(self, recipe):
        raise ValueError("no such thing")

    monkeypatch.setattr(TrialRunner, "score", fail)
    done = CliRunner().invoke(main, ["--quiet", "tune", "tuned.yaml"])
    assert done.exit_code == RunError.exit_code
    assert "Every trial failed, 3 so far" in done.stderr
    assert "ValueError: no such thing" in done.stderr


def test_a_trial_that_fails_does_not_end_the_search(tuned, fake, monkeypatch):
    quick = TrialRunner.score

    def fail_once(self, recipe):
        figures = quick(self, recipe)
        return {**figures, "loss": float("nan")} if len(fake) == 1 else figures

    monkeypatch.setattr(TrialRunner, "score", fail_once)
    result = tlkeras.tune("tuned.yaml", train_best=False)
    assert [trial.error for trial in result.failed] == ["its loss is nan"]
    assert len(result.trials) == 3


def test_a_full_disk_keeps_completed_trials(tuned, fake, monkeypatch):
    write = SearchState.write

    def refuse(self):
        if len(fake) == 2:
            os.replace = full
        write(self)

    def full(*_):
        raise OSError(28, "No space left on device")

    real = os.replace
    monkeypatch.setattr(SearchState, "write", refuse)
    try:
        done = CliRunner().invoke(main, ["--quiet", "tune", "tuned.yaml"])
    finally:
        os.replace = real
    assert done.exit_code == 6
    assert "No space left on device" in done.stderr
    monkeypatch.setattr(SearchState, "write", write)
    assert len(tlkeras.tune("tuned.yaml", train_best=False).trials) == 4


def start(*options):
    code = "from tlkeras.cli.main import main; main()"
    command = [sys.executable, "-c", code, "--quiet", "tune", "tuned.yaml", "--no-train", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=240):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


def count_ended():
    try:
        stored = json.loads(Path("runs/tuning/tuned-01/search.json").read_text())
    except (OSError, ValueError):
        return 0
    return sum(trial["status"] != "running" for trial in stored["trials"])


@pytest.mark.slow
def test_kill_9_of_the_search_loses_and_repeats_nothing(tuned):
    process = start("--set", "tuning.max_trials=8")
    wait_for(lambda: count_ended() >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {trial["name"]: trial for trial in read_search(tuned) if trial["status"] == "completed"}
    assert len(before) >= 3
    again = start("--set", "tuning.max_trials=8")
    assert again.wait() == 0, again.stderr.read()
    after = {trial["name"]: trial for trial in read_search(tuned)}
    assert len(after) == 8
    for name, trial in before.items():
        assert after[name]["figures"] == trial["figures"]
        assert after[name]["starts"] == 1


@pytest.mark.slow
def test_kill_9_of_a_worker_fails_its_trial_with_the_signal(tuned):
    process = start("--set", "tuning.max_trials=8", "--set", "tuning.confirm_seeds=1", "--workers", "2")
    wait_for(lambda: count_ended() >= 2, process)
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    pids = [int(line.split()[0]) for line in listed.stdout.splitlines() if "tlkeras.tuning.workers" in line]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    trials = read_search(tuned)
    assert len(trials) == 8
    failed = [trial["error"] for trial in trials if trial["status"] == "failed"]
    assert len(failed) <= 1
    assert all("was killed by signal 9" in error for error in failed)


@pytest.mark.slow
def test_ratios_and_depths_are_searched_from_the_cut_that_all_trials_share(tuned):
    stages = [{"name": "top", "unfreeze": 1, "epochs": 1, "learning_rate": 1e-3}]
    space = {
        "finetuning.stages.top.unfreeze": [1, 2],
        "finetuning.stages.top.backbone_lr_multiplier": {"min": 0.1, "max": 1.0},
        "finetuning.stages.top.layer_decay": {"min": 0.5, "max": 1.0},
    }
    change = {"head": {"kind": "linear"}, "finetuning": {"stages": stages}, "tuning.space": space}
    result = tlkeras.tune("tuned.yaml", change)
    trials = result.trials
    assert len(trials) == 4 and all(trial.status == "completed" for trial in trials)
    assert {trial.values["finetuning.stages.top.unfreeze"] for trial in trials} == {1, 2}
    (stage,) = load_recipe(str(Path(result.path) / "best.yaml")).finetuning.stages
    best = min(trials, key=lambda trial: trial.score("loss"))
    assert stage.layer_decay == best.values["finetuning.stages.top.layer_decay"]
    assert Path("runs", result.run, "model.keras").exists()


def test_check_examines_the_space_too(tuned):
    wrong = {"tuning.space": {"head.dropouts": [0.1], "training.learning_rate": [-1.0]}}
    problem = "\n".join(tlkeras.check("tuned.yaml", wrong).problems)
    assert "head.dropouts" in problem and "training.learning_rate = -1.0" in problem
