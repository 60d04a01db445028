"""Policies, named and composed; only the operations that were drawn run."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.data.augmentation.operations import OPERATIONS, Operation, Transform
from tlkeras.data.augmentation.policies import POLICIES, AugmentationPolicy, make_policy
from tlkeras.errors import TlkerasError


def apply(policy: AugmentationPolicy, image: np.ndarray, numbers: range = range(12), graph: bool = True) -> list[bytes]:
    def run(number: tf.Tensor) -> tf.Tensor:
        return policy.apply(tf.constant(image), number, tf.stack([7, number]))

    run = tf.function(run, autograph=False) if graph else run
    views = [run(tf.constant(number)).numpy() for number in numbers]
    assert all(view.shape == image.shape and view.dtype == np.uint8 for view in views)
    return [view.tobytes() for view in views]


@pytest.mark.parametrize("name", POLICIES)
def test_views_are_many_and_always_the_same(name, colours):
    policy = make_policy(name)
    views = apply(policy, colours)
    assert policy.name == name and policy == make_policy(name)
    assert views == apply(policy, colours, graph=False)
    if policy.size is None:
        assert len(set(views)) >= 9
    else:
        assert len(set(views)) == policy.size and views == (views[: policy.size] * 12)[:12]


def test_fingerprints_tell_policies_apart():
    policies = [make_policy(name) for name in POLICIES]
    policies += [make_policy("rand_augment", magnitude=10), make_policy("light", fill="nearest")]
    policies += [make_policy([{"rotate": 10}]), make_policy([{"rotate": 11}])]
    assert len({policy.fingerprint for policy in policies}) == len(policies)
    steps = [{"flip": "horizontal"}, {"crop": 0.65}, {"brightness": 0.2}, {"contrast": 0.2}, {"saturation": 0.2}]
    assert make_policy(steps).fingerprint == make_policy("standard").fingerprint  # one thing under two names


def test_only_what_was_drawn_runs(monkeypatch, colours):
    done = []

    def count(name: str) -> Operation:
        def note(image: tf.Tensor, amount: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
            tf.py_function(lambda: done.append(name), [], [])
            return image

        return Operation(0, 1, "between", recolour=note)

    for name in "abc":
        monkeypatch.setitem(OPERATIONS, name, count(name))
    policy = AugmentationPolicy(
        "own", chains=((Transform("a", 1),), (Transform("b", 1), Transform("c", 1)), ()), rounds=2
    )
    apply(policy, colours, range(60))
    assert done.count("b") == done.count("c") and 20 < done.count("a") < 60 and 20 < done.count("b") < 60


def test_rand_augment_has_one_magnitude():
    policy = make_policy("rand_augment", operations=3, magnitude=15)
    moves = {chain[0].operation: chain[0].value for chain in policy.chains if chain}
    assert policy.rounds == 3 and len(policy.chains) == 14 and () in policy.chains
    assert moves["rotate"] == 15 and moves["posterize"] == 6 and moves["solarize"] == 128
    assert moves["brightness"] == 0.45 and moves["equalize"] == 1
    assert all(move.exact for chain in policy.chains for move in chain)


def test_trivial_augment_draws_the_strength():
    policy = make_policy("trivial_augment")
    moves = {chain[0].operation: chain[0] for chain in policy.chains if chain}
    assert policy.rounds == 1 and len(policy.chains) == 14
    assert moves["rotate"] == Transform("rotate", 135) and moves["posterize"] == Transform("posterize", 2)


def test_own_policies():
    policy = make_policy([{"flip": "both"}, {"shear": 0.1}, {"equalize": 0.3}], fill="constant")
    assert policy.fill == "constant" and policy.size is None
    names = ["flip_horizontal", "flip_vertical", "shear_x", "shear_y", "equalize"]
    assert [(move.operation, move.value) for move in policy.chains[0]] == list(
        zip(names, [0.5, 0.5, 0.1, 0.1, 0.3], strict=True)
    )
    assert make_policy([]).size == 1


@pytest.mark.parametrize(
    ("policy", "options", "sentence"),
    [
        ("flp", {}, "Unknown augmentation. Received: 'flp'. Did you mean 'flip'?"),
        ([{"rotat": 10}], {}, "Unknown augmentation operation. Received: 'rotat'. Did you mean 'rotate'?"),
        ([{"translat": 0.1}], {}, "Received: 'translat'. Did you mean 'translate'?"),
        ([{7: 10}], {}, "Received: 7. Valid: autocontrast"),
        ([{"rotate": 1000}], {}, "The value of rotate is not a number from 0 to 180. Received: 1000."),
        ([{"flip": "horizontally"}], {}, "Unknown flip. .* Did you mean 'horizontal'?"),
        ([{"flip": ["both"]}], {}, "Unknown flip."),
        (["rotate"], {}, r"one operation with its value, such as {rotate: 10}. Received: 'rotate'."),
        ([{"rotate": 10, "zoom": 0.1}], {}, "one operation with its value"),
        (
            "light",
            {"fil": "nearest"},
            "The augmentation 'light' has no such option. Received: 'fil'. Did you mean 'fill'?",
        ),
        ("flip", {"fill": "nearest"}, "Received: 'fill'. It has none."),
        ([{"rotate": 10}], {"fill": "mirror"}, "Unknown fill. Received: 'mirror'. Valid: constant,"),
        ("rand_augment", {"magnitude": 31}, "a magnitude from 0 to 30. Received: operations 2, magnitude 31."),
        ("rand_augment", {"operations": 0}, "at least 1 operation"),
        ("rand_augment", {"magnitude": "9"}, "magnitude '9'"),
    ],
)
def test_errors(policy, options, sentence):
    with pytest.raises(TlkerasError, match=sentence.replace("?", r"\?")):
        make_policy(policy, **options)
