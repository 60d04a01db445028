"""Two devices end where one does: losses, weights, figures, and after an interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# TensorFlow divides the CPU only before it has computed anything.
PROGRAM = f"""
import sys
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, {str(Path(__file__).parent)!r})
import two_devices
two_devices.main()
"""


def run_on_two_devices(*cases):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PROGRAM, *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert results.pop("devices") == 2
    assert set(results) == set(cases)
    return results


@pytest.mark.slow
def test_two_devices_train_as_one_does():
    (result,) = run_on_two_devices("end to end").values()
    assert result["moved"] > 1e-5
    assert result["weights"] < 1e-3 * result["moved"]
    assert result["losses"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "suffix, then all",
        "uneven batches",
        "float16",
        "batch norm trains",
        "batch norm recomputed",
        "heads refitted",
        "rates by gradients",
    ],
)
def test_two_devices_train_as_one_does_in_each_case(case):
    (result,) = run_on_two_devices(case).values()
    loose = 30 if case == "float16" else 1
    assert result["moved"] > 1e-5
    assert result["weights"] < loose * 5e-3 * result["moved"]
    assert result["losses"] < loose * 1e-4


@pytest.mark.slow
def test_a_run_on_two_devices_that_was_interrupted_ends_with_the_same_bits():
    (result,) = run_on_two_devices("resumed").values()
    assert result["moved"] > 1e-5
    assert (result["weights"], result["losses"]) == (0, 0)
