"""The learning-rate range test: what it suggests, worked out by hand, and that it leaves nothing behind."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from tlkeras.errors import DataError, TlkerasError
from tlkeras.finetuning.lr_range_test import find_learning_rate, run_lr_sweep, suggest_learning_rate
from tlkeras.finetuning.optimizers import scale_learning_rates

X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def make_model(optimizer=None, dropout=0.3):
    """A net with all that a step can move: batch norm, dropout, moments, metrics."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    tensor = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="relu")(inputs))
    outputs = keras.layers.Dense(2)(keras.layers.Dropout(dropout)(tensor))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    return model


def list_batches():
    return [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 48, 8)]


def make_dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48, seed=7).batch(8).prefetch(2)


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        noise = np.random.normal(size=(8, 6))  # from the global state, as careless augmentation is
        return X[index * 8 : index * 8 + 8] + noise.astype("float32"), Y[index * 8 : index * 8 + 8]


def read_states(model):
    """Every variable of model, metrics and optimizer, and the state of the global generators."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    values = [np.array(variable) for variable in variables]
    states = random.getstate(), np.random.get_state()[1].tolist()
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return values, states, generator and np.array(generator.state).tolist()


def assert_same(first, second):
    assert len(first[0]) == len(second[0])
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert first[1:] == second[1:]


def train_on(model, batches, epochs=2):
    history = model.fit(batches, epochs=epochs, verbose=0, shuffle=False).history
    return (*read_states(model), history)


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_least_loss():
    rates = np.geomspace(1e-4, 1e1, 51)  # ten rates in a decade, means of seven
    losses = np.abs(np.arange(51) - 30) / 10 + 1
    found = suggest_learning_rate(rates.tolist(), losses.tolist())
    assert found.suggestion == pytest.approx(1e-2)  # least at the 31st, 1e-1
    assert "A tenth of 1.0e-01" in found.reason
    assert found.smoothed[30] == pytest.approx(1 + 2 * (0.1 + 0.2 + 0.3) / 7)
    assert found.smoothed[0] == pytest.approx(np.mean([4.0, 3.9, 3.8, 3.7]))


def test_where_nothing_can_be_suggested_it_says_why():
    rates = np.geomspace(1e-6, 1.0, 50).tolist()
    falling = suggest_learning_rate(rates, np.linspace(2, 1, 50).tolist())
    assert falling.suggestion is None and "still fell at the highest rate: try rates beyond 1." in falling.reason
    noise = np.random.default_rng(1).normal(1.0, 0.2, 50).tolist()
    flat = suggest_learning_rate(rates, [*noise[:40], *np.linspace(1, 9, 10)])
    assert flat.suggestion is None and "little to learn" in flat.reason
    assert "diverged within 6 steps: begin at a rate below 1e-06" in suggest_learning_rate(rates, [1.0] * 5).reason


def test_a_sweep_stops_where_the_loss_diverges():
    tried = []

    def take_steps(rates):
        for rate in rates:
            tried.append(rate)
            yield 1.0 if rate < 1e-2 else 100.0

    found = run_lr_sweep(take_steps, 1e-4, 1.0, 50)
    # means of seven: with one 100 among them 15, four times the best of 1
    assert len(tried) == len(found.losses) == sum(rate < 1e-2 for rate in np.geomspace(1e-4, 1.0, 50)) + 1
    assert len(run_lr_sweep(lambda rates: (1.0 if i < 30 else float("nan") for i, _ in enumerate(rates))).losses) == 30
    with pytest.raises(TlkerasError, match="rise from above 0, in 20 steps or more"):
        run_lr_sweep(take_steps, 1.0, 0.1)


@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(make_dataset, id="function", marks=pytest.mark.slow),
        pytest.param(Pairs(), id="pydataset", marks=pytest.mark.slow),
        pytest.param(list_batches(), id="list"),
    ],
)
def test_training_goes_on_as_if_nothing_had_been(given, trained):
    results = []
    for searched in (False, True):
        model, batches = make_model(), make_dataset()
        if trained:
            model.fit(batches, epochs=1, verbose=0)
        if searched:
            before = read_states(model)
            found = find_learning_rate(model, given, highest=10.0, steps=20)
            assert_same(before, read_states(model))
            assert model.optimizer.built == trained
            assert len(set(found.losses)) > 10
        results.append(train_on(model, batches))
    assert_same(*results)


def decay(rate=0.1):
    return keras.optimizers.schedules.ExponentialDecay(rate, 5, 0.9)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda: keras.optimizers.AdamW(1e-2, use_ema=True), marks=pytest.mark.slow),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(decay(), momentum=0.9)),
        lambda: scale_learning_rates(keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2)),
        pytest.param(lambda: keras.optimizers.RMSprop(lambda: 1e-2), marks=pytest.mark.slow),
    ],
    ids=["averages", "scaled losses on a schedule", "rates per variable", "function"],
)
def test_any_optimizer_is_left_as_it_was(make_optimizer):
    model = make_model(make_optimizer())
    model.fit(*list_batches()[0], epochs=2, verbose=0)
    before = read_states(model)
    found = find_learning_rate(model, list_batches(), highest=10.0, steps=20)
    assert len(set(found.losses)) == len(found.losses) > 5
    assert_same(before, read_states(model))


def test_the_copy_stands_where_the_model_stands():
    """At a rate of nothing the losses are those of the model, moments and weights are those of further training."""
    model = make_model(keras.optimizers.AdamW(1e-2, weight_decay=0.1), dropout=0.0)
    model.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.fit(X, Y, epochs=3, verbose=0)
    found = find_learning_rate(model, [(X, Y)], lowest=1e-12, highest=1e-11, steps=20)
    expected = float(model.compute_loss(X, Y, model(X, training=True)))
    assert found.losses == pytest.approx([expected] * 20, rel=1e-3)


class Failing(Pairs):
    def __getitem__(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_what_ends_it_leaves_no_trace_either():
    model = make_model()
    model.fit(Pairs(), epochs=1, verbose=0)
    before = read_states(model)
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(model, Failing())
    assert_same(before, read_states(model))


def test_frozen_layers_stay_frozen_and_can_thaw_afterwards():
    model = make_model()
    model.layers[1].trainable = False
    flags = [layer.trainable for layer in model.layers]
    find_learning_rate(model, list_batches(), steps=20)
    assert [layer.trainable for layer in model.layers] == flags
    model.layers[1].trainable = True
    model.fit(X, Y, verbose=0)  # an optimizer built while it was frozen would not know its variables


def test_what_cannot_be_searched_is_said():
    model = make_model()
    for batches in (iter(list_batches()), make_dataset(), iter(make_dataset())):
        with pytest.raises(DataError, match="would change them.*A function makes new ones"):
            find_learning_rate(model, batches)
    with pytest.raises(DataError, match="There are no batches"):
        find_learning_rate(model, [])
    with pytest.raises(TlkerasError, match="is not compiled"):
        find_learning_rate(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), list_batches())

    class Own(keras.Model):
        def train_step(self, data):
            return {}

    own = Own(model.input, model.output)
    own.compile("adam", "mse")
    with pytest.raises(TlkerasError, match="`train_step` of its own.*sweep"):
        find_learning_rate(own, list_batches())


def test_a_net_that_learns_is_given_a_rate_it_learns_at():
    model = make_model(keras.optimizers.SGD(1.0))
    found = find_learning_rate(model, [(X, Y)], highest=1e3)
    assert found.suggestion is not None, found.reason
    assert 1e-3 < found.suggestion < 10
    before = model.evaluate(X, Y, verbose=0)[0]
    model.optimizer.learning_rate = found.suggestion
    model.fit(X, Y, batch_size=48, epochs=30, verbose=0)
    assert model.evaluate(X, Y, verbose=0)[0] < 0.7 * before
