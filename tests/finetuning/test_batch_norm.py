"""Recomputed statistics of batch norm: those of all batches, and nothing else changes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.errors import TlkerasError
from tlkeras.finetuning.freezing import recompute_batch_norm_statistics, run_in_inference


@pytest.fixture
def model():
    """Batch norm; dropout and batch norm that rest."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = layers.BatchNormalization(name="measured")(inputs)
    x = layers.BatchNormalization(name="other")(layers.Dropout(0.5)(layers.Dense(4, name="dense")(x)))
    return keras.Model(inputs, x)


ROWS = np.random.default_rng(0).normal(3, 2, (10, 3)).astype("float32")


@pytest.mark.parametrize("resting", [False, True])
def test_the_first_layer_gets_those_of_all_rows(model, resting):
    """However they are cut into batches."""
    norm = model.get_layer("measured")
    norm.trainable = not resting
    run_in_inference(norm, resting)
    before = {variable.path: np.array(variable) for variable in model.variables}
    recompute_batch_norm_statistics(lambda rows: model(rows, training=False), [norm], [ROWS[:4], ROWS[4:8], ROWS[8:]])
    changed = [path for path, value in before.items() if not np.array_equal(value, get(model, path))]
    assert changed == ["measured/moving_mean", "measured/moving_variance"]
    assert np.array(norm.moving_mean) == pytest.approx(ROWS.mean(axis=0), rel=1e-5)
    assert np.array(norm.moving_variance) == pytest.approx(ROWS.var(axis=0), rel=1e-5)
    assert norm.momentum == 0.99
    assert norm.trainable is not resting
    model(ROWS, training=True)
    assert np.allclose(norm.moving_mean, ROWS.mean(axis=0), rtol=1e-5) is True


def get(model: keras.Model, path: str) -> np.ndarray:
    return np.array(next(variable for variable in model.variables if variable.path == path))


def test_layers_behind_others_by_hand(model):
    """The inputs of the second one are normalised by their batch."""
    norms = [model.get_layer("measured"), model.get_layer("other")]
    batch = ROWS[:5].astype(np.float64)
    normalised = (batch - batch.mean(axis=0)) / np.sqrt(batch.var(axis=0) + 1e-3)
    kernel = np.array(model.get_layer("dense").kernel, np.float64)
    recompute_batch_norm_statistics(lambda rows: model(rows, training=False), norms, [ROWS[:5]])
    assert np.array(norms[1].moving_variance) == pytest.approx((normalised @ kernel).var(axis=0), rel=1e-4)


def test_no_batches(model):
    with pytest.raises(TlkerasError, match=r"no batches to recompute"):
        recompute_batch_norm_statistics(model, [model.get_layer("measured")], [])
    assert model.get_layer("measured").momentum == 0.99
