"""Workers of a data service give the images that this machine would have decoded, in the same order."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import tlkeras
from tlkeras.config.recipe import load_recipe
from tlkeras.data.augmentation.policies import make_policy
from tlkeras.data.augmentation.views import choose_views, digest_to_seed, make_view_fn
from tlkeras.data.pipeline import (
    _MAX_EARLY,
    _sort_by_index,
    check_data_service,
    make_data_service_dataset,
    make_image_dataset,
    start_data_worker,
)
from tlkeras.errors import DataError, RecipeError, RunError


@pytest.fixture(scope="module")
def address():
    """The service of this process: a dispatcher and two workers."""
    address, running = start_data_worker(host="localhost", port=0)
    running += start_data_worker(join=address, host="localhost")[1]
    yield address


@pytest.fixture
def files(tmp_path, draw_more_photos):
    draw_more_photos(tmp_path / "photos")
    (tmp_path / "photos" / "day" / "0-003x.png").write_bytes(b"\x89PNG, and no more")
    return sorted(str(path) for path in (tmp_path / "photos").rglob("*.png"))


def same(streams) -> bool:
    pairs = zip(*streams, strict=True)
    return all(np.array_equal(a, b) for batches in pairs for a, b in zip(*batches, strict=True))


def test_workers_decode_the_same(address, files):
    keys, policy = digest_to_seed([f"{number:064x}" for number in range(len(files))]), make_policy("flip")
    numbers = choose_views(policy, None, keys, 3, seed=5)
    request = (files, 24, "stretch", 5)
    for _ in range(2):  # each epoch is a stream of its own
        augment = make_view_fn(policy, keys, numbers, 5)
        here = make_image_dataset(*request, augment=augment).as_numpy_iterator()
        assert same([make_data_service_dataset(address, *request, augment=augment), here])


def test_images_are_sorted_by_index():
    images = {index: np.full(1, index) for index in range(6)}
    decoded: list[int] = []

    def decode_here(index):
        decoded.append(index)
        return None if index == 5 else images[index]

    arriving = iter([(2, images[2]), (0, images[0]), (3, images[3])])
    assert [index for index, _ in _sort_by_index(arriving, 6, decode_here)] == [0, 1, 2, 3, 4]
    assert decoded == [1, 4, 5]  # lost with a worker, and unreadable
    silent = iter([(2, images[2]), None, (1, images[1]), (3, images[3]), None, None])
    assert [index for index, _ in _sort_by_index(silent, 6, decode_here)] == [0, 1, 2, 3, 4]
    assert decoded[3:] == [0, 1, 4, 5]
    many = ((index, np.zeros(1)) for index in range(1, 3 * _MAX_EARLY))
    ordered = _sort_by_index(many, 3 * _MAX_EARLY, lambda index: np.ones(1))
    assert next(ordered)[0] == 0 and next(many)[0] <= _MAX_EARLY + 3  # no waiting to the end for one


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing(tmp_path, files):
    code = "from tlkeras.data.pipeline import start_data_worker; import sys, time\n"
    code += "running = start_data_worker(sys.argv[1], 'localhost'); print('ready', flush=True); time.sleep(300)"
    address, _running = start_data_worker(host="localhost", port=0)
    worker = subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert worker.stdout.readline()
        many = files * 60
        stream = make_data_service_dataset(address, many, 96, "stretch", 8)
        first = [next(stream) for _ in range(3)]
        os.kill(worker.pid, signal.SIGKILL)
        found = np.concatenate([index for index, _ in [*first, *stream]])
    finally:
        worker.kill()
    readable = [index for index, path in enumerate(many) if not path.endswith("x.png")]
    assert found.tolist() == readable


@pytest.mark.slow
def test_a_service_that_is_gone_costs_nothing_but_time(files, monkeypatch, caplog):
    """Nothing listens any more: after a timeout all images are decoded here."""
    monkeypatch.setattr("tlkeras.data.pipeline._TIMEOUT", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    here = make_image_dataset(files, 24, "stretch", 5).as_numpy_iterator()
    assert same([make_data_service_dataset(address, files, 24, "stretch", 5), here])
    assert "decoding them here" in caplog.text


@pytest.mark.slow
def test_training_with_a_data_service_is_the_same(address, workplace):
    stages = [{"name": "top", "unfreeze": 1, "epochs": 2, "learning_rate": 3e-3}]
    settings = {
        "finetuning": {"stages": stages, "cache": "off"},
        "augmentation.policy": "light",
        "data.validation": 0.2,
    }
    runs = [
        tlkeras.evaluate(tlkeras.train("mine.yaml", set={**settings, "training.data_service": where}))
        for where in (None, address)
    ]
    histories = []
    for run in runs:
        with open(f"{run.path}/history.csv", newline="") as file:
            histories.append(list(csv.reader(file)))
    assert histories[0] == histories[1] and len(histories[0]) == 3


def test_errors(address, workplace):
    with pytest.raises(
        RunError, match=r"No data service answers at this address.*Start one with: tlkeras data-service"
    ):
        check_data_service("localhost:1", ["a.png"])
    with pytest.raises(DataError, match="cannot read packed images.*Leave training.data_service out"):
        check_data_service(address, ["a.tfrecord@1+2"])
    with pytest.raises(RecipeError, match="HOST:PORT. Received: 'here'"):
        load_recipe("mine.yaml", {"training.data_service": "here"})
    with pytest.raises(RunError, match="The port is in use"):
        start_data_worker(port=int(address.rpartition(":")[2]))
    with pytest.raises(RunError, match="Start one with"):
        start_data_worker(join="localhost:1")


@pytest.mark.slow
def test_the_command_prints_its_address():
    command = [
        sys.executable,
        "-c",
        "from tlkeras.cli.main import main; main()",
        "data-service",
        "--host",
        "localhost",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("Decoding for --set training.data_service=localhost:")
        check_data_service(line.split("=")[1].split(".")[0], [])
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
