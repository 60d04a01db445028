"""Every optimizer with a rate per variable: the numbers of the plain one at 1, none at 0, and by hand between."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.errors import TlkerasError
from tlkeras.finetuning.optimizers import ConvMuon, ScaledOptimizer, build_on, find_scaled, scale_learning_rates

KINDS = sorted(
    (
        kind
        for kind in (*vars(keras.optimizers).values(), ConvMuon)
        if isinstance(kind, type)
        and issubclass(kind, keras.Optimizer)
        and kind not in (keras.Optimizer, keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    ),
    key=lambda kind: kind.__name__,
)


def make_variables() -> list[keras.Variable]:
    """A matrix, a vector and a kernel."""
    random = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "vector": (4,), "kernel": (2, 2, 3, 4)}
    return [keras.Variable(random.normal(size=shape).astype("float32"), name=name) for name, shape in shapes.items()]


def draw_gradients(variables: list[keras.Variable], seed: int) -> list[tf.Tensor]:
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=variable.shape).astype("float32")) for variable in variables]


def read(variables) -> list[np.ndarray]:
    return [np.array(variable) for variable in variables]


def read_multiplier(optimizer, variable) -> float:
    return float(optimizer._multipliers.numpy()[optimizer._get_variable_index(variable)])


def scalar(value: float = 1.0, name: str = "w") -> keras.Variable:
    return keras.Variable(np.float32(value), name=name)


def test_the_list_of_optimizers_is_that_of_keras():
    assert {"Adam", "AdamW", "SGD", "RMSprop", "Lion", "Muon", "Adafactor", "Nadam"} <= {k.__name__ for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.01, "global_clipnorm": 1.0},
        {"use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2},
    ],
    ids=["decay and clipping", "averages and accumulation"],
)
def test_with_all_multipliers_at_one_nothing_changes(kind, options):
    results = []
    for scale in (lambda optimizer: optimizer, scale_learning_rates):
        variables, optimizer = make_variables(), scale(kind(learning_rate=0.01, **options))
        optimizer.build(variables)
        for seed in range(4):
            optimizer.apply(draw_gradients(variables, seed), variables)
        results.append(read(variables))
    plain, scaled = results
    assert all(np.array_equal(a, b) for a, b in zip(plain, scaled, strict=True))
    assert not np.array_equal(plain[0], make_variables()[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["left out", "at a multiplier of 0"])
def test_a_variable_unfrozen_late_moves_as_under_a_new_optimizer(kind, frozen):
    """Its moments begin at 0, so their bias is corrected by its own count, not that of the run."""
    late, fresh = make_variables(), make_variables()
    early = keras.Variable(np.ones((4,), "float32"), name="early")
    optimizer, plain = scale_learning_rates(kind(learning_rate=0.01)), kind(learning_rate=0.01)
    optimizer.build([early, *late])
    plain.build(fresh)
    before = [] if frozen == "left out" else late
    optimizer.set_multipliers({variable.path: 0.0 for variable in before})
    for seed in range(20):
        optimizer.apply(draw_gradients([early, *before], seed), [early, *before])
    assert all(np.array_equal(a, b) for a, b in zip(read(late), read(fresh), strict=True))
    optimizer.set_multipliers({})
    for seed in range(3):
        gradients = draw_gradients(fresh, seed)
        optimizer.apply([tf.ones(4), *gradients], [early, *late])
        plain.apply(gradients, fresh)
    for a, b in zip(read(late), read(fresh), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_at_zero_a_variable_and_its_slots_rest(kind):
    """After steps that gave it momentum, and with gradients that are not numbers."""
    options = {"momentum": 0.9} if kind is keras.optimizers.SGD else {}
    variables = make_variables()
    optimizer = scale_learning_rates(kind(learning_rate=0.01, weight_decay=0.01, **options))
    optimizer.build(variables)
    optimizer.apply(draw_gradients(variables, 0), variables)
    optimizer.set_multipliers({"matrix": 0.0})
    slots = [slot for slot in optimizer.variables if slot.name.startswith("matrix")]
    before, slots_before = read(variables), read(slots)
    gradients = draw_gradients(variables, 1)
    optimizer.apply([gradients[0] * np.nan, *gradients[1:]], variables)
    after = read(variables)
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])
    assert all(np.array_equal(a, b) for a, b in zip(slots_before, read(slots), strict=True))
    optimizer.set_multipliers({})
    optimizer.apply(draw_gradients(variables, 2), variables)
    assert np.isfinite(variables[0]).all()
    assert not np.array_equal(variables[0], after[0])


def test_sgd_by_hand():
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1, momentum=0.5), {"w": 0.2})
    for _ in range(2):
        optimizer.apply([tf.constant(3.0)], [w])
    # velocity -0.1 * 0.2 * 3 = -0.06, then 0.5 * -0.06 - 0.06 = -0.09
    assert float(w) == pytest.approx(1 - 0.06 - 0.09, abs=1e-6)


@pytest.mark.parametrize("gradient", [3.0, 300.0])
def test_adam_by_hand(gradient):
    """Its first step is the learning rate, however large the gradient: so scaling gradients would do nothing."""
    w = scalar()
    scale_learning_rates(keras.optimizers.Adam(0.1), {"w": 0.2}).apply([tf.constant(gradient)], [w])
    assert float(w) == pytest.approx(1 - 0.1 * 0.2, abs=1e-6)


def test_weight_decay_by_hand():
    w = scalar(2.0)
    optimizer = scale_learning_rates(keras.optimizers.AdamW(0.1, weight_decay=0.5), {"w": 0.2})
    optimizer.apply([tf.constant(3.0)], [w])
    assert float(w) == pytest.approx(2 - 2 * 0.5 * 0.1 * 0.2 - 0.1 * 0.2, abs=1e-6)


def test_muon_decays_its_two_kinds_of_variables_by_hand():
    """Matrices by `weight_decay`, the rest by `adam_weight_decay`; a gradient of 0 leaves the decay alone."""
    matrix, vector = (
        keras.Variable(np.ones((2, 2), "float32"), name="m"),
        keras.Variable(np.ones(2, "float32"), name="v"),
    )
    optimizer = scale_learning_rates(
        keras.optimizers.Muon(0.1, weight_decay=0.5, adam_weight_decay=0.25), {"m": 0.2, "v": 0.4}
    )
    optimizer.apply([tf.zeros((2, 2)), tf.zeros(2)], [matrix, vector])
    assert np.array(matrix) == pytest.approx(1 - 0.5 * 0.1 * 0.2)
    assert np.array(vector) == pytest.approx(1 - 0.25 * 0.1 * 0.4)


def test_exclusions_from_weight_decay_are_kept():
    inner = keras.optimizers.SGD(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["bias"])
    kernel, bias = scalar(name="kernel"), scalar(name="bias")
    scale_learning_rates(inner, {"kernel": 0.5}).apply([tf.zeros(()), tf.zeros(())], [kernel, bias])
    assert (float(kernel), float(bias)) == (pytest.approx(1 - 0.5 * 0.1 * 0.5), 1.0)


def test_clipping_comes_before_scaling():
    """The norm of (3, 4) is 5; clipped to 1 it is (0.6, 0.8)."""
    a, b = scalar(name="a"), scalar(name="b")
    optimizer = scale_learning_rates(keras.optimizers.SGD(1.0, global_clipnorm=1.0), {"a": 0.5})
    optimizer.apply([tf.constant(3.0), tf.constant(4.0)], [a, b])
    assert (float(a), float(b)) == (pytest.approx(1 - 0.3), pytest.approx(1 - 0.8))


def test_accumulated_gradients_by_hand():
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), {"w": 0.5})
    optimizer.apply([tf.constant(2.0)], [w])
    assert float(w) == 1.0
    optimizer.apply([tf.constant(4.0)], [w])
    assert float(w) == pytest.approx(1 - 0.1 * 0.5 * 3)


def test_a_schedule_of_the_rate_by_hand():
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(rates), {"w": 0.5})
    for _ in range(2):
        optimizer.apply([tf.constant(1.0)], [w])
    assert float(w) == pytest.approx(1 - 0.05 - 0.005)


def test_a_part_of_the_variables():
    a, b = scalar(name="a"), scalar(name="b")
    optimizer = scale_learning_rates(keras.optimizers.Adam(0.1))
    optimizer.build([a, b])
    optimizer.apply([tf.constant(1.0)], [a])
    assert float(b) == 1.0
    assert [float(slot) for slot in optimizer.variables if slot.name.startswith("b_")] == [0.0, 0.0]
    assert int(optimizer.iterations) == 1
    optimizer.apply([tf.constant(1.0), tf.constant(1.0)], [a, b])
    assert float(b) < 1.0
    assert int(optimizer.iterations) == 2


def test_multipliers_change_without_a_new_trace():
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1))
    optimizer.build([w])
    step = tf.function(lambda: optimizer.apply([tf.constant(1.0)], [w]))
    positions = []
    for multiplier in (1.0, 0.5, 0.0):
        optimizer.set_multipliers({"w": multiplier})
        step()
        positions.append(float(w))
    assert positions == pytest.approx([0.9, 0.85, 0.85])
    assert step.experimental_get_tracing_count() == 1


def test_the_learning_rate_is_that_of_the_plain_optimizer():
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1), {"w": 0.5})
    optimizer.build([w])
    optimizer.learning_rate = 0.2
    optimizer.apply([tf.constant(1.0)], [w])
    assert float(w) == pytest.approx(0.9)
    assert float(optimizer.learning_rate) == pytest.approx(0.2)
    assert read_multiplier(optimizer, w) == 0.5


@pytest.mark.parametrize("way", ["overwriting", "at the end"])
def test_averages_are_paired_by_variable_and_leave_what_rests(way):
    """Keras pairs the averages of all with the first variables given, and rounds those that rest."""
    a, b, c = scalar(0.1, "a"), scalar(0.7, "b"), scalar(0.3, "c")
    frequency = 1 if way == "overwriting" else None
    inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=frequency)
    optimizer = scale_learning_rates(inner, {"c": 0.0})
    optimizer.build([a, b, c])
    for _ in range(3):
        optimizer.apply([tf.constant(1.0), tf.constant(1.0)], [b, c])
        assert (float(a), float(c)) == (np.float32(0.1), np.float32(0.3))
    if way == "at the end":
        optimizer.finalize_variable_values([b, c])
        # 0.6, 0.5, 0.4; the average starts at the first and takes a tenth of each that follows
        assert float(b) == pytest.approx(0.9 * (0.9 * 0.6 + 0.1 * 0.5) + 0.1 * 0.4)
    assert (float(a), float(c)) == (np.float32(0.1), np.float32(0.3))


def test_averages_restart_at_the_present_weights():
    w = scalar()
    optimizer = scale_learning_rates(keras.optimizers.SGD(0.1, use_ema=True))
    optimizer.build([w])
    optimizer.apply([tf.constant(1.0)], [w])
    w.assign(5.0)
    optimizer.restart_averages()
    optimizer.finalize_variable_values([w])
    assert float(w) == 5.0


def test_an_optimizer_that_has_taken_steps_keeps_its_moments():
    results = []
    for scale in (False, True):
        w, optimizer = scalar(), keras.optimizers.Adam(0.1)
        for gradient in (1.0, -2.0, 3.0):
            optimizer.apply([tf.constant(gradient)], [w])
            if scale:
                assert scale_learning_rates(optimizer) is optimizer
        results.append(float(w))
    assert results[0] == results[1]


def make_model(**compiling) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32", name="second")(x))
    model.compile(loss="mse", **compiling)
    return model


IMAGES, TARGETS = np.linspace(-1, 1, 24, dtype="float32").reshape(8, 3), np.ones((8, 2), "float32")


def test_a_saved_model_goes_on_with_the_same_numbers(tmp_path):
    model = make_model(optimizer=scale_learning_rates(keras.optimizers.AdamW(0.1), {"first/kernel": 0.25}))
    model.fit(IMAGES, TARGETS, epochs=2, verbose=0)
    assert read_multiplier(model.optimizer, model.get_layer("first").kernel) == 0.25
    model.optimizer.set_multipliers({"first/kernel": 0.5})
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, ScaledOptimizer)
    assert isinstance(loaded.optimizer, keras.optimizers.AdamW)
    assert read_multiplier(loaded.optimizer, loaded.get_layer("first").kernel) == 0.5
    assert int(loaded.optimizer.iterations) == 2
    for each in (model, loaded):
        each.fit(IMAGES, TARGETS, epochs=1, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True))


def test_float16_wraps_it_and_it_is_found_again():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model(optimizer=scale_learning_rates("adam", {"first/kernel": 0.0, "first/bias": 0.0}))
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = model.get_weights()
    model.fit(IMAGES, TARGETS, epochs=2, verbose=0, callbacks=[keras.callbacks.LearningRateScheduler(lambda _: 0.5)])
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [False, False, True, True]
    assert float(find_scaled(model.optimizer).learning_rate) == 0.5


def test_only_scaled_optimizers_are_found():
    assert find_scaled(keras.optimizers.Adam()) is None
    assert find_scaled(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())) is None


def test_building_on_more_makes_a_new_one_while_nothing_is_lost():
    a, b = scalar(name="a"), scalar(name="b")
    optimizer = scale_learning_rates(keras.optimizers.Adam(0.2))
    optimizer.build([a])
    assert build_on(optimizer, [a]) is optimizer
    larger = build_on(optimizer, [a, b])
    assert read_multiplier(larger, b) == 1.0
    assert float(larger.learning_rate) == pytest.approx(0.2)
    optimizer.apply([tf.constant(1.0)], [a])
    with pytest.raises(
        TlkerasError, match=r"not built on every variable .* Received: .*, which has taken steps without 'b'"
    ):
        build_on(optimizer, [a, b])


@pytest.mark.parametrize("multiplier", [-0.1, float("nan"), float("inf")])
def test_multipliers_that_are_none(multiplier):
    with pytest.raises(TlkerasError, match=rf"negative or not finite. Received: {multiplier} for 'w'"):
        scale_learning_rates("sgd", {"w": multiplier})


def test_an_unknown_path_is_told_when_the_optimizer_is_built():
    optimizer = scale_learning_rates("sgd", {"kernle": 0.5})
    with pytest.raises(TlkerasError, match=r"not built on this variable. Received: 'kernle'. Did you mean 'kernel'\?"):
        optimizer.build([scalar(name="kernel")])


def test_one_path_for_two_variables_is_told():
    optimizer = scale_learning_rates("sgd", {"a": 0.5})
    optimizer.build([scalar(name="a"), scalar(name="b"), scalar(name="b")])
    with pytest.raises(TlkerasError, match=r"2 variables share a path. Received: 'b'"):
        optimizer.set_multipliers({"b": 0.5})


def test_wrappers_are_refused():
    with pytest.raises(TlkerasError, match=r"Received: LossScaleOptimizer. Scale the inner optimizer"):
        scale_learning_rates(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))


def store(optimizer) -> dict[str, np.ndarray]:
    """As Keras writes it to a file, in an order of its own."""
    found: dict[str, np.ndarray] = {}
    optimizer.save_own_variables(found)
    return found


def make_trained(variables) -> ScaledOptimizer:
    optimizer = scale_learning_rates(keras.optimizers.Adam(0.1), {variables[0].path: 0.5})
    optimizer.build(variables)
    optimizer.apply(draw_gradients(variables, 1), variables)
    return optimizer


@pytest.mark.parametrize("known", [True, False], ids=["by path", "by order"])
def test_a_state_of_more_variables_waits_for_them(known):
    """As Keras loads it, built on what trains; by path the variables may be more than those, in any order."""
    variables = make_variables()
    trained = make_trained(variables[:2])
    loaded = type(trained).from_config(trained.get_config() if known else {"learning_rate": 0.1})
    loaded.build(variables[:1])
    loaded.load_own_variables(store(trained))
    assert int(loaded.iterations) == 0
    if known:
        assert loaded.get_config()["built_on"] == [variable.path for variable in variables[:2]]
        whole = build_on(loaded, variables[:1], variables[::-1])
    else:
        whole = build_on(loaded, variables[:2])
    assert all(map(np.array_equal, read(whole.variables), read(trained.variables)))
    assert [variable.path for variable in whole._trainable_variables] == [one.path for one in variables[:2]]


def test_a_state_of_other_variables_is_refused():
    variables = make_variables()
    trained = make_trained(variables[:2])
    loaded = scale_learning_rates(keras.optimizers.Adam(0.1))
    loaded.build(variables[:1])
    loaded.load_own_variables(store(trained))
    with pytest.raises(
        TlkerasError, match=r"state of the optimizer that was loaded belongs to other variables. Received"
    ):
        build_on(loaded, variables)


def test_a_state_that_no_schedule_takes_up_is_not_dropped_without_a_word():
    variables = make_variables()
    trained = make_trained(variables)
    loaded = type(trained).from_config(trained.get_config())
    loaded.build(variables[1:])  # the first, which has a multiplier, was frozen since
    loaded.load_own_variables(store(trained))
    with pytest.warns(UserWarning, match=r"state that adam.* was saved with is dropped"):
        loaded.apply(draw_gradients(variables, 1)[1:], variables[1:])
