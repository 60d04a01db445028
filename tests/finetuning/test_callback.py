"""Gradual unfreezing inside one fit: what moves and what does not, stage by stage, with one optimizer."""

from __future__ import annotations

from itertools import pairwise, product

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tlkeras.errors import TlkerasError
from tlkeras.finetuning.callbacks import GradualUnfreezing
from tlkeras.finetuning.freezing import run_in_inference
from tlkeras.finetuning.layer_groups import group_layers
from tlkeras.finetuning.optimizers import find_scaled, scale_learning_rates
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.unfreezing import set_trainable

IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
TARGETS = np.eye(2, dtype="float32")[np.arange(8) % 2]


def convolve(x: keras.KerasTensor, name: str, kernel: int = 3) -> keras.KerasTensor:
    x = layers.Conv2D(4, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn", momentum=0.5)(x)


def connect_residual(x: keras.KerasTensor) -> keras.KerasTensor:
    """With stochastic depth, as EfficientNet."""
    x = convolve(x, "a")
    for name in "bc":
        y = layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(convolve(x, name))
        x = layers.Add(name=f"{name}_add")([x, y])
    return x


def connect_dense(x: keras.KerasTensor) -> keras.KerasTensor:
    """Each block adds channels to all before, as DenseNet."""
    x = convolve(x, "a")
    for name in "bc":
        x = layers.Concatenate(name=f"{name}_concat")([x, convolve(x, name)])
    return x


def connect_separable(x: keras.KerasTensor) -> keras.KerasTensor:
    """Depthwise convolutions and pointwise ones, as MobileNet."""
    x = convolve(x, "a")
    for name in "bc":
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
        x = convolve(layers.BatchNormalization(name=f"{name}_inner_bn")(x), name, kernel=1)
    return x


FAMILIES = [connect_residual, connect_dense, connect_separable]


def make_model(connect=connect_residual, nested: bool = False, optimizer=None, traced: bool = False) -> keras.Model:
    """Traced training is what needs proof; tests of anything else are quicker without."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    tensor = connect(inputs)
    if nested:
        outer = keras.Input((8, 8, 3))
        tensor = keras.Model(inputs, tensor, name="backbone")(outer)
        inputs = outer
    x = layers.GlobalAveragePooling2D(name="pool")(tensor)
    x = layers.BatchNormalization(name="head_bn")(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="head_dense")(x))
    optimizer = optimizer or scale_learning_rates(keras.optimizers.Adam())
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], run_eagerly=not traced)
    return model


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, epochs: int = 9, **options) -> dict[str, list[float]]:
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(IMAGES, TARGETS, epochs=epochs, callbacks=list(callbacks), **options).history


def read(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights; those of layers by the name of the layer, wherever it is nested."""
    return {variable.path: np.array(variable) for variable in model.weights}


def list_moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {path for path in before if not np.array_equal(before[path], after[path])}


def read_multiplier(optimizer: keras.Optimizer, variable: keras.Variable) -> float:
    return float(optimizer._multipliers.numpy()[optimizer._get_variable_index(variable)])


class Watch(keras.callbacks.Callback):
    """Keeps the weights, the first moments and the multipliers at the start and the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.starts, self.ends, self.moments, self.multipliers = [], [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.starts.append(read(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(read(self.model))
        optimizer = self.model.optimizer
        self.moments.append({slot.name: np.array(slot) for slot in optimizer.variables if "momentum" in slot.name})
        self.multipliers.append({v.path: read_multiplier(optimizer, v) for v in self.model.trainable_variables})


STAGES = Schedule(
    (
        Stage("head", 0, 0.01, epochs=1, decay="constant"),
        Stage("top", 1, 0.01, epochs=1, decay="constant"),
        Stage("affine", 2, 0.01, epochs=1, decay="constant", layer_decay=0.5, batch_norm="affine"),
        Stage("all", "all", 0.01, epochs=1, decay="constant", batch_norm="train"),
    ),
    minimise=True,
    keep="last",
)


def expect_moved(paths: list[str], blocks: str, batch_norm: str) -> set[str]:
    """What must move, from the names of the blocks a, b and c that train."""
    moved = {path for path in paths if "head_" in path}
    for path in paths:
        layer, weight = path.split("/")[-2:]
        if layer[0] in blocks and "head" not in layer:
            kind = ("statistics" if "moving" in weight else "affine") if layer.endswith("bn") else "kernel"
            allowed = {
                "frozen": {"kernel"},
                "affine": {"kernel", "affine"},
                "train": {"kernel", "affine", "statistics"},
            }
            moved |= {path} if kind in allowed[batch_norm] else set()
    return moved


@pytest.mark.parametrize(
    ("connect", "nested"),
    [
        pytest.param(connect_residual, False, marks=pytest.mark.slow),
        (connect_dense, False),
        (connect_separable, False),
        (connect_residual, True),
    ],
)
def test_each_stage_moves_what_it_should_and_nothing_else(connect, nested):
    model, watch = make_model(connect, nested, traced=True), Watch()
    history = fit(model, GradualUnfreezing(STAGES), watch)
    paths = list(watch.starts[0])
    stages = [("", "frozen"), ("c", "frozen"), ("bc", "affine"), ("abc", "train")]
    for epoch, (blocks, batch_norm) in enumerate(stages):
        moved = list_moved(watch.starts[epoch], watch.ends[epoch])
        assert moved == expect_moved(paths, blocks, batch_norm), STAGES.stages[epoch].name
    assert history["stage"] == [1, 2, 3, 4]
    assert history["learning_rate"] == pytest.approx([0.01] * 4)

    # one optimizer: it counts every step, and what trained before trains on with its moments
    assert int(model.optimizer.iterations) == 4 * 2
    grown = [{name for name, moment in moments.items() if moment.any()} for moments in watch.moments]
    assert all(early < late for early, late in pairwise(grown))
    head = [moments[next(name for name in moments if "head_dense_kernel" in name)] for moments in watch.moments]
    assert not any(np.allclose(early, late) for early, late in pairwise(head))

    # a tenth of the head's rate for the topmost block, half of that for the next
    rates = {path.split("/")[-2]: rate for path, rate in watch.multipliers[2].items()}
    assert (rates["head_dense"], rates["c_conv"], rates["b_conv"]) == pytest.approx((1.0, 0.1, 0.05))


def test_moments_go_on_as_in_one_long_stage():
    """A head that trains in two stages ends with the bits of one that trains in a single one."""
    results = []
    for lengths in ([4], [2, 2]):
        stages = (Stage(str(i), 0, 0.01, epochs=n, decay="constant") for i, n in enumerate(lengths))
        model = make_model()
        fit(model, GradualUnfreezing(Schedule(tuple(stages), minimise=True, keep="last")))
        results.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_a_resumed_fit_stands_where_the_first_one_did():
    """Stopped within the second stage, and taken up by another model, optimizer and callback."""
    schedule = Schedule((stage("head"), Stage("top", 1, 0.01, epochs=2)), minimise=True, keep="last")
    whole = make_model(connect_dense)
    fit(whole, callback := GradualUnfreezing(schedule, monitor="loss"))
    first = make_model(connect_dense)
    fit(first, begun := GradualUnfreezing(schedule, monitor="loss"), epochs=2)
    assert begun.history == callback.history[:2]

    second = make_model(connect_dense)
    ever = set_trainable(group_layers(second), 1)
    second.optimizer.build(ever)
    second.set_weights(first.get_weights())
    for own, other in zip(second.optimizer.variables, first.optimizer.variables, strict=True):
        own.assign(other)
    fit(second, GradualUnfreezing(schedule, monitor="loss", history=begun.history), initial_epoch=2)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), second.get_weights(), strict=True))
    assert int(second.optimizer.iterations) == 3 * 2


class Claim(keras.callbacks.Callback):
    """Puts values of its own into the logs."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["quality"] = self.values[epoch]


def run_claimed(values, schedule, **options):
    model, watch = make_model(**options), Watch()
    callback = GradualUnfreezing(schedule, monitor="quality")
    history = fit(model, Claim(values), callback, watch)
    return model, watch, callback, history


def stage(name: str, unfreeze: int = 0, epochs: int = 1) -> Stage:
    return Stage(name, unfreeze, 0.01, epochs=epochs, decay="constant")


def test_the_best_weights_are_restored_and_a_stage_that_does_not_pay_ends_the_run():
    schedule = Schedule((stage("head", epochs=3), stage("top", 1), stage("more", 2)), minimise=False)
    model, watch, callback, history = run_claimed([1, 3, 2, 2.5], schedule)
    assert history["stage"] == [1, 1, 1, 2]
    assert callback.history == [1, 3, 2, 2.5]
    for state in (watch.starts[3], read(model)):
        assert not list_moved(watch.ends[1], state)


def test_restored_weights_are_not_overwritten_by_old_averages():
    optimizer = scale_learning_rates(keras.optimizers.SGD(use_ema=True))
    schedule = Schedule((stage("head", epochs=3),), minimise=False)
    model, watch, _, _ = run_claimed([1, 3, 2], schedule, optimizer=optimizer)
    assert not list_moved(watch.ends[1], read(model))


def test_a_plateau_ends_a_stage():
    plateau = Stage("head", 0, 0.01, until="plateau", patience=1)
    schedule = Schedule((plateau, stage("top", 1)), minimise=False)
    *_, history = run_claimed([1, 2, 1, 3], schedule)
    assert history["stage"] == [1, 1, 1, 2]


def test_frozen_blocks_act_as_in_inference_and_plainly_afterwards(tmp_path):
    """Dropout of the block b rests while b does; c, which trains, drops."""
    model = make_model()
    groups = group_layers(model)
    part = keras.Model(model.input, model.get_layer("b_add").output)
    expected = part(IMAGES, training=False)
    set_trainable(groups, 1)
    assert np.array_equal(part(IMAGES, training=True), expected)
    ahead = keras.Model(model.input, model.get_layer("c_add").output)
    assert not np.array_equal(ahead(IMAGES, training=True), ahead(IMAGES, training=False))

    model.save(tmp_path / "model.keras")
    for copy in (keras.saving.load_model(tmp_path / "model.keras", compile=False), keras.models.clone_model(model)):
        assert not any("call" in vars(layer) for layer in copy.layers)

    fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=True)))
    assert not any("call" in vars(layer) for layer in model.layers)
    drop = model.get_layer("b_drop")
    assert not np.array_equal(drop(IMAGES, training=True), IMAGES)


def test_inference_is_forced_under_tracing_and_undone():
    drop = layers.Dropout(0.5)
    for on in (True, False):
        run_in_inference(drop, on)
        outputs = tf.function(lambda x: drop(x, training=True))(IMAGES)
        assert np.array_equal(outputs, IMAGES) is on


def test_affine_trains_scale_and_offset_with_fixed_statistics():
    model = make_model()
    paths = {variable.path for variable in set_trainable(group_layers(model), 1, "affine")}
    assert {"c_bn/gamma", "c_bn/beta", "c_conv/kernel", "head_bn/gamma"} <= paths
    assert not any(path.startswith(("a_", "b_")) for path in paths)
    norm = model.get_layer("c_bn")
    x = np.ones((2, 1, 1, 4), "float32") * 7
    assert np.array_equal(norm(x, training=True), norm(x, training=False))


def test_a_nested_backbone_that_was_frozen_whole_thaws_from_the_top():
    """As after `base.trainable = False` in Keras' guide; the optimizer is built again, on all that will train."""
    model = make_model(nested=True)
    model.get_layer("backbone").trainable = False
    before = read(model)
    fit(model, GradualUnfreezing(Schedule((stage("top", 1),), minimise=True, keep="last")))
    moved = {path.split("/")[-2] for path in list_moved(before, read(model))}
    assert moved == {"c_conv", "head_bn", "head_dense"}


def test_statistics_are_taken_anew_before_the_stage():
    schedule = Schedule((Stage("top", 1, 0.01, epochs=2, batch_norm="reestimate"),), minimise=True, keep="last")
    model, watch = make_model(), Watch()
    start = read(model)
    fit(model, GradualUnfreezing(schedule, batches=[IMAGES]), watch)
    statistics = {"c_bn/moving_mean", "c_bn/moving_variance"}
    assert list_moved(start, watch.starts[0]) == statistics
    assert not statistics & list_moved(watch.starts[0], watch.ends[1])


def test_rates_follow_the_schedule_step_by_step():
    class Rates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(self.model.optimizer.learning_rate))

    seen = []
    schedule = Schedule((Stage("head", 0, 0.1, epochs=2, warmup=1.0),), minimise=True)
    fit(make_model(), GradualUnfreezing(schedule), Rates())
    # half and whole in the first epoch of two steps, then a cosine: at its start and half-way
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_others_may_change_a_constant_rate():
    """Such as ReduceLROnPlateau: it is set at the start of a stage and left alone."""
    schedule = Schedule((stage("head", epochs=2), stage("top", 1)), minimise=True, keep="last")

    def halve(epoch, rate):
        return rate / 2 if epoch == 1 else rate

    history = fit(make_model(), GradualUnfreezing(schedule), keras.callbacks.LearningRateScheduler(halve))
    assert history["learning_rate"] == pytest.approx([0.01, 0.005, 0.01])


def test_penalties_of_what_trains_are_in_the_validation_loss():
    """As they are in a fit that begins there."""
    schedule = Schedule((stage("head"), stage("top", 1)), minimise=True, keep="last")
    model = make_model(traced=True)
    model.get_layer("c_conv").kernel.regularizer = lambda kernel: 1000.0 + 0 * keras.ops.sum(kernel)
    history = fit(model, GradualUnfreezing(schedule), validation_data=(IMAGES, TARGETS))
    assert [value > 900 for value in history["val_loss"]] == [False, True]


def test_float16_with_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model(traced=True)
    finally:
        keras.config.set_dtype_policy("float32")
    before = read(model)
    fit(model, GradualUnfreezing(Schedule((stage("head"), stage("top", 1)), minimise=True, keep="last")))
    assert read_multiplier(find_scaled(model.optimizer), model.get_layer("c_conv").kernel) == pytest.approx(0.1)
    assert {path.split("/")[0] for path in list_moved(before, read(model))} <= {"c_conv", "head_bn", "head_dense"}


RATES = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
REFUSED = {
    "rates per block": (
        stage("top", 1),
        {"optimizer": keras.optimizers.Adam},
        {},
        r"compile with scale_learning_rates",
    ),
    "fixed rate": (
        stage("head"),
        {"optimizer": lambda: keras.optimizers.Adam(RATES)},
        {},
        r"learning rate of adam.* cannot be set",
    ),
    "averages": (
        stage("head"),
        {"optimizer": lambda: keras.optimizers.Adam(use_ema=True)},
        {},
        r"averages frozen weights too",
    ),
    "auto": (stage("all", "auto"), {}, {}, r"stage 'all' takes its rates from gradients"),
    "no batches": (Stage("top", 1, 0.1, epochs=1, batch_norm="reestimate"), {}, {}, r"re-estimates batch norm: give"),
    "too many": (stage("top", 9), {}, {}, r"more blocks than the backbone has. Received: 9 of 3"),
    "over": (stage("head"), {}, {"history": [0.5]}, r"the run is over after the 1 epochs of the history"),
    "no best": (stage("head", epochs=3), {}, {"history": [0.5, 0.6]}, r"give its weights as best_weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schedule_that_cannot_run_is_refused_before_the_first_step(case):
    only, options, arguments, sentence = REFUSED[case]
    options = {name: make() for name, make in options.items()}
    model = make_model(**options)
    before = read(model)
    with pytest.raises(TlkerasError, match=sentence):
        callback = GradualUnfreezing(Schedule((only,), minimise=True), **arguments)
        fit(model, callback, initial_epoch=len(callback.history))
    assert not list_moved(before, read(model))


def test_a_plain_optimizer_will_do_where_all_rates_are_one():
    model = make_model(optimizer=keras.optimizers.Adam())
    whole = Stage("top", 1, 0.01, epochs=1, backbone_lr_multiplier=1.0)
    before = read(model)
    fit(model, GradualUnfreezing(Schedule((whole,), minimise=True)))
    assert {path.split("/")[0] for path in list_moved(before, read(model))} == {"c_conv", "head_bn", "head_dense"}


def test_a_history_that_does_not_fit_is_refused():
    with pytest.raises(
        TlkerasError, match=r"Received: 0 values at epoch 1. Resume with `initial_epoch=len\(history\)`"
    ):
        fit(make_model(), GradualUnfreezing(Schedule((stage("head", epochs=3),), minimise=True)), initial_epoch=1)


def test_an_unknown_name_to_monitor():
    schedule = Schedule((stage("head"),), minimise=False)
    with pytest.raises(TlkerasError, match=r"Received: 'acuracy'. Did you mean 'accuracy'\?"):
        fit(make_model(), GradualUnfreezing(schedule, monitor="acuracy"))


LONG = Schedule((stage("head", epochs=2), stage("top", 1, epochs=2), stage("more", 2)), minimise=True, keep="last")
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": lambda: keras.optimizers.AdamW(weight_decay=0.01, use_ema=True, global_clipnorm=1.0),
    "nadam": keras.optimizers.Nadam,
}


@pytest.mark.parametrize(
    ("kind", "nested", "epochs"),
    [
        ("adamw", True, [3]),
        pytest.param("adam", False, [1, 3, 4], marks=pytest.mark.slow),
        pytest.param("nadam", True, [1, 3, 4], marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_saved_whole_while_blocks_are_frozen_keeps_its_optimizer(kind, nested, epochs, tmp_path):
    def make():
        return make_model(connect_dense, nested, scale_learning_rates(OPTIMIZERS[kind]()))

    whole = make()
    fit(whole, callback := GradualUnfreezing(LONG, "loss"), keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"))
    for epoch in epochs:
        loaded = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        loaded.run_eagerly = True
        history = callback.history[:epoch]
        fit(loaded, GradualUnfreezing(LONG, "loss", history=history), initial_epoch=epoch)
        assert all(map(np.array_equal, whole.get_weights(), loaded.get_weights())), epoch
        assert int(loaded.optimizer.iterations) == 5 * 2


def test_lost_moments_are_refused(tmp_path):
    """As of a plain optimizer, which Keras saves and does not load."""
    schedule = Schedule((Stage("top", 1, 0.01, epochs=3, backbone_lr_multiplier=1.0),), minimise=True)
    model = make_model(optimizer=keras.optimizers.Adam())
    fit(model, callback := GradualUnfreezing(schedule, "loss"), epochs=1)
    fresh = make_model(optimizer=keras.optimizers.Adam())
    fresh.set_weights(model.get_weights())
    with pytest.raises(
        TlkerasError, match=r"moments are lost. Received: 1 epochs of history.*scale_learning_rates.*load"
    ):
        fit(fresh, GradualUnfreezing(schedule, "loss", history=callback.history), initial_epoch=1)


class Crash(keras.callbacks.Callback):
    """Ends a fit as a signal does, at the end of an epoch or within it."""

    def __init__(self, epoch, within=False):
        super().__init__()
        self.at, self.within, self.epoch = epoch, within, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.within and self.epoch == self.at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("epoch", "first", "within"),
    [
        (3, True, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product([2, 4], *[[False, True]] * 2)),
    ],
)
def test_after_a_crash_the_same_program_ends_with_the_same_bits(epoch, first, within, tmp_path):
    """With dropout. The second stage begins with the weights of the second epoch; its last epoch is not its best."""
    values = [3, 1, 2, 0.5, 0.7, 0.6]
    schedule = Schedule((stage("head", epochs=3), stage("top", 1, epochs=2), stage("all", 3)), minimise=True)

    def run(folder, *crash):
        model = make_model()
        backup = keras.callbacks.BackupAndRestore(folder / "backup")
        unfreezing = GradualUnfreezing(schedule, "quality", history=folder / "schedule")
        both = [backup, unfreezing] if first else [unfreezing, backup]
        fit(model, Claim(values), *both, *crash)
        return model, unfreezing

    whole, callback = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Crash(epoch, within))
    again, resumed = run(tmp_path / "killed")
    assert callback.history == resumed.history == values
    assert all(map(np.array_equal, whole.get_weights(), again.get_weights()))
    assert all(map(np.array_equal, read_state(whole), read_state(again)))
    assert len(list((tmp_path / "killed/schedule").iterdir())) <= 3


def read_state(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in model.optimizer.variables]


def test_a_crash_between_two_callbacks_leaves_the_history_an_epoch_ahead(tmp_path):
    """The backup is then of the epoch before, whose best weights are still there."""
    schedule = Schedule((stage("head", epochs=3),), minimise=True)

    def run(*more):
        model = make_model(connect_dense)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        unfreezing = GradualUnfreezing(schedule, "quality", history=str(tmp_path / "schedule"))
        fit(model, Claim([2, 3, 1]), unfreezing, *more, backup)
        return model.get_weights()

    with pytest.raises(KeyboardInterrupt):
        run(Crash(1))
    resumed = run()
    whole = make_model(connect_dense)
    fit(whole, Claim([2, 3, 1]), GradualUnfreezing(schedule, "quality"))
    assert all(map(np.array_equal, whole.get_weights(), resumed))


def test_a_folder_of_another_history_is_refused(tmp_path):
    schedule = Schedule((stage("head", epochs=3),), minimise=True)
    model = make_model()
    fit(model, GradualUnfreezing(schedule, "loss", history=tmp_path), epochs=1)
    with pytest.raises(TlkerasError, match=r"history of another value. Received: 'loss' for 'val_loss'"):
        fit(model, GradualUnfreezing(schedule, history=tmp_path), initial_epoch=1)
    with pytest.raises(TlkerasError, match=r"Received: 1 values in .*history.json at epoch 2. Resume with the folder"):
        fit(model, GradualUnfreezing(schedule, "loss", history=tmp_path), initial_epoch=2)


def test_whatever_ends_a_fit_leaves_plain_layers():
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=True), "loss"), Crash(0))
    assert not any("call" in vars(layer) for layer in model.layers)
    for layer in model.layers:
        layer.trainable = True
    model.compile("sgd", "categorical_crossentropy", run_eagerly=True)
    before = read(model)
    fit(model)
    assert {"a_bn/moving_mean", "b_bn/moving_mean"} <= list_moved(before, read(model))


def test_a_fit_afterwards_trains_what_layers_then_say():
    """Without compiling again: the function of the last stage is not used any more."""
    model = make_model()
    fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=True), "loss"))
    drop = model.get_layer("b_drop")
    seen = []
    plain = drop.call
    drop.call = lambda x, training=None: (seen.append(training), plain(x, training=training))[1]
    fit(model, epochs=1)
    assert seen == [True, True]


class SetRate(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 1e-5


@pytest.mark.parametrize("place", [0, 1])
def test_a_rate_that_another_callback_sets_is_refused_where_it_would_be_lost(place):
    callbacks = [GradualUnfreezing(Schedule((Stage("head", 0, 0.01, epochs=2),), minimise=True), "loss")]
    callbacks.insert(place, SetRate())
    with pytest.raises(
        TlkerasError, match=r"Another callback set the learning rate, .* 'head'.* Received: 1e-05 in place"
    ):
        fit(make_model(), *callbacks)


def test_several_steps_per_execution_need_a_constant_rate():
    model = make_model(traced=True)
    model.compile(model.optimizer, "categorical_crossentropy", steps_per_execution=2)
    fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=True), "loss"))
    with pytest.raises(TlkerasError, match=r"rate per step, not per 2 steps: compile with 1"):
        fit(model, GradualUnfreezing(Schedule((Stage("head", 0, 0.01, epochs=1),), minimise=True), "loss"))


@pytest.mark.parametrize(
    ("monitor", "minimise", "sentence"),
    [
        ("val_accuracy", True, "'val_accuracy' should rise: give Schedule minimise=False"),
        ("recall", True, "'recall' should rise"),
        ("val_loss", False, "'val_loss' should fall: give Schedule minimise=True"),
    ],
)
def test_the_direction_of_what_is_monitored(monitor, minimise, sentence):
    def make():
        model, metrics = make_model(), ["accuracy", keras.metrics.Recall(name="recall")]
        model.compile(model.optimizer, "categorical_crossentropy", metrics=metrics, run_eagerly=True)
        return model

    data, model = {"validation_data": (IMAGES, TARGETS)}, make()
    with pytest.raises(TlkerasError, match=sentence):
        fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=minimise), monitor), **data)
    fit(model, GradualUnfreezing(Schedule((stage("head"),), minimise=not minimise), monitor), **data)


def test_statistics_are_taken_from_the_batches_of_fit():
    schedule = Schedule((Stage("top", 1, 0.01, epochs=1, batch_norm="reestimate"),), minimise=True, keep="last")
    results = []
    for batches in ([IMAGES], tf.data.Dataset.from_tensor_slices((IMAGES, TARGETS)).batch(8)):
        model = make_model()
        fit(model, GradualUnfreezing(schedule, "loss", batches=batches))
        results.append(model.get_weights())
    assert all(map(np.array_equal, *results))


def test_more_blocks_than_there_are():
    with pytest.raises(TlkerasError, match=r"The model has 3 blocks to unfreeze. Received: 4"):
        set_trainable(group_layers(make_model()), 4)
