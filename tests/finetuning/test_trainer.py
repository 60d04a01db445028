"""Stages inside one run: what moves, what does not, cached and uncached alike, and across interruptions."""

import keras
import numpy as np
import pytest

from tlkeras.backbones.blocks import find_cut
from tlkeras.backbones.builder import build_backbone, build_pretrained_classifier
from tlkeras.config.schema.finetuning import LearningWithoutForgettingConfig, SoftmaxConfig
from tlkeras.features.extraction import POOLED, FeatureExtractor
from tlkeras.features.pooling import pool
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.inputs import ActivationSource, DataSplit, DistillationSource
from tlkeras.finetuning.losses import make_loss, mixup_batch
from tlkeras.finetuning.network import IMAGES, Network
from tlkeras.finetuning.optimizers import scale_learning_rates
from tlkeras.finetuning.regularization import make_regularizer
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.stage_runner import Objective
from tlkeras.finetuning.trainer import Trainer, TrainerConfig
from tlkeras.heads.linear import LinearHead

RNG = np.random.default_rng(0)
COUNT, CLASSES = 24, 3
CLASSES_OF = np.arange(COUNT) % CLASSES
TARGETS = np.eye(CLASSES, dtype=np.float32)[CLASSES_OF]


def make_network(name="tiny", size=32, source_head=False):
    keras.utils.set_random_seed(1)
    backbone = build_backbone(name, size=size, weights="none")
    source = build_pretrained_classifier(backbone.name, backbone, "none") if source_head else None
    head = [keras.layers.Dense(CLASSES, name="logits"), keras.layers.Activation("softmax", name="probabilities")]
    return Network(backbone, pool(backbone, "average"), head, "net", source)


def draw_images(size=32):
    levels = 40 + 60 * CLASSES_OF[:, None, None, None]
    return np.clip(np.random.default_rng(3).normal(levels, 40, (COUNT, size, size, 3)), 0, 255).astype(np.uint8)


class Breaking:
    """A source of batches that fails after so many batches, as a killed process would."""

    def __init__(self, source, left):
        self.source, self.left = source, left

    def stream(self, batches, epoch):
        for batch in self.source.stream(batches, epoch):
            if self.left[0] == 0:
                raise InterruptedError
            self.left[0] -= 1
            yield batch


def make_part(network, size=32, breaks=None):
    """Images, and their activations behind any cut, as the cache would hold them."""
    images = draw_images(size)

    def source(cut):
        if cut == IMAGES:
            values = images
        elif cut == POOLED:
            values = pool(network.backbone, "average").predict(images, verbose=0)
        else:
            prefix = keras.Model(network.backbone.input, find_cut(network.backbone, cut).tensor)
            values = prefix.predict(images, verbose=0)
        found = ActivationSource([values])
        return breaks(found) if breaks else found

    return DataSplit(TARGETS, np.ones(COUNT, np.float32), source)


STAGES = (
    Stage("head", 0, 1e-2, epochs=1),
    Stage("top", 1, 1e-2, epochs=2, backbone_lr_multiplier=0.5, warmup=0.5),
    Stage("all", "all", 1e-3, epochs=2, layer_decay=0.5),
)


def cuts_of(network, stages):
    total = len(network.blocks)
    counts = [stage.count_blocks(total) for stage in stages]
    return [
        POOLED if count == 0 else IMAGES if count == total else network.blocks[total - count - 1].cut.name
        for count in counts
    ]


def make_trainer(network, stages=STAGES, cuts=None, parts=None, ema=0.9, mixup=False, **settings):
    optimizer = scale_learning_rates(keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0))
    objective = Objective(make_loss(SoftmaxConfig(smoothing=0.1)), mix=mixup_batch if mixup else None)
    splits = parts or (make_part(network), make_part(network))
    options = TrainerConfig(batch_size=8, ema=ema, save_seconds=0.0, **settings)
    schedule = Schedule(stages, minimise=True, keep="last")
    return Trainer(network, schedule, cuts or cuts_of(network, stages), optimizer, objective, splits, options)


def read(network):
    return {variable.path: np.array(variable) for variable in network.model.weights}


def after_epochs(act):
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: act())


FAMILIES = [
    "tiny",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "densenet121", "efficientnet_b0")),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_stage_moves_what_it_should_and_nothing_else(tmp_path, name):
    """In one run that breaks off in the middle of its second stage and is taken up by another process' objects."""
    stages = (*STAGES[:2], Stage("all", "all", 1e-3, epochs=1, batch_norm="train"))
    network, left = make_network(name), [7]
    states = [read(network)]
    train = make_part(network, breaks=lambda source: Breaking(source, left))
    with pytest.raises(InterruptedError):
        make_trainer(network, stages, parts=(train, make_part(network)), ema=0.0).run(
            Checkpoints(tmp_path), [after_epochs(lambda: states.append(read(network)))]
        )
    again = make_network(name)
    make_trainer(again, stages, parts=(make_part(again), make_part(again)), ema=0.0).run(
        Checkpoints(tmp_path), [after_epochs(lambda: states.append(read(again)))]
    )
    assert len(states) == 1 + 4
    moved = {
        stage.name: {path for path, value in states[end].items() if not np.array_equal(value, states[start][path])}
        for stage, start, end in zip(stages, (0, 1, 3), (1, 3, 4), strict=True)
    }
    head = {"logits/kernel", "logits/bias"}
    assert moved["head"] == head
    assert moved["top"] == head | {
        variable.path
        for layer in again.groups.blocks[-1].layers
        if not isinstance(layer, keras.layers.BatchNormalization)
        for variable in layer.trainable_variables
    }
    assert moved["all"] == set(states[0])


@pytest.mark.parametrize(
    "policy, moving, affine", [("frozen", 0, 0), pytest.param("affine", 0, 1, marks=pytest.mark.slow), ("train", 1, 1)]
)
def test_batch_norm_follows_its_policy(policy, moving, affine):
    network = make_network()
    before = read(network)
    make_trainer(network, (Stage("all", "all", 1e-2, epochs=1, backbone_lr_multiplier=1.0, batch_norm=policy),)).run()
    after = read(network)
    norms = [layer for layer in network.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    for norm in norms:
        assert (not np.array_equal(after[norm.moving_mean.path], before[norm.moving_mean.path])) == moving
        assert (not np.array_equal(after[norm.beta.path], before[norm.beta.path])) == affine


def test_statistics_are_recomputed_at_the_start_of_a_stage():
    network = make_network()
    before = read(network)
    make_trainer(network, (Stage("all", "all", 1e-2, epochs=1, batch_norm="reestimate"),)).run()
    norm = next(layer for layer in network.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    assert not np.array_equal(np.array(norm.moving_mean), before[norm.moving_mean.path])
    assert np.array_equal(np.array(norm.beta), before[norm.beta.path])


@pytest.mark.parametrize("policy", ["reestimate", pytest.param("train", marks=pytest.mark.slow)])
def test_heads_are_fitted_to_new_statistics_before_the_first_step(policy):
    """Once: what a head has learned since stays."""
    network, given = make_network(), []

    def fit(positions, features):
        inputs = draw_images()[positions]
        pooled = keras.Model(network.model.input, network.features)
        given.append((positions, features, pooled(inputs, training=False)))
        return {"net": LinearHead().fit(features, CLASSES_OF[positions], groups=positions).to_layers()}

    stages = [Stage(name, "all", 1e-9, epochs=1, batch_norm=policy) for name in ("one", "two")]
    trainer = make_trainer(network, tuple(stages), ema=0.0, fit_heads=fit)
    trainer.run()
    ((positions, features, expected),) = given
    assert sorted(positions) == sorted([*range(COUNT), *range(COUNT)])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    head = LinearHead().fit(features, CLASSES_OF[positions], groups=positions)
    np.testing.assert_allclose(network.model.get_layer("logits").kernel, head.kernel_, atol=1e-5)


@pytest.mark.parametrize(
    "name, size",
    [
        ("tiny", 32),
        pytest.param("efficientnet_b0", 32, marks=pytest.mark.slow),
        pytest.param("densenet121", 32, marks=pytest.mark.slow),
        pytest.param("inception_v3", 75, marks=pytest.mark.slow),
    ],
)
def test_cached_and_uncached_training_give_the_same_losses(name, size):
    stages = (Stage("top", 1, 1e-3, epochs=2, backbone_lr_multiplier=1.0),)
    histories = []
    for cut in (None, IMAGES):
        network = make_network(name, size)
        parts = (make_part(network, size), make_part(network, size))
        cuts = [cut] if cut else cuts_of(network, stages)
        histories.append(make_trainer(network, stages, cuts, parts).run())
    for cached, uncached in zip(*histories, strict=True):
        assert cached["loss"] == pytest.approx(uncached["loss"], rel=1e-4)
        assert cached["val_loss"] == pytest.approx(uncached["val_loss"], rel=1e-4)


def test_moments_survive_unfreezing():
    network = make_network()
    trainer = make_trainer(network, ema=0.0)
    trainer.run()
    assert int(trainer.optimizer.iterations) == 5 * (COUNT // 8)


AUTOMATIC = (STAGES[0], STAGES[1], Stage("auto", "auto", 1e-2, epochs=2))


@pytest.mark.parametrize(
    "stages, mixup, breaks",
    [
        pytest.param(STAGES, True, (2, 4, 5), id="mixup", marks=pytest.mark.slow),
        pytest.param(STAGES[:2], False, (3,), id="in the middle of a stage"),
        pytest.param(AUTOMATIC, False, (2, 7, 5), id="rates by gradients", marks=pytest.mark.slow),
    ],
)
def test_interrupted_runs_end_with_the_same_bits(tmp_path, stages, mixup, breaks):
    whole = make_network()
    history = make_trainer(whole, stages, mixup=mixup).run()
    network = make_network()
    for batches in breaks:  # in each of the stages, some in mid-epoch
        network = make_network()
        left = [batches]
        train = make_part(network, breaks=lambda source, left=left: Breaking(source, left))
        with pytest.raises(InterruptedError):
            make_trainer(network, stages, parts=(train, make_part(network)), mixup=mixup).run(Checkpoints(tmp_path))
    network = make_network()
    resumed = make_trainer(network, stages, mixup=mixup)
    assert resumed.run(Checkpoints(tmp_path)) == history
    for path, value in read(whole).items():
        assert np.array_equal(value, read(network)[path]), path


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path):
    network = make_network()
    history = make_trainer(network).run(Checkpoints(tmp_path))
    again = make_network()
    trainer = make_trainer(
        again, parts=(make_part(again, breaks=lambda source: Breaking(source, [0])), make_part(again))
    )
    assert trainer.run(Checkpoints(tmp_path)) == history
    for path, value in read(network).items():
        assert np.array_equal(value, read(again)[path]), path


def test_a_stage_that_does_not_pay_leaves_the_best_weights():
    network = make_network()
    schedule = Schedule((Stage("wild", "all", 9.0, epochs=2, backbone_lr_multiplier=1.0),), minimise=True)
    before = read(network)
    trainer = make_trainer(network, schedule.stages, ema=0.0)
    trainer.schedule = schedule
    trainer.run()
    assert trainer.best_epoch == 0  # the start
    assert all(np.array_equal(value, before[path]) for path, value in read(network).items())


def test_rates_by_gradients_stay_below_the_ceiling():
    network = make_network()
    trainer = make_trainer(network, (Stage("auto", "auto", 1e-3, epochs=1, backbone_lr_multiplier=0.5),))
    seen = []
    set_multipliers = trainer.optimizer.set_multipliers
    trainer.optimizer.set_multipliers = lambda rates: (seen.append(rates), set_multipliers(rates))
    trainer.run()
    rates = np.array([rate for path, rate in seen[-1].items()])
    assert rates.max() == pytest.approx(0.5) and rates.min() < 0.25


@pytest.mark.slow
def test_a_search_of_the_rate_leaves_no_trace():
    whole, network = make_network(), make_network()
    history = make_trainer(whole, STAGES[1:2]).run()
    trainer = make_trainer(network, STAGES[1:2])
    before, randomness = read(network), np.random.get_state()[1].copy()
    found = trainer.find_rate(0, 1e-5, 1.0, 20)
    assert len(found.rates) > 2
    assert all(np.array_equal(value, before[path]) for path, value in read(network).items())
    assert np.array_equal(np.random.get_state()[1], randomness)
    assert trainer.run() == history  # the optimizer and the position in the data are as they were, too
    assert all(np.array_equal(value, read(network)[path]) for path, value in read(whole).items())


def test_the_trained_model_is_a_plain_one(tmp_path):
    network = make_network()
    make_trainer(network, STAGES[:1]).run()
    network.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = draw_images()
    np.testing.assert_allclose(loaded.predict(images, verbose=0), network.model.predict(images, verbose=0), atol=1e-6)
    assert all("call" not in vars(layer) for layer in network.model.layers)


class Recorder(keras.callbacks.Callback):
    """Every call in its order: name, number of the epoch or batch, names of the logs; `stop` names the last call."""

    def __init__(self, stop=None):
        super().__init__()
        self.calls, self.logs, self._stop = [], [], stop
        for name in ("train_begin", "train_end"):
            setattr(self, f"on_{name}", lambda logs=None, name=name: self._record((name,), logs))
        for name in ("epoch_begin", "epoch_end", "train_batch_begin", "train_batch_end"):
            setattr(self, f"on_{name}", lambda number, logs=None, name=name: self._record((name, number), logs))

    def _record(self, call, logs):
        self.calls.append(call)
        if logs:
            self.logs.append((*call, logs))
        if call == self._stop:
            self.model.stop_training = True


def list_calls(epochs, steps=COUNT // 8):
    batches = [(name, step) for step in range(steps) for name in ("train_batch_begin", "train_batch_end")]
    return [call for epoch in epochs for call in (("epoch_begin", epoch), *batches, ("epoch_end", epoch))]


def test_callbacks_see_the_run_as_fit_would_show_it():
    network, recorder = make_network(), Recorder()
    trainer = make_trainer(network, STAGES[:2])
    history = trainer.run(callbacks=[recorder])
    assert recorder.calls == [("train_begin",), *list_calls(range(3)), ("train_end",)]
    assert recorder.model is network.model and not hasattr(network.model, "optimizer")
    params = {"verbose": 0, "epochs": 3, "steps": 3, "stages": ["head", "top"], "history": []}
    assert recorder.params == params
    ends = [(number, logs) for name, number, logs in recorder.logs[:-1] if name == "epoch_end"]
    for (number, logs), row in zip(ends, history, strict=True):
        assert number == row["epoch"] - 1
        assert logs == {name: row[name] for name in row if name not in ("epoch", "stage")} | {"stage": logs["stage"]}
        assert {"loss", "val_loss", "val_accuracy", "val_roc_auc", "learning_rate"} <= set(logs)
    assert [logs["stage"] for _, logs in ends] == [1, 2, 2]
    assert recorder.logs[-1] == ("train_end", ends[-1][1])
    means = [logs["loss"] for name, step, logs in recorder.logs[:-1] if name == "train_batch_end" and step == 2]
    assert means == pytest.approx([row["loss"] for row in history])


@pytest.mark.slow
def test_callbacks_change_no_bits():
    plain, watched = make_network(), make_network()
    history = make_trainer(plain, STAGES[:2]).run()
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=9)
    reducing = keras.callbacks.ReduceLROnPlateau(patience=0)  # the schedule sets the rate of every step
    assert make_trainer(watched, STAGES[:2]).run(callbacks=[Recorder(), stopping, reducing]) == history
    assert all(np.array_equal(value, read(watched)[path]) for path, value in read(plain).items())


def test_a_resumed_run_shows_callbacks_what_is_left(tmp_path):
    network, left = make_network(), [4]
    train = make_part(network, breaks=lambda source: Breaking(source, left))
    with pytest.raises(InterruptedError):
        make_trainer(network, STAGES[:2], parts=(train, make_part(network))).run(Checkpoints(tmp_path))
    recorder, again = Recorder(), make_network()
    history = make_trainer(again, STAGES[:2]).run(Checkpoints(tmp_path), [recorder])
    rest = list_calls([1, 2])
    del rest[1:3]  # the first step of the second epoch was taken before
    assert recorder.calls == [("train_begin",), *rest, ("train_end",)]
    assert [logs["loss"] for logs in recorder.params["history"]] == [history[0]["loss"]]


@pytest.mark.parametrize("stop", [("epoch_end", 1), ("train_batch_end", 1)])
def test_a_callback_stops_the_run_which_keeps_the_best_weights(tmp_path, stop):
    """For good: a run that is resumed then has ended."""
    network, states = make_network(), []
    schedule = Schedule((Stage("wild", "all", 9.0, epochs=4, backbone_lr_multiplier=1.0),), minimise=True)
    before, recorder = read(network), Recorder(stop)
    trainer = make_trainer(network, schedule.stages, ema=0.0)
    trainer.schedule = schedule
    history = trainer.run(Checkpoints(tmp_path), [recorder, after_epochs(lambda: states.append(read(network)))])
    assert len(history) == (2 if stop[0] == "epoch_end" else 1)
    assert recorder.calls[-2:] == [("epoch_end", len(history) - 1), ("train_end",)]
    assert any(not np.array_equal(value, before[path]) for path, value in states[-1].items())
    assert all(np.array_equal(value, before[path]) for path, value in read(network).items())
    resumed = make_trainer(make_network(), schedule.stages, ema=0.0)
    resumed.schedule = schedule
    assert resumed.run(Checkpoints(tmp_path)) == history
    assert all(np.array_equal(value, before[path]) for path, value in read(resumed.network).items())


def test_a_stopped_run_keeps_the_averages():
    network, averages = make_network(), []
    trainer = make_trainer(network, STAGES[1:2])

    def note():
        average = trainer._runner.average
        averages.extend(zip(average.variables, map(np.array, average.values), strict=True))

    trainer.run(callbacks=[Recorder(("epoch_end", 0)), after_epochs(note)])
    assert averages and all(np.array_equal(variable, value) for variable, value in averages)


def distil(weight, cut=None):
    """Train the topmost block under distillation: the history, and the drift of the source's predictions."""
    network = make_network(source_head=True)
    kernel = network.source_head.get_layer("predictions").kernel
    kernel.assign(kernel * 30)  # untrained, all predictions are much the same
    prefix = FeatureExtractor(network.backbone, network.model, source_head=network.source_head)
    teacher, images = prefix.copy_teacher(), draw_images()
    recorded = teacher.predict(images, verbose=0)
    if cut is None:
        (cut,) = cuts_of(network, STAGES[1:2])
        prefix_to_cut = keras.Model(network.backbone.input, find_cut(network.backbone, cut).tensor)
        values = prefix_to_cut.predict(images, verbose=0)
        source = ActivationSource([values], recorded=[recorded])
    else:
        source = DistillationSource(ActivationSource([images]), teacher)
    train = DataSplit(TARGETS, np.ones(COUNT, np.float32), lambda _: source)
    trainer = make_trainer(network, (STAGES[1],), [cut], (train, make_part(network)), ema=0.0)
    trainer.objective = Objective(
        trainer.objective.loss, [make_regularizer(LearningWithoutForgettingConfig(weight=weight))]
    )
    history = trainer.run()
    predictions = keras.Model(network.backbone.input, network.source_head(network.backbone.output))
    return history, float(np.abs(predictions.predict(images, verbose=0) - np.exp(recorded)).mean())


@pytest.mark.slow
def test_distillation_keeps_the_predictions_of_the_source():
    (_, free), (_, held) = distil(0.0), distil(100.0)
    assert 0 < held < free / 3


@pytest.mark.slow
def test_distillation_from_recorded_logits_equals_that_from_a_frozen_copy():
    (cached, _), (uncached, _) = distil(4.0), distil(4.0, IMAGES)
    for left, right in zip(cached, uncached, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
