"""Keras on another backend is refused in one sentence, at every door that needs TensorFlow."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.errors import TlkerasError
from tlkeras.finetuning import (
    GradualUnfreezing,
    Schedule,
    Stage,
    find_learning_rate,
    recompute_batch_norm_statistics,
    scale_learning_rates,
)

SCHEDULE = Schedule((Stage("head", 0, 0.1, epochs=1),), minimise=True)


def make_model():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    model.compile("sgd", "mse")
    return model


def explain():
    from tlkeras.evaluation.attribution import Explainer

    Explainer(make_model())


def augment():
    from tlkeras.data.augmentation.layers import RandomAugmentation

    RandomAugmentation("flip")


def extract():
    from tlkeras.features import extract

    extract(make_model(), [])


def adapt():
    from tlkeras.adaptation import DomainAdaptedHead

    X = np.zeros((4, 2))
    DomainAdaptedHead("dann", None).fit(X, np.array([0, 1, 0, 1]), target=X)


DOORS = {
    "extract": extract,
    "AdaptedHead": adapt,
    "GradualUnfreezing": lambda: GradualUnfreezing(SCHEDULE),
    "scale_learning_rates": lambda: scale_learning_rates("adam"),
    "find_learning_rate": lambda: find_learning_rate(make_model(), []),
    "recompute_batch_norm_statistics": lambda: recompute_batch_norm_statistics(np.asarray, [], []),
    "Explainer": explain,
    "RandomAugmentation": augment,
}


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("door", DOORS)
def test_other_backends_are_refused(door, backend, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(
        TlkerasError, match=f"^{door} needs the TensorFlow .*Received: {backend}. Set KERAS_BACKEND=tens"
    ):
        DOORS[door]()


def test_verbs_and_commands_refuse_before_anything_is_imported(tmp_path):
    """In processes of their own, with a backend that Keras has without any other package."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "numpy",
        "PYTHONPATH": os.path.dirname(os.path.dirname(tlkeras.__file__)),
    }
    for code in ("import tlkeras; tlkeras.train", "from tlkeras.cli.main import main; main(['train', 'quickstart'])"):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode
        assert "tlkeras needs the TensorFlow backend of Keras. Received: numpy." in done.stderr + done.stdout
