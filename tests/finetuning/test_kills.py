"""Runs of the command line that are killed again and again end with the bits of one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tlkeras
from tlkeras.runs.directory import Run, list_runs

RECIPE = """
name: killed
data: {source: sklearn-digits, validation: 0.15, limit: 400}
backbone: {name: tiny, weights: none, size: 32}
augmentation: {policy: flip}
finetuning:
  ema: 0.9
  stages:
    - {name: head, unfreeze: 0, epochs: 2, learning_rate: 1.0e-3}
    - {name: top, unfreeze: 2 blocks, epochs: 6, learning_rate: 1.0e-3, backbone_lr_multiplier: 0.5, layer_decay: 0.75}
    - {name: all, unfreeze: all, until: plateau, patience: 3, max_epochs: 12, learning_rate: 1.0e-3}
evaluation: {bootstrap_samples: 100}
"""
KILLS = 25
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT)
PATIENCE = 300.0  # seconds that one start of the command may take on a busy machine

Process = subprocess.Popen[bytes]


class Workplace:
    """A folder with a recipe, its runs, and a cache of its own, so that extraction is killed, too."""

    def __init__(self, folder: Path, recipe: str = RECIPE):
        folder.mkdir()
        self.folder, self.recipe, self.errors = folder, folder / "killed.yaml", folder / "errors.txt"
        self.recipe.write_text(recipe)

    def start(self) -> Process:
        """Start the command: resume the run that stopped, or make one."""
        run = self.newest()
        chosen = ["--resume", "latest"] if run and (run.path / "recipe.yaml").exists() else [str(self.recipe)]
        command = "from tlkeras.cli.main import main; main()"
        with self.errors.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", command, "train", *chosen, "--runs", str(self.folder)],
                env={**os.environ, "TLKERAS_CACHE": str(self.folder / "cache")},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def kill(self, wait: Wait, sent: signal.Signals, chance: random.Random, seconds: float) -> bool:
        """Start the command and send it a signal; return whether that came before its end."""
        process = self.start()
        wait(self, process, chance, seconds)
        process.send_signal(sent)
        status = process.wait(PATIENCE)
        assert status in (0, -sent, 128 + sent), self.errors.read_text()[-2000:]
        run = self.newest()
        return run is None or run.read_state() != "finished"

    def finish(self) -> None:
        """Run the command to its end."""
        assert self.start().wait(PATIENCE) == 0, self.errors.read_text()[-2000:]

    def finish_here(self) -> None:
        """Run it to its end in this process, which has TensorFlow loaded already."""
        tlkeras.train(str(self.recipe), runs=self.folder)

    def newest(self) -> Run | None:
        """Return the run made last."""
        return next(reversed(list_runs(self.folder)), None)

    def list_checkpoints(self, prefix: str = "step-") -> set[str]:
        """Names of the checkpoints, or with ".*-*-step-" of those that are being written."""
        return {path.name for path in self.folder.glob(f"killed-*/checkpoints/{prefix}*")}

    def read(self) -> tuple[list[np.ndarray], dict[str, bytes]]:
        """Return the weights and the tables of the run made last."""
        import keras

        run = self.newest()
        assert run is not None
        model = keras.models.load_model(run.path / "model.keras", compile=False)
        return model.get_weights(), {name: run.read_bytes(name) for name in ("history.csv", "predictions.csv")}


Wait = Callable[[Workplace, Process, random.Random, float], None]


def wait_for_start(place: Workplace, process: Process, chance: random.Random, seconds: float) -> None:
    """Wait for a moment of start-up or extraction; on a quick machine the first epochs are hit, too."""
    wait_until(process, lambda: False, chance.uniform(0.1, 0.4) * seconds)


def wait_for_clock(place: Workplace, process: Process, chance: random.Random, seconds: float) -> None:
    """Wait for any moment but the last ones."""
    wait_until(process, lambda: False, chance.uniform(0.1, 0.7) * seconds)


def wait_for_training(place: Workplace, process: Process, chance: random.Random, seconds: float) -> None:
    """Wait for a moment after at least one epoch of this process."""
    found = place.list_checkpoints()
    wait_until(process, lambda: bool(place.list_checkpoints() - found))
    wait_until(process, lambda: False, chance.uniform(0, seconds / 10))


def wait_for_saving(place: Workplace, process: Process, chance: random.Random, seconds: float) -> None:
    """Wait until one of the next checkpoints is being written."""
    for _ in range(chance.randrange(1, 4)):
        wait_until(process, lambda: not place.list_checkpoints(".*-*-step-"))
        wait_until(process, lambda: bool(place.list_checkpoints(".*-*-step-")))


def wait_until(process: Process, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for a condition, the end of the process, or so many seconds."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not condition():
        time.sleep(0.0005)


MOMENTS = (wait_for_start, wait_for_training, wait_for_saving, wait_for_clock, wait_for_saving)


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((wait_for_training, wait_for_saving, wait_for_training), marks=pytest.mark.slow, id="three times"),
        pytest.param((wait_for_saving,), id="while a checkpoint is written"),
    ],
)
def test_kills_leave_no_trace(moments, tmp_path):
    recipe = (
        RECIPE.replace("limit: 400", "limit: 120")
        .replace("epochs: 12", "epochs: 2")
        .replace("epochs: 2,", "epochs: 1,")
    )
    whole, place = Workplace(tmp_path / "whole", recipe), Workplace(tmp_path / "killed", recipe)
    whole.finish_here()
    chance = random.Random(0)
    for wait in moments:
        assert place.kill(wait, signal.SIGKILL, chance, 1.0), "the run ended before it was killed"
    tlkeras.resume(runs=place.folder)
    (expected, expected_tables), (weights, tables) = whole.read(), place.read()
    assert tables == expected_tables
    assert all(np.array_equal(a, b) for a, b in zip(expected, weights, strict=True))


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path):
    whole = Workplace(tmp_path / "whole")
    begun = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - begun
    expected_weights, expected_tables = whole.read()
    chance, kills = random.Random(0), []
    for number in range(KILLS):
        place = Workplace(tmp_path / f"killed-{number}")
        for wait in MOMENTS:
            sent = SIGNALS[len(kills) % len(SIGNALS)]
            if not place.kill(wait, sent, chance, seconds):
                break
            kills.append((wait.__name__, sent.name))
        else:
            place.finish()
        weights, tables = place.read()
        assert tables == expected_tables, kills
        assert all(np.array_equal(a, b) for a, b in zip(expected_weights, weights, strict=True)), kills
        if len(kills) >= KILLS:
            break
    assert len(kills) >= KILLS
    assert len(set(kills)) >= 6  # of the eight pairs of kind and signal
