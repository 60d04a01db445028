"""Searches over machines: workers that come, go, die, and differ; a chief that always ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tlkeras.config.recipe import load_recipe
from tlkeras.errors import RecipeError, ResourceError, RunError, TlkerasError
from tlkeras.tuning import remote_workers
from tlkeras.tuning.remote_workers import Machines, Place, identify, read_place, serve_chief

SPACE = "tuning: {max_trials: 6, confirm_top: 1, confirm_seeds: 1, space: {head.C: {min: 1.0e-4, max: 1.0, sampling: log}}}\n"


@pytest.fixture
def recipe(workplace):
    (workplace / "tuned.yaml").write_text(
        (workplace / "mine.yaml").read_text().replace("test: 0.25,", "test: 0.25, validation: 0.25,") + SPACE
    )
    return load_recipe("tuned.yaml")


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Quick:
    """An evaluator whose trials take no time; one of them cannot be done."""

    def score(self, recipe):
        if recipe.head.C == 13.0:
            raise TlkerasError("No luck.")
        return {"loss": recipe.head.C, "seconds": 0.1}


def test_workers_come_by_themselves_and_are_told_when_it_is_over(recipe, address):
    chief = Machines(Place("chief", address), identify(recipe))
    results = []
    threads = [
        threading.Thread(target=lambda name=name: results.append(serve_chief(Place(name, address), recipe, Quick())))
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    ended, values = [], [1.0, 13.0, 3.0]
    while len(ended) < 3:
        for worker in chief.names:
            if values and worker not in chief._tasks:
                chief.start(worker, f"trial-{len(values)}", {"head.C": values.pop(0)})
        if (end := chief.wait()) is not None:
            ended.append(end)
    chief.close()
    for thread in threads:
        thread.join(timeout=10)
    answers = {trial: answer for _, trial, answer in ended}
    assert answers["trial-3"]["loss"] == 1.0 and answers["trial-1"]["loss"] == 3.0
    assert answers["trial-2"] == {"error": "No luck."}  # which KerasTuner's own messages lose
    assert sum(result["trials"] for result in results) == 3 and sum(result["failed"] for result in results) == 1


def test_another_recipe_is_refused(recipe, address):
    chief = Machines(Place("chief", address), identify(recipe))
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 7})})
    with pytest.raises(RecipeError, match=r"the same recipe and version\. Received: the chief has recipe"):
        serve_chief(Place("one", address), other, Quick())
    assert chief.names == ()
    chief.close()


def test_a_silent_worker_has_failed_its_trial(recipe, address, monkeypatch):
    monkeypatch.setattr(remote_workers, "SILENCE", 0.6)
    chief = Machines(Place("chief", address), identify(recipe))
    chief.hear("one")
    assert chief.wait() is None
    chief.start("one", "trial-1", {})
    worker, trial, answer = chief.wait()
    assert (worker, trial) == ("one", "trial-1") and "was not heard of for 1 s" in answer["error"]
    chief.take("one", "trial-1", {"loss": 0.0})  # too late: somebody else may be at it
    assert chief.names == () and chief._ends.empty()
    chief.close()


def test_nobody_waits_for_ever(recipe, address, monkeypatch):
    monkeypatch.setattr(remote_workers, "PATIENCE", 0.5)
    chief = Machines(Place("chief", address), identify(recipe))
    with pytest.raises(RunError, match="A chief needs workers. Received: none for"):
        chief.wait()
    with pytest.raises(ResourceError, match="The chief's address must be free"):
        Machines(Place("chief", address.replace("127.0.0.1", "203.0.113.1")), identify(recipe))
    chief.close()
    with pytest.raises(RunError, match="A worker's chief must answer"):
        serve_chief(Place("one", address), recipe, Quick())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("one", "", ""), "ORACLE_IP is not set\n.*ORACLE_PORT is not set"),
        (("one", "localhost", "80000"), "'80000', not a port"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, values, sentence):
    for variable, value in zip(remote_workers.VARIABLES, values, strict=True):
        monkeypatch.setenv(variable, value)
    with pytest.raises(TlkerasError, match=f"(?s){sentence}"):
        read_place()


def test_without_these_variables_it_is_an_ordinary_search(monkeypatch):
    for variable in remote_workers.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert read_place() is None


def start(name, address):
    host, port = address.split(":")
    code = "from tlkeras.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--quiet", "tune", "tuned.yaml", "--no-train", "--set", "tuning.max_trials=12"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict(zip(remote_workers.VARIABLES, (name, host, port), strict=True))},
    )


def read_trials():
    try:
        return json.loads(Path("runs/tuning/tuned-01/search.json").read_text())["trials"]
    except (OSError, ValueError):
        return []


@pytest.mark.slow
def test_kill_9_of_a_worker_and_of_the_chief(recipe, address):
    """Real processes on loopback; the chief is killed, started again, and then one of its workers is killed."""
    chief, workers = start("chief", address), [start(name, address) for name in ("one", "two")]
    limit = time.monotonic() + 240
    while sum(trial["status"] == "completed" for trial in read_trials()) < 2:
        assert chief.poll() is None and time.monotonic() < limit, chief.stderr.read()
        time.sleep(0.02)
    chief.send_signal(signal.SIGKILL)
    chief.wait()
    kept = {trial["name"]: trial for trial in read_trials() if trial["status"] == "completed"}
    chief = start("chief", address)
    workers[0].send_signal(signal.SIGKILL)
    assert chief.wait(timeout=240) == 0, chief.stderr.read()
    assert workers[1].wait(timeout=60) == 0, workers[1].stderr.read()
    assert "of them failed" in workers[1].stdout.read()
    trials = {trial["name"]: trial for trial in read_trials()}
    assert len(trials) == 12
    assert all(trials[name]["figures"] == trial["figures"] and trial["starts"] == 1 for name, trial in kept.items())
    failed = [trial["error"] for trial in trials.values() if trial["status"] == "failed"]
    assert all("one was not heard of" in error for error in failed) and len(failed) <= 1
