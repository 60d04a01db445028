"""Exports with calibration built in predict as the run does, scaled."""

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.errors import RunError
from tlkeras.evaluation.calibration import LogitScaling
from tlkeras.exporting.inference_graph import build_scalings, find_scalings
from tlkeras.runs.directory import Run


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("hidden", [False, True])
def test_scaled_logits_in_one_graph(kind, hidden):
    """Also where no layer gives the logits."""
    inputs = keras.Input((4,))
    if hidden:
        model = keras.Model(inputs, keras.layers.Dense(3, activation=kind)(inputs))
    else:
        model = keras.Model(inputs, keras.layers.Activation(kind)(keras.layers.Dense(3)(inputs)))
    scaling = LogitScaling("vector", np.array([0.5, 2.0, 1.0]), np.array([0.1, 0.0, -0.3]), kind == "sigmoid")
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = scaling.apply(model.predict(x, verbose=0))
    np.testing.assert_allclose(build_scalings(model, [scaling]).predict(x, verbose=0), expected, atol=1e-5)


def test_export_carries_the_scaling(trained, tmp_path):
    """A linear head without a validation split is calibrated on out-of-fold predictions of training images."""
    run = Run(trained)
    ((scaling,), sentence) = find_scalings(run, "temperature")
    assert "24 training images" in sentence
    result = tlkeras.export(str(trained), tmp_path / "models", calibrate="temperature")
    assert result.notes[0] == sentence
    import tensorflow as tf

    signature = tf.saved_model.load(result.path).signatures["uint8"]
    from tlkeras.data.decoding import decode_file

    sample = run.read_json("samples.json")[0]
    image = decode_file(str(trained / sample["file"]), 32, "stretch")
    predicted = signature(tf.constant(image[None]))["probabilities"].numpy()[0]
    np.testing.assert_allclose(predicted, scaling.apply(np.array([sample["probabilities"]]))[0], atol=1e-3)


def test_fine_tuned_runs_need_a_validation_split(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "mine-01")
    run = Run(tmp_path / "mine-01")
    run.update_manifest(finetuning={"stages": []})
    with pytest.raises(RunError, match="no predictions of 'label' to fit a calibration on.*data.validation"):
        find_scalings(run, "vector")
