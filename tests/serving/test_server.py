"""Versions that come and go under a running server, limits, and the command."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.errors import ExportError, MissingExtraError, ResourceError
from tlkeras.serving.models import ServeOptions
from tlkeras.serving.server import Server


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def copy_version(exported, base, number):
    """Publish as `export` does: written under another name, then renamed."""
    shutil.copytree(exported.path, base / f".tmp-{number}")
    os.rename(base / f".tmp-{number}", base / str(number))


@pytest.mark.slow
def test_a_new_version_is_swapped_in_without_a_failure_and_a_bad_one_is_not(exported, samples, tmp_path, run_server):
    base = tmp_path / "photos"
    base.mkdir()
    copy_version(exported, base, 1)
    with run_server(base) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/photos"
        body = {"instances": [{"b64": base64.b64encode(samples[0][0]).decode()}]}
        codes, stop = [], threading.Event()

        def send():
            with requests.Session() as session:
                while not stop.is_set():
                    codes.append(session.post(f"{url}:predict", json=body, timeout=60).status_code)

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        copy_version(exported, base, 2)
        wait_for(lambda: sorted(server.model.versions) == [2])
        (base / "3").mkdir()
        (base / "3/saved_model.pb").write_bytes(b"junk")
        wait_for(lambda: server.model.states.get(3) and server.model.states[3].name == "END")
        stop.set()
        for thread in threads:
            thread.join()
        assert codes and set(codes) == {200}
        states = requests.get(url, timeout=10).json()["model_version_status"]
        assert [(row["version"], row["state"]) for row in states] == [("3", "END"), ("2", "AVAILABLE"), ("1", "END")]
        assert states[0]["status"]["error_code"] != "OK" and states[0]["status"]["error_message"]


def test_limits_of_concurrency_and_time(exported, samples, run_server):
    body = {"instances": [{"b64": base64.b64encode(samples[0][0]).decode()}]}
    with run_server(Path(exported.path).parent, timeout=1e-6) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/photos:predict"
        response = requests.post(url, json=body, timeout=60)
        assert response.status_code == 504 and "Deadline exceeded" in response.json()["error"]
        server.model.options = replace(server.model.options, timeout=30, max_requests=0)
        response = requests.post(url, json=body, timeout=60)
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.json() == {"error": "Too many concurrent requests"}


def test_a_folder_without_versions_and_a_port_that_is_taken(exported, server, tmp_path):
    with pytest.raises(ExportError, match=r"^\S+ holds no exported model.*tlkeras export RUN --to"):
        Server(tmp_path, ServeOptions())
    base = Path(exported.path).parent
    with pytest.raises(ResourceError, match="Cannot listen on .*--rest-port"):
        Server(base, ServeOptions(rest_port=server.rest_port))
    done = CliRunner().invoke(main, ["serve", str(base), "--rest-port", str(server.rest_port), "--grpc-port", "0"])
    assert done.exit_code == 6 and "Cannot listen on" in done.stderr
    assert CliRunner().invoke(main, ["serve", str(base), "--label", "stable"]).exit_code == 2


def test_a_run_is_not_an_exported_model(trained):
    with pytest.raises(ExportError, match=f"{trained.name} is a run, not an exported model.*tlkeras export .*"):
        tlkeras.serve(trained)


def test_options_are_checked(exported, monkeypatch):
    with pytest.raises(TypeError, match="max_batch"):
        tlkeras.serve(exported.path, max_batch=8)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tlkeras\[serve\]"):
        tlkeras.serve(exported.path, max_batch_size=8)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(exported, samples):
    base = str(Path(exported.path).parent)
    command = [sys.executable, "-m", "tlkeras.cli.main", "serve", base, "--rest-port", "0", "--grpc-port", "0"]
    code = "import sys; from tlkeras.cli.main import main; main(sys.argv[1:])"
    command[1:3] = ["-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        printed = [process.stdout.readline() for _ in range(6)]
        assert "Serving photos, version 1" in printed[0] and "Production: TensorFlow Serving" in printed[5]
        url = printed[2].split()[1]
        body = {"instances": [{"b64": base64.b64encode(samples[0][0]).decode()}]}
        assert requests.post(url, json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
