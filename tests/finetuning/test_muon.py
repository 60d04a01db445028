"""A kernel moves as its matrix does, and what is no matrix as under AdamW."""

import keras
import numpy as np
import pytest

from tlkeras.config.schema import FineTuningConfig
from tlkeras.finetuning.optimizers import ConvMuon, scale_learning_rates
from tlkeras.training.builders.finetuning import make_optimizer


def move(optimizer, value, gradients, name="w"):
    variable = keras.Variable(value, name=name)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([gradient.reshape(value.shape)], [variable])
    return np.array(variable)


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 9, 3), (3, 2, 5)])
def test_a_kernel_moves_as_its_matrix(shape):
    kernel, gradients = draw(shape), [draw(shape, 1), draw(shape, 2)]
    matrix = kernel.reshape(-1, shape[-1])
    options = {"learning_rate": 0.1, "weight_decay": 0.01}
    moved = move(ConvMuon(**options), kernel, gradients)
    of_matrix = move(keras.optimizers.Muon(**options), matrix, gradients)
    np.testing.assert_allclose(moved.reshape(matrix.shape), of_matrix, atol=1e-6)
    assert np.abs(moved - move(keras.optimizers.Muon(**options), kernel, gradients)).max() > 1e-3


@pytest.mark.parametrize("shape", [(96, 16), (16, 96)])
@pytest.mark.parametrize("least", [1e-3, 1e-8, 0])
def test_a_gradient_of_few_directions_moves_a_kernel_as_its_matrix(shape, least):
    """Singular values from 1 to almost 0: rounding of the Gram matrix, whose values are their squares, stays small."""
    left, _, right = np.linalg.svd(draw(shape), full_matrices=False)
    values = np.geomspace(1, least, 16) if least else np.arange(16) < 4
    gradient, still = (left * values @ right).astype("float32"), np.zeros(shape, "float32")
    moved = move(ConvMuon(1.0, weight_decay=0.0), still, [gradient])
    np.testing.assert_allclose(moved, move(keras.optimizers.Muon(1.0, weight_decay=0.0), still, [gradient]), atol=1e-3)


def test_a_step_is_as_long_in_every_direction():
    """0.2 sqrt(24) times the rate, to what five Newton-Schulz iterations leave: 0.7 to 1.2 (Jordan et al.)."""
    moved = move(ConvMuon(learning_rate=1.0, weight_decay=0.0), np.zeros((2, 3, 4, 6), "float32"), [draw((24, 6))])
    lengths = np.linalg.svd(moved.reshape(24, 6), compute_uv=False) / (0.2 * np.sqrt(24))
    assert lengths.min() > 0.65 and lengths.max() < 1.25


@pytest.mark.parametrize(
    "shape, name",
    [((3, 3, 5, 1), "w"), ((7,), "w"), ((1, 1, 4, 6), "kept"), ((1, 4, 6), "Position_Embedding")],
)
def test_what_is_no_matrix_moves_as_under_adamw(shape, name):
    gradients = [draw(shape, 1), draw(shape, 2)]
    muon = ConvMuon(learning_rate=0.1, adam_weight_decay=0.01, exclude_layers=["kept"])
    adamw = keras.optimizers.AdamW(0.1, weight_decay=0.01)
    np.testing.assert_allclose(
        move(muon, draw(shape), gradients, name), move(adamw, draw(shape), gradients, name), rtol=1e-5
    )


def test_it_is_saved_with_rates_of_its_own(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D()])
    model.compile(scale_learning_rates(ConvMuon(0.01)), "mse")
    model.fit(draw((4, 8, 8, 3)), draw((4, 4)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, ConvMuon)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_nothing_decays_unless_the_recipe_says_so(name, decay):
    """By 0.5 times a rate of 0.1, twice, where the gradient is 0."""
    for shape in ((3,), (1, 1, 2, 3)):
        optimizer = make_optimizer(FineTuningConfig(optimizer=name, weight_decay=decay))
        optimizer.learning_rate = 0.1
        value, still = draw(shape), np.zeros(shape, "float32")
        np.testing.assert_allclose(move(optimizer, value, [still, still]), value * (1 - 0.1 * decay) ** 2, rtol=1e-6)
