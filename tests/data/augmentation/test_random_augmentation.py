"""The augmentation layer in models: what it changes, when, and what a saved model keeps of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation.layers import RandomAugmentation
from tlkeras.data.augmentation.operations import apply_dihedral
from tlkeras.data.augmentation.policies import make_policy
from tlkeras.errors import TlkerasError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
POLICIES = ["flip", "dihedral", "standard", [{"rotate": 10}, {"equalize": 0.5}]]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_only_training_changes_images_and_each_step_draws_anew(policy):
    layer = RandomAugmentation(policy, seed=1)
    assert np.array_equal(layer(IMAGES), IMAGES) and np.array_equal(layer(IMAGES, training=False), IMAGES)
    first, second = (np.array(layer(IMAGES, training=True)) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == IMAGES.shape
    assert not np.array_equal(first, IMAGES) and not np.array_equal(first, second)
    again = RandomAugmentation(policy, seed=1)
    assert np.array_equal(again(IMAGES, training=True), first)
    assert not np.array_equal(RandomAugmentation(policy, seed=2)(IMAGES, training=True), first)


def test_images_of_a_batch_have_draws_of_their_own_and_orientations_are_equally_likely():
    shown = RandomAugmentation("dihedral", seed=0)(np.repeat(IMAGES[:1], 800, axis=0), training=True).numpy()
    orientations = np.stack([np.array(apply_dihedral(IMAGES[0], element)) for element in range(8)])
    found = (shown[:, None] == orientations[None]).all(axis=(2, 3, 4))
    assert (found.sum(axis=1) == 1).all()
    assert np.all(np.abs(found.sum(axis=0) - 100) < 40)  # 4 deviations


def make_model(**options):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = RandomAugmentation("rand_augment", options={"magnitude": 5}, name="augment", **options)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def test_a_model_with_it_trains_is_saved_and_loads(tmp_path):
    model = make_model(seed=3)
    model.compile("sgd", "mse")
    model.fit(tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros((6, 2)))).batch(3), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("augment").get_config() == model.get_layer("augment").get_config()
    assert np.array_equal(loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))
    assert np.array_equal(loaded(IMAGES, training=True), model(IMAGES, training=True))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_pixels_that_are_not_bytes_are_refused(dtype):
    sentence = rf"takes uint8 images, 0 to 255. Received: {dtype}. Augment before pixels are scaled"
    for name in ("flip", "standard"):
        with pytest.raises(TlkerasError, match=sentence):
            make_policy(name).apply(tf.cast(IMAGES[0], dtype), 0, tf.constant([1, 2]))
        with pytest.raises(TlkerasError, match=sentence):
            RandomAugmentation(name)(keras.Input((8, 8, 3), dtype=dtype))


def test_other_shapes_and_unknown_policies_are_refused():
    with pytest.raises(TlkerasError, match=r"takes RGB images.*Received: \(None, 8, 8, 1\)"):
        RandomAugmentation("flip")(keras.Input((8, 8, 1), dtype="uint8"))
    with pytest.raises(TlkerasError, match=r"Received: 'standart'. Did you mean 'standard'\?"):
        RandomAugmentation("standart")
