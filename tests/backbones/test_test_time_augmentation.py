"""A network that averages over orientations must see them all alike, and otherwise be a network like any other."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.backbones.blocks import find_cuts
from tlkeras.backbones.graph import max_batch_size, run_in_parts
from tlkeras.backbones.test_time_augmentation import add_test_time_augmentation
from tlkeras.data.augmentation.operations import apply_dihedral
from tlkeras.errors import BackboneError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)


def make_network(strides: int = 2, activation: str | None = "softmax") -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, strides, padding="same", activation="relu", name="map")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(2, activation=activation, name="answer")(x), name="network")


@pytest.mark.parametrize("count", [2, 8])
def test_logits_are_the_mean_of_those_of_each_orientation(count):
    network = make_network(activation=None)

    averaged = add_test_time_augmentation(network, "map", count)

    each = [network(np.stack([apply_dihedral(image, number) for image in IMAGES])) for number in range(count)]
    np.testing.assert_allclose(averaged(IMAGES), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert not np.allclose(averaged(IMAGES), each[0], rtol=1e-3)


def test_all_eight_orientations_of_an_image_get_the_same_prediction():
    averaged = add_test_time_augmentation(make_network(), "map", 8)

    predictions = averaged(np.stack([apply_dihedral(IMAGES[0], number) for number in range(8)])).numpy()

    np.testing.assert_allclose(predictions, predictions[:1].repeat(8, axis=0), rtol=1e-5)


def test_maps_are_turned_back_before_they_are_averaged():
    inputs = keras.Input((12, 12, 3), dtype="uint8")
    maps = layers.AveragePooling2D(4, name="map")(layers.Rescaling(1.0)(inputs))  # turns as the image turns
    network = keras.Model(inputs, layers.Flatten()(maps))

    np.testing.assert_allclose(add_test_time_augmentation(network, "map", 8)(IMAGES), network(IMAGES), rtol=1e-5)


def test_several_outputs_keep_their_names_and_the_variables_are_shared():
    network = make_network()
    named = keras.Model(network.input, {"one": network.output, "two": network.get_layer("features").output})

    averaged = add_test_time_augmentation(named, "map", 2)

    assert averaged(IMAGES)["one"].shape == (3, 2)
    assert averaged(IMAGES)["two"].shape == (3, 8)
    assert {id(weight) for weight in averaged.weights} == {id(weight) for weight in network.weights}


def test_it_is_cut_only_where_a_image_has_one_row_and_is_read_from_a_file(tmp_path):
    averaged = add_test_time_augmentation(make_network(), "map", 8)
    averaged.save(tmp_path / "model.keras")

    again = keras.models.load_model(tmp_path / "model.keras")

    np.testing.assert_array_equal(again(IMAGES), averaged(IMAGES))
    assert [cut.name for cut in find_cuts(again)] == ["average_orientations", "features", "answer"]
    assert (max_batch_size(again, 32), max_batch_size(again, 4), max_batch_size(make_network(), 32)) == (4, 1, 32)


def test_parts_give_what_the_whole_gives():
    sizes = []

    def function(images):
        sizes.append(len(images))
        return {"b": images[:, 0, 0] + 1.0, "a": images[:, 0, 1]}

    a, b = run_in_parts(function, IMAGES, 2)

    np.testing.assert_array_equal(a, IMAGES[:, 0, 1])
    np.testing.assert_array_equal(b, IMAGES[:, 0, 0] + 1.0)
    assert sizes == [2, 1]
    assert [output.shape for output in run_in_parts(function, IMAGES[:0], 2)] == [(0, 3)] * 2


def test_a_cut_without_a_map_is_refused():
    with pytest.raises(BackboneError, match=r"needs a feature map.*features gives 8.*test_time"):
        add_test_time_augmentation(make_network(), "features", 8)
