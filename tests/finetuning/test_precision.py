"""Sixteen bits while training, thirty-two before and after; scaled losses; bits that survive an interruption."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tlkeras
from tlkeras.config.schema.finetuning import SoftmaxConfig
from tlkeras.errors import RunError, TlkerasError
from tlkeras.features.pooling import pool
from tlkeras.finetuning import trainer as loops
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.inputs import ActivationSource, DataSplit
from tlkeras.finetuning.losses import make_loss
from tlkeras.finetuning.network import IMAGES, PRECISIONS, Network, choose_precision, computing_in, scale_losses
from tlkeras.finetuning.optimizers import find_scaled, scale_learning_rates
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.stage_runner import Objective
from tlkeras.finetuning.trainer import Trainer, TrainerConfig

COUNT, CLASSES = 16, 2
CLASSES_OF = np.arange(COUNT) % CLASSES
MIXED = [name for name in PRECISIONS if name not in ("auto", "float32")]
RECIPE = """
name: mixed
data: {source: sklearn-digits, limit: 60}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 0.01}
finetuning:
  precision: float16
  stages: [{name: top, unfreeze: 1 block, epochs: 1}]
evaluation: {bootstrap_samples: 100}
"""
STAGES = (Stage("all", "all", 1e-3, epochs=2, warmup=0.5, backbone_lr_multiplier=1.0, batch_norm="train"),)


def make_network():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -1, name="normalization")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, strides=4)(x)))
    x = keras.layers.Add()([x, keras.layers.DepthwiseConv2D(3, padding="same")(x)])
    backbone = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 1)(x)))
    head = [keras.layers.Dense(CLASSES, name="logits"), keras.layers.Activation("softmax", name="probabilities")]
    return Network(backbone, pool(backbone, "average"), head, "net")


def draw_images():
    levels = 60 + 90 * CLASSES_OF[:, None, None, None]
    return np.clip(np.random.default_rng(3).normal(levels, 40, (COUNT, 32, 32, 3)), 0, 255).astype(np.uint8)


class Breaking:
    """A source of batches that fails after so many batches, as a killed process would."""

    def __init__(self, source, left):
        self.source, self.left = source, left

    def stream(self, batches, epoch):
        for batch in self.source.stream(batches, epoch):
            if self.left == 0:
                raise InterruptedError
            self.left -= 1
            yield batch


def make_trainer(network, precision, stages=STAGES, weight=1.0, left=None):
    source = ActivationSource([draw_images()])
    targets, weights = np.eye(CLASSES, dtype=np.float32)[CLASSES_OF], np.full(COUNT, weight, np.float32)
    breaking = source if left is None else Breaking(source, left)
    train = DataSplit(targets, weights, lambda cut: breaking)
    validation = DataSplit(targets, np.ones(COUNT, np.float32), lambda cut: source)
    return Trainer(
        network,
        Schedule(stages, minimise=True, keep="last"),
        [IMAGES] * len(stages),
        scale_learning_rates(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0)),
        Objective(make_loss(SoftmaxConfig())),
        (train, validation),
        TrainerConfig(batch_size=4, ema=0.9, save_seconds=0.0, precision=precision),
    )


def list_policies(network):
    return {layer.dtype_policy.name for layer in network.model._flatten_layers()}


@pytest.mark.parametrize(
    "details, chosen",
    [
        (None, "float32"),
        ({"compute_capability": (6, 1)}, "float32"),
        ({"compute_capability": (7, 0)}, "float16"),
        ({"compute_capability": (7, 5)}, "float16"),
        ({"compute_capability": (8, 0)}, "bfloat16"),
        ({"compute_capability": (10, 0)}, "bfloat16"),
        ({"device_name": "of another maker"}, "float32"),
    ],
)
def test_auto_takes_what_the_hardware_has_units_for(monkeypatch, details, chosen):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [] if details is None else ["first", "second"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", {"first": details}.__getitem__)
    assert choose_precision("auto") == chosen
    assert all(choose_precision(name) == name for name in PRECISIONS if name != "auto")


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(TlkerasError, match=r"Unknown precision. Received: 'bfloat'\. Did you mean 'bfloat16'\?"):
        choose_precision("bfloat")


@pytest.mark.parametrize("precision", MIXED)
def test_layers_compute_in_it_within_and_as_before_outside(precision):
    network = make_network()
    images = draw_images()
    before = network.model(images).numpy()
    with pytest.raises(InterruptedError), computing_in(precision, network.backbone.layers):
        assert network.backbone(images).dtype == precision
        assert network.backbone.get_layer("normalization")(images).dtype == "float32"
        assert network.model(images).dtype == "float32"  # the head is not among the layers
        assert {variable.dtype for variable in network.model.weights} <= {"float32", "uint32"}
        raise InterruptedError
    assert list_policies(network) == {"float32"}
    assert np.array_equal(network.model(images).numpy(), before)


def test_layers_inside_of_layers_compute_in_it_too():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inputs))
    with computing_in("bfloat16", model.layers):
        assert model(np.ones((1, 4), np.float32)).dtype == "bfloat16"
    assert model(np.ones((1, 4), np.float32)).dtype == "float32"


@pytest.fixture(scope="module", params=["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def trained(request):
    """A precision, a network trained in it, and the trainer that did it."""
    network = make_network()
    trainer = make_trainer(network, request.param)
    trainer.run()
    return request.param, network, trainer


@pytest.fixture(scope="module")
def plain():
    """The history of the same training in float32."""
    return make_trainer(make_network(), "float32").run()


def test_losses_are_those_of_float32_to_its_accuracy(trained, plain):
    precision, _, trainer = trained
    for row, expected in zip(trainer.history, plain, strict=True):
        for name in ("loss", "val_loss"):
            assert row[name] == pytest.approx(expected[name], rel={"bfloat16": 1e-2, "float16": 1e-3}[precision])
            assert row[name] != expected[name]


def test_the_trained_model_is_a_float32_one_with_the_trained_weights(tmp_path, trained):
    _, network, _ = trained
    assert list_policies(network) == {"float32"}
    network.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in loaded._flatten_layers()} == {"float32"}
    for mine, its in zip(network.model.weights, loaded.weights, strict=True):
        assert np.array_equal(mine, its), mine.path
    images, fresh = draw_images(), make_network()
    fresh.model.set_weights(loaded.get_weights())  # in a network that never was mixed
    assert np.array_equal(network.model(images).numpy(), fresh.model(images).numpy())


@pytest.mark.slow
def test_interrupted_runs_end_with_the_same_bits(tmp_path, trained):
    precision, whole, first = trained
    broken = make_network()
    with pytest.raises(InterruptedError):
        make_trainer(broken, precision, left=6).run(Checkpoints(tmp_path))  # in the middle of the second epoch
    assert list_policies(broken) == {"float32"}
    if precision == "float16":
        with pytest.raises(
            RunError, match=r"started in float16: resume it in float16\. Received: float32\. Resume it on"
        ):
            make_trainer(make_network(), "float32").run(Checkpoints(tmp_path))
    network = make_network()
    resumed = make_trainer(network, precision)
    assert resumed.run(Checkpoints(tmp_path)) == first.history
    for mine, its in zip(whole.model.weights, network.model.weights, strict=True):
        assert np.array_equal(mine, its), mine.path
    for mine, its in zip(first.optimizer.variables, resumed.optimizer.variables, strict=True):
        assert np.array_equal(mine, its), mine.path  # the scale of the losses among them


@pytest.mark.slow
def test_a_recipe_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    run = Path(tlkeras.evaluate(tlkeras.train(str(tmp_path / "mixed.yaml"), runs=tmp_path)).path)
    assert json.loads((run / "manifest.json").read_text())["finetuning"]["precision"] == "float16"


@pytest.mark.parametrize("scaled", [True, False])
def test_small_gradients_survive_because_losses_are_scaled(monkeypatch, scaled):
    if not scaled:
        monkeypatch.setattr(loops, "scale_losses", lambda optimizer, precision: optimizer)
    network = make_network()
    trainer = make_trainer(network, "float16", (Stage("all", "all", 1e-3, epochs=1),), weight=1e-6)
    trainer.run()
    inner = getattr(trainer.optimizer, "inner_optimizer", trainer.optimizer)
    kernels = [v for v in inner._trainable_variables if v.path.endswith("kernel") and "logits" not in v.path]
    moved = [bool(np.any(inner._momentums[inner._get_variable_index(kernel)])) for kernel in kernels]
    assert kernels and (all(moved) if scaled else not any(moved))


def test_an_overflow_costs_a_step_and_halves_the_scale():
    variable = keras.Variable([1.0])
    optimizer = scale_losses(scale_learning_rates(keras.optimizers.SGD(0.5)), "float16")
    optimizer.build([variable])
    optimizer.apply([tf.constant([np.inf])], [variable])
    assert np.array(variable) == [1.0] and float(optimizer.dynamic_scale) == 2.0**14
    assert float(optimizer.scale_loss(1.0)) == 2.0**14
    optimizer.apply([tf.constant([2.0**14])], [variable])  # 1, once the scale is divided out
    assert np.array(variable) == [0.5]


@pytest.mark.slow
def test_rates_by_gradients_are_those_of_float32(monkeypatch):
    stages, rates = (Stage("auto", "auto", 1e-3, epochs=1),), {}
    for precision in ("float32", "float16"):
        trainer = make_trainer(make_network(), precision, stages)
        scaled = find_scaled(trainer.optimizer)
        seen, set_multipliers = [], scaled.set_multipliers
        monkeypatch.setattr(
            scaled, "set_multipliers", lambda given, seen=seen, f=set_multipliers: (seen.append(given), f(given))
        )
        trainer.run()
        rates[precision] = list(seen[-1].values())
    assert rates["float16"] == rates["float32"] and len(set(rates["float16"])) > 2
