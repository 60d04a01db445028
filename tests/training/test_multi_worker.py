"""Two processes of the command line train together on this machine, and go on after one of them was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tlkeras.runs.directory import list_runs

RECIPE = """
name: together
data: {source: photos, validation: 0.25, test: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none, size: 32}
augmentation: {policy: flip}
training: {strategy: multi_worker}
finetuning:
  batch_size: 8
  optimizer: sgd
  ema: 0.9
  keep: last
  stages:
    - {name: top, unfreeze: 1 blocks, epochs: 1, learning_rate: 1.0e-2, backbone_lr_multiplier: 0.5}
    - {name: all, unfreeze: all, epochs: 2, learning_rate: 1.0e-2}
evaluation: {bootstrap_samples: 100}
"""
PATIENCE = 600.0  # seconds for one command on a busy machine


@pytest.fixture
def together(workplace):
    (workplace / "together.yaml").write_text(RECIPE)
    return workplace


def find_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(folder, addresses, index, *arguments):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TLKERAS_WAIT": "300"}
    command = [sys.executable, "-c", "from tlkeras.cli.main import main; main()", "train", *arguments, "--json"]
    with open(folder / f"out{index}.json", "wb") as out, open(folder / f"err{index}.txt", "wb") as errors:
        return subprocess.Popen(command, stdout=out, stderr=errors, env=environment, cwd=folder)


def start_both(folder, *arguments):
    addresses = find_ports(2)
    return [start(folder, addresses, index, *arguments) for index in range(2)]


def finish(folder, processes):
    codes = [process.wait(PATIENCE) for process in processes]
    assert codes == [0, 0], [(folder / f"err{index}.txt").read_text()[-1500:] for index in range(2)]
    return [json.loads((folder / f"out{index}.json").read_text()) for index in range(2)]


def read_weights(run):
    return keras.models.load_model(run / "model.keras", compile=False).get_weights()


def read_trained(folder, name):
    return json.loads((folder / "runs" / name / "manifest.json").read_text())["finetuning"]


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_and_only_the_first_writes(together):
    chief, worker = finish(together, start_both(together, "together.yaml"))
    import tlkeras

    single = tlkeras.evaluate(tlkeras.train("together.yaml", set={"training.strategy": "none"}))
    assert [run.name for run in list_runs(together / "runs")] == ["together-01", "together-02"]
    trained = read_trained(together, "together-01")
    assert (worker["worker"], worker["workers"], worker["weights"]) == (1, 2, trained["weights"])
    assert trained["weights"] != read_trained(together, "together-02")["weights"]  # sums of another order
    moved = 0.0
    for ours, theirs in zip(
        read_weights(together / "runs/together-01"), read_weights(together / single.path), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        moved = max(moved, float(np.abs(theirs).max()))
    assert moved > 0.1
    assert chief["metrics"]["accuracy"] == single.metrics["accuracy"].to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_at_once_and_the_restarted_job_resumes(victim, together):
    long = RECIPE.replace("epochs: 2", "epochs: 60")
    (together / "together.yaml").write_text(long)
    processes = start_both(together, "together.yaml")
    end = time.monotonic() + PATIENCE
    while not list(together.glob("runs/together-01/checkpoints/step-*")):
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    assert processes[1 - victim].wait(120) == 5
    assert time.monotonic() - begun < 60
    assert "another one is gone" in (together / f"err{1 - victim}.txt").read_text()
    done, worker = finish(together, start_both(together, "--resume", "together-01"))
    assert done["path"].endswith("together-01")
    trained = read_trained(together, "together-01")
    assert worker["weights"] == trained["weights"]
    history = (together / "runs/together-01/history.csv").read_text().splitlines()
    assert len(history) == 1 + 61


@pytest.mark.slow
def test_another_recipe_on_one_machine_is_refused_on_both(together):
    addresses = find_ports(2)
    processes = [start(together, addresses, i, "together.yaml", "--set", f"training.seed={i}") for i in range(2)]
    assert [process.wait(PATIENCE) for process in processes] == [5, 5]
    for index in range(2):
        assert "worker 1: recipe is" in (together / f"err{index}.txt").read_text()
