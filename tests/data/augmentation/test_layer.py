"""The layer makes the pipeline's pixels, and the faster place is taken."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation import views
from tlkeras.data.augmentation.policies import make_policy
from tlkeras.data.augmentation.views import (
    AugmentedView,
    ImageAugmentation,
    choose_augmentation_device,
    time_placements,
)
from tlkeras.finetuning.inputs import ImageSource


@pytest.mark.parametrize("name", ["dihedral", "rand_augment"])
def test_the_layer_makes_the_pixels_of_the_pipeline(colours, name):
    policy = make_policy(name)
    images = np.stack([colours, colours[::-1], colours[:, ::-1]])
    keys, numbers = np.arange(6).reshape(3, 2) * 10**12, np.array([4, 0, 9])
    shown = ImageAugmentation(policy, seed=3)((images, keys, numbers))
    assert shown.dtype == tf.uint8
    for image, key, number, view in zip(images, keys, numbers, shown, strict=True):
        np.testing.assert_array_equal(
            view, AugmentedView(policy, 3, int(number)).apply(tf.constant(image), tf.constant(key))
        )


def test_batches_are_the_same_in_either_placement(plant, colours, encode):
    root = plant({f"{number}.png": encode(np.roll(colours, number, axis=0)) for number in range(6)})
    paths, digests = [str(root / f"{n}.png") for n in range(6)], [f"{n:064x}" for n in range(6)]
    batches = [np.array([4, 1, 3]), np.array([0, 5, 2])]

    def read(in_graph: bool) -> list[np.ndarray]:
        supply = ImageSource(paths, digests, 32, "stretch", make_policy("light"), 7, in_graph)
        return [np.asarray(images) for _, images in supply.stream(batches, epoch=2)]

    for here, there in zip(read(False), read(True), strict=True):
        np.testing.assert_array_equal(here, there)


def test_the_faster_place_is_taken(monkeypatch):
    policy = make_policy("light")
    assert choose_augmentation_device(policy, 32, 4) == "pipeline"  # no accelerator here
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    for times in ({"pipeline": 2.0, "graph": 1.0}, {"pipeline": 1.0, "graph": 2.0}):
        monkeypatch.setattr(views, "time_placements", lambda *_, times=times: times)
        assert choose_augmentation_device(policy, 32, 4) == min(times, key=times.get)
    assert choose_augmentation_device(make_policy("none"), 32, 4) == "pipeline"


def test_both_places_are_timed():
    times = time_placements(make_policy("flip"), 16, 4)
    assert set(times) == {"pipeline", "graph"} and min(times.values()) > 0
