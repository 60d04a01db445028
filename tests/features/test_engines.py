"""Engines and folding: the same numbers as Keras, the user's model untouched, a way on when one fails."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.backbones.graph import find_pairs, fold_batch_norm
from tlkeras.errors import TlkerasError
from tlkeras.features import engines
from tlkeras.features.engines import make_engine

ALL = ("openvino", "tensorflow", "keras")


def _depthwise(x):
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    x = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    return layers.BatchNormalization(scale=False)(x)


def _separable(x):
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2)(x)
    x = layers.BatchNormalization(center=False)(x)
    return layers.Conv2D(8, 3, groups=2, use_bias=False)(x)


def _branched(x):
    x = layers.Conv2D(4, 3, padding="same")(x)
    left = layers.BatchNormalization()(layers.Conv2D(4, 1)(x))
    return layers.Add()([x, layers.Dropout(0.5)(left)])


def _shared_output(x):
    x = layers.Conv2D(4, 3)(x)  # feeds two layers, so that its batch norm must not be folded
    return layers.Concatenate()([layers.BatchNormalization()(x), x])


def _activated(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def _reused(x):
    convolution, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    return norm(convolution(norm(convolution(x))))


NETS: dict[str, tuple[Callable, int]] = {
    "depthwise": (_depthwise, 2),
    "separable": (_separable, 1),
    "branched": (_branched, 1),
    "shared output": (_shared_output, 0),
    "activated": (_activated, 0),
    "reused": (_reused, 0),
}


def build(name: str, pooled: bool = True) -> keras.Model:
    """Return a small net whose batch norm does something."""
    keras.utils.set_random_seed(1)
    entry = keras.Input((16, 16, 3), dtype="uint8", name="images")
    output = NETS[name][0](layers.Rescaling(1 / 127.5, -1.0)(entry))
    model = keras.Model(entry, layers.GlobalAveragePooling2D()(output) if pooled else output, name="net")
    rng = np.random.default_rng(2)
    for variable in model.weights:
        low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.5
        variable.assign(rng.uniform(low, low + 1, variable.shape))
    return model


def make_batches(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    starts = np.cumsum([0, *sizes])
    return [
        (np.arange(start, start + size), rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8))
        for start, size in zip(starts, sizes, strict=False)
    ]


def run(engine, batches) -> list[np.ndarray]:
    """Return all outputs in the order of the index."""
    results = sorted(engine.run(batches), key=lambda result: result[0][0])
    assert np.array_equal(
        np.concatenate([index for index, _ in results]), np.arange(sum(map(len, [i for i, _ in batches])))
    )
    return [np.concatenate(parts) for parts in zip(*(outputs for _, outputs in results), strict=True)]


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("name", NETS)
def test_engines_agree_with_keras(name, engine):
    model = build(name, pooled=False)
    batches = make_batches([4, 3, 1])
    maker = make_engine(model, engine)
    assert maker.name == engine
    [output] = run(maker, batches)
    expected = np.asarray(model(np.concatenate([images for _, images in batches]), training=False))
    assert output.dtype == np.float32
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETS)
def test_folds_what_can_be_folded(name):
    assert len(find_pairs(build(name))) == NETS[name][1]


def test_folded_numbers_by_hand():
    """gamma 3, variance 3 and epsilon 1 give s = 1.5; kernel 2 becomes 3, bias (5 - 1) * 1.5 + 7 = 13."""
    entry = keras.Input((1, 1, 1))
    norm = layers.BatchNormalization(epsilon=1.0)
    model = keras.Model(entry, norm(layers.Conv2D(1, 1)(entry)))
    values = 2.0, 5.0, 3.0, 7.0, 1.0, 3.0  # kernel, bias, gamma, beta, mean, variance
    model.set_weights([np.reshape(value, weight.shape) for value, weight in zip(values, model.weights, strict=True)])
    output = fold_batch_norm(model)(np.full((1, 1, 1, 1), 10.0, np.float32))
    assert output.numpy().item() == pytest.approx(3 * 10 + 13)


def test_leaves_the_model_as_it_is():
    model = build("depthwise")
    convolution = model.layers[2]
    weights, config, nodes = model.get_weights(), model.to_json(), len(convolution._inbound_nodes)
    for name in ALL:
        make_engine(model, name)
    assert all(np.array_equal(old, new) for old, new in zip(weights, model.get_weights(), strict=True))
    assert model.to_json() == config
    assert len(convolution._inbound_nodes) == nodes
    assert convolution.output is not None  # raises for a layer that was called twice


@pytest.mark.parametrize("engine", ALL)
def test_several_outputs_keep_their_order(engine):
    """Taps of one pass: the second comes first in the graph, and the third is the first once more."""
    model = build("branched", pooled=False)
    tap = model.layers[2].output
    taps = keras.Model(model.input, [model.output, layers.GlobalMaxPooling2D()(tap), model.output])
    batches = make_batches([2, 3])
    outputs = run(make_engine(taps, engine), batches)
    expected = [np.asarray(output) for output in taps(np.concatenate([batch for _, batch in batches]), training=False)]
    assert [output.shape for output in outputs] == [(5, 16, 16, 4), (5, 4), (5, 16, 16, 4)]
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, reference, atol=1e-4 * np.abs(reference).max())


def test_a_row_does_not_depend_on_its_neighbours():
    engine = make_engine(build("depthwise"), "openvino")
    [(index, images)] = make_batches([7])
    [together] = run(engine, [(index, images)])
    [alone] = run(engine, [(index[row : row + 1], images[row : row + 1]) for row in index])
    assert np.array_equal(together, alone)


def test_yields_while_it_runs():
    """A result comes out long before the last batch went in: nothing piles up."""
    given = 0

    def batches():
        nonlocal given
        for batch in make_batches([2] * 200):
            given += 1
            yield batch

    results = make_engine(build("branched"), "openvino").run(batches())
    next(results)
    assert given < 50
    results.close()


@pytest.mark.parametrize("engine", ALL)
def test_passes_on_what_the_source_raises(engine):
    def batches():
        yield make_batches([2])[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(make_engine(build("branched"), engine).run(batches()))


def test_failing_engines_fall_back_with_a_warning(monkeypatch):
    def fail(extractor, traced):
        raise RuntimeError("no such operation")

    monkeypatch.setitem(engines._ENGINES, "openvino", fail)
    with pytest.warns(RuntimeWarning, match="openvino engine cannot run 'net'.*no such operation"):
        assert make_engine(build("branched"), "openvino").name == "tensorflow"
    monkeypatch.setitem(engines._ENGINES, "tensorflow", fail)
    with pytest.warns(RuntimeWarning, match="tensorflow engine"):
        assert make_engine(build("branched"), "tensorflow").name == "keras"


def test_an_engine_that_disagrees_is_not_taken(monkeypatch):
    class Wrong(engines.KerasEngine):
        def run(self, batches):
            for index, outputs in super().run(batches):
                yield index, [output * 1.01 for output in outputs]

    monkeypatch.setitem(engines._ENGINES, "openvino", Wrong)
    with pytest.warns(RuntimeWarning, match="its result differs by"):
        assert make_engine(build("branched"), "openvino").name == "tensorflow"


def test_auto_is_openvino_without_a_gpu_and_tensorflow_with_one(monkeypatch):
    monkeypatch.setattr(engines.tf.config, "list_physical_devices", lambda kind: [])
    assert make_engine(build("branched")).name == "openvino"
    monkeypatch.setattr(engines.tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert make_engine(build("branched")).name == "tensorflow"


def test_auto_without_openvino_is_tensorflow(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert make_engine(build("branched")).name == "tensorflow"


def test_unknown_engine():
    with pytest.raises(TlkerasError, match=r"'openvin'.*Did you mean 'openvino'"):
        make_engine(build("branched"), "openvin")
